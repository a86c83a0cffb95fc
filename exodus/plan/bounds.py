"""Every bound of the data plane, with its unit. Each queue, buffer, wait, and retry names one.

Bounds that several modules share come first, by subject. The others follow, by module.
"""

HOUR_MS = 3_600_000  # a unit, for bounds in hours

# Requests and replies in a gateway.
STREAM_FRAME_BYTES = 64 * 1024  # A longer request is forwarded while it still arrives.
RETAINED_ARG_BYTES = 1024 * 1024  # A longer argument is not copied. As a key it is a gap.
RETAINED_FRAME_BYTES = 16 * 1024 * 1024  # The copied arguments of one request.
INLINE_BYTES_MAX = 64 * 1024  # The servers' own limit for an inline request or a header line.
WHOLE_REPLY_BYTES_MAX = 16 * 1024 * 1024  # A reply that the gateway splits or changes.
TRANSACTION_BYTES_MAX = 1024 * 1024  # A longer queued MULTI is not carried over a switch.
SUBSCRIPTIONS_TRACKED_MAX = 10_000  # Channels and patterns of one session.
SUBSCRIPTIONS_BYTES_MAX = 2 * 1024 * 1024  # Their names.
REPLAYED_BYTES_MAX = 64 * 1024  # A request that sets a session's state, kept for its next leg.
SUBSCRIPTION_REPLY_BYTES_MAX = 1024  # The end of a sharded subscription, as a node tells it.
PIPELINE_MAX = 2_000  # Unanswered requests of a session. It is then read again at half of them.
CURSOR_BITS = 45  # The server's part of a SCAN cursor. The bits above name the authority.
SCRIPTS_BYTES_MAX = 8 * 1024 * 1024  # Script texts kept, to be loaded on the other side.
SCRIPT_OVERHEAD_BYTES = 256  # What one of them takes in memory beside its text.
UNKNOWN_REQUESTS_MAX = 1_000  # Requests whose command the server has yet to describe, else a gap.
UNKNOWN_BYTES_MAX = 4 * 1024 * 1024  # The arguments of those requests.
COMMAND_NAME_BYTES_MAX = 64  # Of a command's spelling that a gateway remembers.
COMMAND_SPELLINGS_MAX = 10_000  # Spellings that it remembers.
PENDING_QUEUE_SLACK = 64  # Answered requests that a queue keeps before it moves the others up.
REPLY_DEPTH_MAX = 16  # Arrays in arrays of a reply that is read as a tree.

# Turns of clients in a gateway's event loop.
TURN_BYTES = 64 * 1024  # Bytes of one client, before the others have their turn.
TURN_BYTES_BUSY = 4 * 1024  # The same for a client that sends many requests in them.
TURN_REQUESTS = 100  # More requests than this in one turn are many.
STRANGER_FREE_BYTES = 1024  # A client may send these without a login before it takes turns.
STRANGERS_SHARE = 0.05  # All clients without a login share this much of a gateway's time.
STRANGERS_TURN_S = 0.0002  # of this share, between two rests
STRANGER_TURN_BYTES = 1024  # Bytes of one such client, before the others have their turn.
STRANGER_TURN_LINES = 24  # Line ends in them: HELLO with AUTH and SETNAME has 15, a request 1 to 3.
STRANGERS_WAITING_MAX = 500  # Clients without a login that take turns. More are closed.
ACCEPTS_A_PASS = 2  # New connections of a listener that begin in one pass of the loop.
ACCEPTS_AGAIN_S = 1  # Without room for one more connection, no sooner is one accepted.
LEAVERS_TURN_S = 0.0003  # All clients that have gone share this much of a pass of the loop.
TURNS_S = 0.001  # All clients that need several turns share this much of a pass of the loop.

# The journal, the spool, and the intent log.
JOURNAL_WINDOW_S = 0.01  # Keys written within it are one journal entry.
SAMPLE_WINDOW_S = 0.1  # The same while only sampled keys are journalled: no syncer waits for them.
JOURNAL_BATCH_KEYS = 4_000
JOURNAL_RETAIN_MS = 15 * 60 * 1000  # A backfill chunk may look back this far.
SPOOL_BYTES_MAX = 256 * 1024 * 1024  # Journal on disk while the control store is away.
INTENT_SEGMENT_BYTES = 1024 * 1024
INTENT_SEGMENTS_MAX = 64
INTENT_RESERVE_BYTES = 16 * 1024  # Of a segment, for gaps.

# Heartbeats, leases, and turns of phases.
HEARTBEAT_S = 0.5
HELD_HEARTBEAT_S = 0.05  # While writes are held.
HEARTBEAT_STALE_S = 5.0  # An older heartbeat is of a process that went away.
LEASE_MS = 5_000
TURN_MS = 15_000  # A phase's turn ends so long after its last renewal.
TURN_RENEW_S = 3.0

# The hold of a switch.
HOLD_SECONDS_MAX = 10.0
HOLD_ACK_S = 1.5  # Every gateway must confirm the hold in this time, else the switch is undone.
HELD_BYTES_MAX = 1024 * 1024  # Requests kept of one session while writes are held.
DRAIN_PATIENCE_S = 0.5  # A session with an endless or unreadable request is closed after this.
MOVE_SECONDS_MAX = 1.0  # A session whose requests are not answered by then is closed.

# Shadow traffic and canary reads.
SHADOW_QUEUE_MAX = 10_000  # Sampled pairs that wait to be published.
SHADOW_QUEUE_BYTES_MAX = 4 * 1024 * 1024  # Their bytes.
SHADOW_PAYLOAD_BYTES_MAX = 64 * 1024
SHADOW_BYTES_PER_S_MAX = 2 * 1024 * 1024  # Of one gateway process, into the control store.
SHADOW_ENTRY_PAIRS = 100  # Sampled pairs in one entry of the stream.
SHADOW_KEPT_MS = 15_000  # Sampled pairs expire from the control store after this.
COMPARE_SECONDS_MAX = 1.0  # A command that takes longer on the target is not tried again.
COMPARE_STEP_TOLD_S = 5.0  # A step of comparing that takes longer is told.
SHADOW_CLIENT_BYTES_MAX = 100  # A client's name in a sampled pair.
CANARY_IN_FLIGHT_MAX = 10_000  # Reads without the follower's answer. More count as failing.

# Compare.
COMPARE_LOOKS_S = (0.05, 0.5, 5.0)  # Waits before both sides are asked again for a difference.
COMPARE_EXPIRY_MS = 500  # Expiries in replies may differ by this.
COMPARE_LIVES_FRESH_S = 0.2  # Within which both sides are not asked again for failovers.
COMPARE_REDIRECTS_MAX = 5  # Redirects that a request tried on a cluster follows.
COMPARE_COPY_AGAIN = 500  # Keys of a batch that are copied again after a failover.
COMPARE_PENDING_MAX = 1_000  # Differences that wait for another look. More are inconclusive.
COMPARE_ASKS_PER_S_MAX = 100.0  # Requests that Compare asks the authority again.
COMPARE_STATES_PER_S_MAX = 100  # States of sampled keys that Compare reads from both sides.
COMPARE_WRITES_KEPT = 5  # The last writes of a sampled key that a divergence names.
COMPARE_QUIET_MS = 1_000  # A key that nobody wrote for so long is as its copy is.
COMPARE_HISTORIES_MAX = 2_000  # Keys whose writes wait for that.
COMPARE_HISTORY_WRITES_MAX = 32  # Writes of one key that are tried together.
COMPARE_STEPS_MAX = 200  # Keys whose writes are known and wait to be tried.
COMPARE_STATE_BYTES_MAX = 16 * 1024  # A key's payload that is kept for that; two a key.
SAMPLING_KEPT_MS = 3_600_000  # A comparer may take up a sampling that was left so long ago.
COMPARE_EFFECTS_MIN = 3  # Writes of a command that all led to another state: a finding.
COMPARE_TRIES_MAX = 2  # Tries of writes during which a connection is lost.
COMPARE_TOLD_MS = 5_000  # Every gateway tells of itself in this time, or nothing is confirmed.
COMPARE_REPLAYS_PER_S_MAX = 200.0  # Tries of writes on the state that they found.
SCRATCH_STRAYS_MAX = 1_000  # Keys that one call looks for in the database of scratch copies.
SCRIPT_DOUBTS_MAX = 3  # Times that a script seems to use undeclared keys before it is left out.
SCRIPTS_DOUBTED_MAX = 1_000  # Such scripts that Compare remembers.
COMPARE_LAGS_KEPT = 500  # The last times from a write to its copy.
COMPARE_KEYS_MAX = 100_000  # Sampled keys that Compare copies to the follower.
COMPARISONS_KEPT = 100  # Runs of Compare whose figures are kept.
DIVERGENCES_MAX = 10_000  # Rows of the ledger. More are counted.
DIVERGENCE_VALUE_CHARS = 200  # Of a value in the ledger.
DIVERGENCE_REQUESTS_MAX = 16  # Requests of a row that are known. Only a repair heals more.
DIVERGENCE_VALUES_KEPT_MS = 7 * 86_400_000

# Sending clients away at the end.
REDIRECT_PER_S_MAX = 1_000
REDIRECT_RETURNS_MIN = 3  # Connections that come back, before redirecting may stop by itself.
REDIRECT_RETURNS_SHARE_MAX = 0.5  # Of the ended connections. More come back: it stops.

# Connections.
CONNECT_TIMEOUT_S = 5.0
SENTINEL_ANSWER_S = 1.0  # For one Sentinel to answer, and for a server to tell its role.
TOPOLOGY_LOOK_S = 1.0  # Between two looks at the Sentinels; +switch-master wakes it sooner.
TOPOLOGY_FRESH_S = 5.0  # A watched master that was seen within it is connected to without asking.
TOPOLOGY_UNWATCHED_S = 0.25  # The same where no watch would hear of a failover.
CLUSTER_ANSWER_S = 2.0  # Within which a node says who has which slots.
CLUSTER_REDIRECT_S = 5.0  # For which a request is sent again after MOVED, ASK, TRYAGAIN.
CLUSTER_AGAIN_S = 0.05  # Before it is sent again to where it was refused.
CLUSTER_GUARD_EVERY = 16  # Slots from one guard key of a cluster to the next.
CLUSTER_BUS_PORTS = 10_000  # From a node's port to its bus port, where nothing else is set.
CLUSTER_SCRIPT_ARGS_MAX = 6_000  # Of one command in a script: Lua's stack takes 8,000.
TOPOLOGY_SIGHTS_KEPT = 120  # Looks at a master's offsets, to tell what a failover lost.
SENTINELS_MIN = 3  # Fewer Sentinels cannot outvote a stale one.
FAILOVERS_KEPT = 200  # Failovers of both sides that the control store remembers.
FEED_ANNOUNCED_PORT = 1  # The port that a change feed announces: no server listens there.
REPLY_TIMEOUT_S = 60.0  # Without a byte the peer is dead. A DUMP of the largest key takes seconds.
STATUS_CLIENTS_MAX = 16  # Clients of /metrics and /health at a time. Each has a thread.
STATUS_SECONDS_MAX = 5.0  # One of them is cut off after this.

# Copying keys.
READ_BATCH_BYTES = 1024 * 1024  # One reading call. It costs about 5 µs a key and 10 ms a MB.
LARGE_KEY_BYTES = 1024 * 1024  # In memory. The DUMP of a larger key blocks for over 10 ms.
LARGE_ELEMENTS = 10_000  # The same, where a server does not report the memory of a key.
CHUNK_BYTES = 512 * 1024  # Of a large key, in one command.
CHUNK_ELEMENTS = 1_000
MIGRATE_TIMEOUT_MS = 1_000  # The source is blocked while the target does not answer a MIGRATE.
HEAVY_BYTES = 64 * 1024  # The copies of a key with a larger payload are counted one by one.
HEAVY_KEYS_MAX = 1_000

# Verification and repair.
REPAIR_SECONDS_MAX = 120.0  # Live sync must reach the keys marked for repair in this time.
MARKED_AHEAD_ENTRIES_MAX = 1_000  # More unsynced entries pause a comparison that marks keys.
DIRTY_KEYS_MAX = 200_000  # Of one partition, since the last pass. More require a new pass.

# Evidence.
BUNDLES_KEPT = 8  # Bundles in the control store.
BUNDLE_BYTES_MAX = 32 * 1024 * 1024  # One compressed bundle.

# Watching traffic. Each has a counter that the report shows when it was hit.
CAPTURE_RECORD_BYTES_MAX = 16 * 1024 * 1024  # of one packet in a capture file; tcpdump cuts at 256K
CAPTURE_INTERFACES_MAX = 1_024  # of one section of a pcapng file
CAPTURE_READ_BYTES = 1024 * 1024  # of a capture file, read at a time
WATCHED_CONNECTIONS_MAX = 20_000  # beyond, the one that was silent for the longest is forgotten
# Of one connection, behind a segment that is missing although its receiver has it: another order
# in the capture brings it within so many segments, or the capture lost it
REORDERED_SEGMENTS_MAX = 64
HELD_SEGMENTS_MAX = 1_024  # likewise, behind one that its receiver also misses: it is sent again
HELD_SEGMENT_BYTES_MAX = 4 * 1024 * 1024  # of one connection
HELD_SEGMENTS_S = 3.0  # of the capture's time
HELD_ALL_BYTES_MAX = 256 * 1024 * 1024  # of all connections together
UNANSWERED_EVENTS_MAX = 10_000  # of one connection; beyond, the oldest has no answer
QUEUED_EVENTS_MAX = 10_000  # of one transaction
SHAPES_MAX = 4_000
SHAPES_PATTERN_BYTES_MAX = 128  # of a key that becomes a pattern; a longer key is cut
SHAPES_IDENTIFIER_BYTES_MIN = 16  # a word of letters and digits that is as long is an identifier
SHAPES_EXACT_ARITY_MAX = 4  # more arguments are counted in powers of two
SHAPES_NUMBER_DIGITS_MAX = 15  # of an expiry
SHAPES_HASH_DIGITS = 8  # of a name that a report hides
KEY_PATTERNS_MAX = 4_000
PATTERNS_REMEMBERED_MAX = 50_000  # keys whose pattern is not worked out again
PROFILE_ROWS_MAX = 20_000  # pairs of shape and key pattern
PROFILE_PATTERNS_MAX = 500  # key patterns whose keys are told apart, some 100 KB each
PROFILE_CLIENTS_MAX = 20_000
PROFILE_SECONDS_MAX = 8 * 24 * 3_600  # whose rates are kept
SIZING_KEYS_MAX = 2_000  # of the source, that are restored on the target and measured
SIZING_SECONDS_MAX = 20.0
CLUSTER_SLOTS = 16_384  # of every cluster
SIZING_SHARDS = (3, 6, 12)  # for which the fullest and the busiest shard is told
RATES_SHOWN_MAX = 300  # points of the rate over time
COPY_PROBES = 20  # reads of Exodus's own that a copy of the traffic must show
COPY_LATE_S = 10.0  # for the last of them to come, after the time is over
CAPTURE_FILES_MAX = 10_000  # of a folder
CAPTURE_POLL_S = 0.5  # between two looks at a folder that grows
WORKLOAD_OPERATIONS_MAX = 2_000  # of a workload model
WORKLOAD_BYTES_MAX = 64 * 1024 * 1024  # of its file
WORKLOAD_SECONDS_MIN = 0.001
WORKLOAD_REQUESTS_PER_S_MAX = 10_000_000
WORKLOAD_REQUEST_BYTES_MAX = 1 << 30  # a server takes 512 MB by default
WORKLOAD_VALUE_MAX = 1 << 60
WORKLOAD_EXPONENT_MAX = 100.0  # of a Zipf distribution: all requests are of one key
SAMPLE_BATCH_KEYS = 100  # of a keyspace sample, in one SCAN
SAMPLE_SECONDS_MAX = 120.0
SAMPLE_BUSY_SHARE_MAX = 0.1  # of the server's time that a keyspace sample may take
WATCHED_CLOSED_MAX = 1_000  # closed connections whose last packets are told from new ones
WATCHED_LIBRARIES_MAX = 500  # names of client libraries
WATCHED_NAME_BYTES_MAX = 64  # of a client's or a library's name
WATCHED_ERROR_BYTES_MAX = 32  # of an error's code
WATCHED_PORTS_MAX = 1_000  # other ports that are counted, for the hint about a wrong one
UNPARSED_REASONS_MAX = 64
SKEW_BATCH_KEYS = 512  # that are counted before they go into a sketch
PROFILE_ERRORS_MAX = 64  # error codes of one operation
SAMPLE_GROUPS_MAX = 500  # pairs of pattern and type of a keyspace sample
MONITOR_BASELINE_S = 0.3  # before MONITOR, in which the server's own cost is measured
MONITOR_MARKED_S = 15.0  # for the last mark to be seen: a busy server's lines come late
MONITOR_LOOK_S = 0.5  # between two looks at what it costs
MONITOR_CPU_SHARE_MAX = 0.3  # of a core of the server, that MONITOR may add
MONITOR_BUFFER_BYTES_MAX = 32 * 1024 * 1024  # of its lines that wait in the server's memory

# Playing a workload.
PLAYED_ERRORS_MAX = 64  # error codes of one shape
PLAYED_CLEANING_KEYS = 1_000  # removed in one command
PLAYED_ELEMENTS_MAX = 128  # of a prepared list, set, or sorted set
PLAYED_KEYS_MAX = 100_000  # of one key pattern
PLAYED_PREPARED_BYTES_MAX = 256 * 1024 * 1024  # of scratch keys that are made for reads to find
PLAYED_VALUE_BYTES_MAX = 16 * 1024 * 1024  # of one value
PLAYED_UNIT_REQUESTS_MAX = 1_000  # of one burst or transaction
TEMPLATES_FIELDS = 10  # names of fields in prepared hashes
TEMPLATES_MEMBERS = 1_000  # names of members, and scores, in prepared sets and sorted sets
TEMPLATES_ELEMENTS = 16  # that a ranged read asks for
PLAYED_CONNECTIONS_MAX = 500
PLAYED_WAITING_MAX = 100_000  # requests without an answer; beyond, due ones are not sent
RAMP_SPEEDS = (0.25, 0.5, 1.0)  # of Pre-test's trial on the target, one after another
RAMP_STEP_S = 1.0
RAMP_RATE_MAX = 5_000.0  # requests a second
RAMP_PREPARED_BYTES_MAX = 16 * 1024 * 1024
RAMP_CONNECTIONS_MAX = 20
PLAYED_WAIT_S = 1  # the timeout of blocking requests
PLAYED_LAST_ANSWERS_S = 10.0  # for answers, after the last request

# exodus/backfill/forecast.py
FORECAST_SAMPLE_KEYS = 2_000
FORECAST_SLICES = 32
FORECAST_BATCH_KEYS = 200

# exodus/backfill/migrate.py
MIGRATE_LANE_PROBE_MS = 60_000
# Of one SCAN, and so of one MIGRATE: every MIGRATE waits for the target once, so few keys cost more
# each
MIGRATE_LANE_BATCH_KEYS = 512

# exodus/backfill/progress.py
PROGRESS_EVERY_S = 2.0
PROGRESS_WINDOW_S = 20.0

# exodus/backfill/slices.py
BACKFILL_BATCH_KEYS = 256  # asked of one SCAN
# The same of a cluster's node, for another cluster
# (docs/decisions/0031-batches-between-clusters.md).
BACKFILL_NODE_BATCH_KEYS = 512
BACKFILL_CHUNK_KEYS = 4_096
BACKFILL_CHUNK_BYTES = 8 * 1024 * 1024
BACKFILL_QUEUED_BATCHES = 2
BACKFILL_RETRIES = 5
BACKFILL_BACKOFF_S = 0.2
BACKFILL_NO_ROOM_S = 1.0

# exodus/cancellation.py
# More than an ending takes: who is cancelled again while it cleans up has to be able to bear it
CANCEL_AGAIN_S = 0.5

# exodus/closing/archive.py
ARCHIVE_SCAN_KEYS = 1_000

# exodus/closing/collect.py
EVIDENCE_SCAN_KEYS = 500

# exodus/closing/ends.py
ENDS_FOLLOW_S = 15.0
ENDS_LISTED = 1_000  # of the keys that stay, by name

# exodus/closing/finalise_checks.py
FINALISE_LAG_MS_MAX = 10_000
FINALISE_CLIENTS_SHOWN = 20

# exodus/closing/redirect.py
REDIRECT_FOLLOW_S = 10.0

# exodus/closing/report.py
REPORT_ROWS_MAX = 200
REPORT_CELL_MAX = 400  # characters

# exodus/control/accepted_names.py
ACCEPTED_NAMES_SHOWN = 10

# exodus/control/approvers.py
ATTESTED_KEPT_S = 30 * 86_400  # a run may wait for a worker that long

# exodus/control/freshness.py
FRESHNESS_COMING_MAX = 5_000  # entries of one partition that are looked into

# exodus/control/letters.py
LETTERS_ACCEPTED_MAX = 1_000  # more than a person can look at by name

# exodus/control/steps.py
STEPS_ENDED_KEPT_MS = 30 * 24 * 3_600_000  # for how long the steps of a run that ended are kept

# exodus/copy/chunked.py
LARGE_KEY_COPY_ATTEMPTS = 2
LARGE_KEY_STAGE_MS = 3_600_000

# exodus/copy/guard.py
GUARD_TOUCHES_MAX = 3

# exodus/copy/impact.py
IMPACT_PROBE_EVERY_S = 0.05
IMPACT_PAUSE_S_MIN = 0.001  # Before a batch, once there is any.
IMPACT_PAUSE_S_MAX = 1.0
IMPACT_REST_EVERY_MS = 15_000  # All readers rest together once in this time.
IMPACT_REST_MS = 700  # A rest takes so long.
IMPACT_FRESH_MS = 2 * IMPACT_REST_EVERY_MS  # A share that was measured before counts no more.
IMPACT_LOOK_EVERY_S = 0.5
IMPACT_SETTLE_MS = 200  # of a rest, in which what was asked before it is answered
IMPACT_FIRST_S = 0.3  # before the first turn, where nobody else can tell the applications' share
IMPACT_TOLD_S = 0.01  # of pause a batch: less is not worth a line in a log
IMPACT_BASELINE_PROBES = 20
IMPACT_WINDOW_PROBES = 100

# exodus/copy/key.py
COPY_APART_MAX = 10_000
COPY_READ_ATTEMPTS = 100  # of which all but a few fail by chance

# exodus/copy/payload.py
PAYLOAD_CHUNK = 500  # elements in one command

# exodus/copy/read.py
# without scripts: keys whose value and expiry are read in one transaction
READ_TRANSACTION_KEYS = 64
READ_SCAN_KEYS_MIN = 16
READ_CALL_NAMES = 2_000
READ_SCRIPT_MS_PLENTY = 200  # a server's limit for scripts from which on nothing has to be smaller
READ_SCRIPT_BYTES_MIN = 16 * 1024
READ_SCRIPT_SHARE = 0.25  # of that limit, for one call

# exodus/copy/scan.py
SCAN_KEYS_PER_SLICE = 1_000  # a smaller database is one slice: slices overlap by a call each


# exodus/cutover/canary_share.py
CANARY_FOLLOW_S = 10.0

# exodus/cutover/context.py
SWITCH_OUTCOME_S = 15.0  # how long the store is asked whether a change of the route was made
SWITCH_RETRY_S = 0.1

# exodus/cutover/listeners_check.py
SWITCH_LISTENERS_S = 5.0  # for every gateway to use the published map of listeners

# exodus/cutover/fence.py
# After which a fence that shut Exodus out goes up again, where the switch back that let it in is
# gone
FENCE_LET_IN_S = 15
REPLICAS_HAVE_S = 0.5  # for a replica of the new side to have all that was copied
FENCE_REPLICA_S = 1.0  # for the guard to come to a replica
FENCE_POLL_S = 0.005
FENCE_NODE_S = 2.0  # for a node of a cluster to answer one request of a fence

# exodus/cutover/forced_rollback.py
FORCED_ROLLBACK_TRIES = 3
FORCED_ROLLBACK_BETWEEN_S = 1.0

# exodus/cutover/held_comparison.py
HELD_COMPARISON_NAMED = 5

# exodus/cutover/levers.py
LEVERS_KEEP_S = 2.0
LEVERS_ABORT_S = 3600  # after which a word that nobody heard is forgotten

# exodus/cutover/preconditions.py
PRECONDITIONS_NAMED = 5
FRESH_WAIT_S = 30.0  # for recent writes to be verified, before a person is asked or writes are held
FRESH_LOOK_S = 0.5

# exodus/cutover/rehearsal_report.py
REHEARSAL_NAMED = 5  # what changed since, listed by name

# exodus/cutover/script_loading.py
SCRIPT_LOADING_BATCH = 100

# exodus/cutover/steps_after_switch.py
# gateways work off what they held; the fence stands, so strays can wait
SWITCH_AFTER_RELEASE_S = 0.1

# exodus/cutover/steps_before_hold.py
SWITCH_PRE_DRAIN_S = 60.0
SWITCH_PRE_DRAIN_MS = 500  # what is left then is synced under the hold, in about this time
# That gateways get to connect their sessions to the new side beforehand; one that cannot does it
# under the hold
SWITCH_SOON_S = 1.0
SWITCH_LOOK_S = 0.2  # while a person or the window lets it wait

# exodus/cutover/steps_under_hold.py
SWITCH_HELD_SPOT_CHECK_KEYS = 2_000
SWITCH_HELD_POLL_S = 0.002  # while writes are held, where no word comes

# exodus/cutover/switch.py
# For a step before writes are held, and for undoing one: a server that does not answer costs no
# more
SWITCH_STEP_S = 15.0

# exodus/feeds/feed.py
FEED_TAIL_ENTRIES = 256
FEED_PROBE_EVERY_S = 0.5
FEED_POLL_S = 0.02

# exodus/feeds/pushes.py
PUSHES_READ_BYTES = 256 * 1024
PUSHES_LOOK_S = 1.0
PUSHES_SILENCE_S = 5.0  # it is asked each second whether it is there
PUSHES_BEACON_MS = 10_000
PUSHES_BEACONS_KEPT = 16
PUSHES_AGAIN_S = 0.5
PUSHES_SCAN_KEYS = 1_000

# exodus/feeds/reader.py
FEED_READER_PROBE_MS = 60_000
FEED_PROBE_NAMES_MAX = 100_000  # tried until one is in a slot of the node
FEED_READER_BACKOFF_S = 0.5

# exodus/feeds/replication.py
STREAM_READ_BYTES = 256 * 1024
STREAM_SILENCE_S = 30.0  # the authority pings its replicas every 10 s
STREAM_ACK_S = 1.0
STREAM_FIRST_ACK_S = 0.1  # the stream begins only after an ACK that finds us online
STREAM_HEARD_S = 20.0  # a stream begins after repl-diskless-sync-delay, 5 s by default

# exodus/gateway/sentinel_face.py
SENTINEL_FACE_CLIENTS_MAX = 2_000  # connections to one process
SENTINEL_FACE_PER_S_MAX = 1_000  # requests that one process answers; what is beyond waits
SENTINEL_FACE_REQUEST_BYTES_MAX = 4_096  # of a request
SENTINEL_FACE_UNREAD_BYTES_MAX = 256 * 1024  # of replies that a client does not read
SENTINEL_FACE_ARGS_MAX = 64  # of a request; also subscriptions of a client
SENTINEL_FACE_LOOK_S = 0.5  # between two looks whether another master is to be published

# exodus/gateway/authority_probe.py
AUTHORITY_PROBE_S = 2.0  # between two questions to the authority, and how long one may take
AUTHORITY_PROBE_PINGS = 50  # of each side, where Test asks how far they are

# exodus/background.py
BACKGROUND_RESTART_S = 1.0  # between a task's failure and its next start
BACKGROUND_TOLD_S = 10.0  # a failure stands in the heartbeats

# exodus/gateway/canary_control.py
CANARY_LINGERS_S = 1.0  # for reads that were asked before the canary ended

# exodus/gateway/canary_reads.py
CANARY_WINDOW_READS = 100  # that the limit looks back at

# exodus/gateway/durability.py
DURABILITY_INTENTS_KEPT_S = 2.0  # longer than `appendfsync everysec` takes
DURABILITY_FSYNC_MS = 2_000  # one WAITAOF may take so long

# exodus/gateway/handover.py
HANDOVER_LOOK_S = 0.001  # between two looks at whether a session is idle
# Between two attempts to end a blocking command, which the authority may not have received yet.
HANDOVER_UNBLOCK_AGAIN_S = 0.01

# exodus/gateway/heartbeats.py
HEARTBEATS_TELEMETRY_KEPT_S = 3600

# exodus/gateway/holds.py
HOLDS_FLUSH_LOOK_S = 0.01  # between two looks at what is unflushed, where no flush ends
HOLDS_SPARE_LEGS_KEPT_S = 5.0  # made before a hold that does not come

# exodus/gateway/hub.py
HUB_DRAIN_LOOK_S = 0.01  # between two looks at the sessions that are left
HUB_FLUSH_S = 2.0  # a stopping gateway gives the control store so long

# exodus/gateway/journaler.py
JOURNALER_RETRY_S = 0.25  # while the store is away
JOURNALER_ROTATE_S = 2.0  # between two rotations: each asks the store to fsync
JOURNALER_ROTATE_BYTES = 64 * 1024  # a smaller segment is not rotated

# exodus/gateway/listeners.py
# Connections that wait to be accepted. The kernel caps the number at net.core.somaxconn.
LISTENERS_BACKLOG_MAX = 4096
LISTENERS_FDS_MAX = 2_048  # sockets that a predecessor can hand over
LISTENERS_FDS_AT_ONCE = 200  # of them in one message: the kernel takes 253
LISTENERS_MAX = 64  # nodes of a cluster that one gateway stands for
PORT_MAX = 65_535
LISTENERS_TAKEOVER_S = 30  # a successor may take so long
LISTENERS_ASK_S = 5  # to ask a predecessor

# exodus/gateway/lost_legs.py
LOST_LEGS_RETRY_S = 0.5  # between two attempts to end a lost connection on the server

# exodus/gateway/process.py
PROCESS_OWN_FILES = 64  # open files of the process itself

# exodus/gateway/reporting.py
REPORTING_NAMES_MAX = 100  # client names told one by one
REPORTING_NAME_CHARS_MAX = 64
CLUSTER_CLIENTS_MAX = 10_000  # that asked for the nodes of a cluster
REPORTING_LOG_EVERY_S = 0.2  # looks for changes to log

# exodus/gateway/route_following.py
# after an epoch was acted on: no file is written while applications wait
ROUTE_FOLLOWING_REMEMBER_S = 0.5

# exodus/gateway/scripts.py
SCRIPTS_ASKED_DIGESTS_MAX = 10_000

# exodus/gateway/settlement.py
# the release of held writes waits so long for the fence to be lifted
SETTLEMENT_RELEASE_WAIT_S = 1.0
SETTLEMENT_AGAIN_S = 0.5  # between two attempts
SETTLEMENT_TEND_EVERY_S = 10.0  # between two looks at the fence
# between a flow's time limit on a hold and the gateway's; the flow should end it
SETTLEMENT_GRACE_S = 1.0

# exodus/gateway/shadow_stream.py
SHADOW_STREAM_PUBLISH_EVERY_S = 0.1
SHADOW_STREAM_TRIM_EVERY_S = 0.2
SHADOW_STREAM_BATCH_PAIRS = 1_000

# exodus/gateway/spare_legs.py
SPARE_LEGS_LEGS_MAX = 1_000

# exodus/gateway/supervisor.py
SUPERVISOR_SLOTS_MAX = 256  # numbers of workers
SUPERVISOR_YOUNG_S = 5.0  # a worker that lived less than this is restarted only after `_RESTART_S`
SUPERVISOR_RESTART_S = 1.0
SUPERVISOR_POLL_S = 0.1
SUPERVISOR_KILL_AFTER_S = 5.0  # after the time that workers have to drain

# exodus/gc_tuning.py
GC_TUNING_BULK_OBJECTS = 100_000  # more than the batches that are under way hold
GC_TUNING_THRESHOLDS = (2_000, 200, 50)  # of a serving process, as gc.set_threshold takes them

# exodus/live/costly_keys.py
COSTLY_KEYS_COPIES_MIN = 10
COSTLY_KEYS_TOLD_BYTES = 64 * 1024 * 1024
COSTLY_KEYS_SHOWN = 5

# exodus/live/lag_probe.py
LAG_PROBE_EVERY_S = 1.0
LAG_PROBE_POLL_S = 0.002
LAG_PROBE_GIVEN_UP_S = 5.0
LAG_PROBE_KEY_MS = 10_000
LAG_PROBE_KEPT = 120  # measurements: two minutes

# exodus/live/lanes.py
LANES_WAIT_MS = 500
# Lanes look no more often: what gathers meanwhile is synced in one batch, and at most this much
# later
LANES_CADENCE_S = 0.02
LANES_BATCH_KEYS = 256
LANES_TRIM_EVERY_S = 10.0
LANES_IDLE_S = 0.2
LANES_STANDING_S = 5.0  # A step that takes longer is told.
LANES_LAG_MS_MAX = 3_600_000

# exodus/live/recheck.py
RECHECK_BATCH_KEYS = 2_000
RECHECK_EVERY_S = 1.0
RECHECK_PAUSE_S = 0.05
RECHECK_BACK_ENTRIES_MAX = 1_000_000

# exodus/live/rescan.py
RESCAN_BATCH_KEYS = 500

# exodus/live/server_runs.py
SERVER_RUNS_POLL_S = 0.1

# exodus/live/syncer.py
SYNCER_BACKOFF_S = 0.25
# After the end of an epoch of ours: applications' writes are held at that moment, and who moves
# them needs the processor
SYNCER_TIDY_S = 0.1
SYNCER_BEHIND_MS = 2_000

# exodus/native/expiries.py
EXPIRIES_RESTATEMENTS = 20

# exodus/native/replica.py
REPLICA_TRIES = 3
REPLICA_POLL_S = 0.002
REPLICA_BEHIND_S = 1.0  # a batch waits no longer for the replica: the leases have to be renewed
REPLICA_LOOK_S = 1.0

# exodus/net/leg.py
LEG_READ_BYTES = 256 * 1024

# exodus/topology/node_checks.py
NODE_CHECKS_NAMED = 5  # nodes or users that one row names

# exodus/topology/pair_checks.py
PAIR_CHECKS_OWN_KEYS_MAX = 10_000  # on a side; a cluster has 1,024 guard keys of its own

# exodus/verify/comparison.py
COMPARE_APART_KEYS = 32  # that need reads of their own, of up to LARGE_KEY_BYTES each, at a time
# Redis 6.2 sends its replicas the time left of SET … PX and EXPIRE, which they count from when it
# comes
COMPARE_RELATIVE_SLACK_MS = 1_000

# exodus/verify/passes.py
VERIFY_BATCH_KEYS = 500
VERIFY_LISTED_MAX = 1_000
VERIFY_SLICES_AT_A_TIME = 3
VERIFY_KEEP_EVERY_S = 0.5

# exodus/verify/reconcile.py
RECONCILE_NAMED = 5
RECONCILE_EXTRA_KEPT = 100_000  # Extra keys that are looked at again. More stay extra keys.
RECONCILE_POLL_S = 0.05

# exodus/acceptance/
ACCEPTANCE_NAMED = 10  # listed by name in a row
ACCEPTANCE_DELIVERY_S = 5.0  # one attempt may take so long
ACCEPTANCE_LATENCY_S = 15.0  # gateways tell within this
ACCEPTANCE_LOOK_S = 0.1
ACCEPTANCE_REPLICA_LAG_BYTES_MAX = 1024 * 1024
CERTIFICATE_DAYS_MIN = 14
MEMORY_MARGIN = 1.25  # of the target's memory over the source's: versions encode differently

# exodus/acceptance/business.py
BUSINESS_ROWS_MAX = 200  # of a check, kept in the evidence
BUSINESS_SHOWN = 3  # in its row
BUSINESS_TIMEOUT_S = 10.0  # one request of a check
BUSINESS_REDIRECTS_MAX = (
    5  # Times that a client of a business check sends a request of a cluster again.
)
BUSINESS_ANSWER_BYTES_MAX = 4 * 1024 * 1024  # of the webhook

# exodus/acceptance/disposable.py, failures.py
DISPOSABLE_START_S = 10.0
DISPOSABLE_LOOK_S = 0.02
FAILURES_KEYS = 400
FAILURES_VALUE_BYTES = 10_000
FAILURES_ROOM_BYTES = 1_000_000  # of the full target: for a part of the keys
FAILURES_SLOW_MS = 300

# exodus/acceptance/load.py
LOAD_CONNECTIONS_MAX = 64
LOAD_PREPARED_BYTES_MAX = 32 * 1024 * 1024
LOAD_LATE_US_MAX = 5_000  # 1 % of the requests left later than that: the player is no measure
LOAD_PLAYS_MAX = 3  # of one speed, as long as it is too slow, or its player is late
LOAD_KNEE_S_MAX = 300.0  # after that the knee is not looked for at another speed
LOAD_SLACK_US = 5_000  # what the player itself may add to a latency
LOAD_CALLS_MIN = 100  # of a command: fewer have no 99th percentile
LOAD_ANSWERED_SHARE_MIN = 0.99
LOAD_SPEEDS_REQUIRED = (1.0, 2.0)  # times the observed rate: what must hold

# exodus/acceptance/trial_copy.py
TRIAL_BATCH_KEYS = 200
TRIAL_BUSINESS_KEYS_MAX = 20_000  # of one pattern of business checks
TRIAL_LOOKS = 4  # at a key that changes while it is copied
TRIAL_SETTLE_S = 0.2
TRIAL_WEIGHED_KEYS_MIN = 100  # fewer say nothing about all keys' memory

# exodus/rehearsal/
REHEARSAL_SESSIONS = 4  # that count; one more removes keys, two more push and pop
REHEARSAL_KEYS = 20  # of each counting session
REHEARSAL_PAUSE_S = 0.002  # between two requests of a session
REHEARSAL_PUSH_S = 0.02
REHEARSAL_SETTLE_S = 0.2  # of writes before each switch, and after the last
REHEARSAL_WITHIN_S = 10.0  # gateways follow an epoch within this
REHEARSAL_AGAIN_S = 0.05  # between two looks at whether sessions go on
REHEARSAL_GATEWAY_S = 20.0  # a gateway of the rehearsal's own starts within this
REHEARSAL_PRE_DRAIN_S = 10.0
REHEARSAL_ERRORS_KEPT = 20
REHEARSAL_REDIRECTS_MAX = 8  # of one request; cluster clients follow five or more

# tasks/backfill.py
TASKS_BACKFILL_BUDGET_S = 20.0

# tasks/beside.py
TASKS_BESIDE_NAMED = 5

# tasks/budget.py
TASKS_BUDGET_EVERY_S = 20.0

# tasks/canary.py
TASKS_CANARY_LOOK_S = 0.2

# tasks/compatibility.py
# of one key: a lane copies the keys of 20 ms in one batch
TASKS_COMPATIBILITY_NAMED = 10
TASKS_COMPATIBILITY_COPIES_PER_S_MAX = 50

# tasks/context.py
TASKS_STORE_AWAY_S = 30.0
TASKS_FAILOVER_S = 30.0  # for a side behind Sentinel to have a master again
TASKS_AGAIN_S = 0.5

TASKS_CUTOVER_LISTED = 1_000  # keys that stay, listed by name

# tasks/decision.py
TASKS_DECISION_TEXT_MAX = 2_000

# tasks/evidence.py
TASKS_EVIDENCE_NAMED = 5  # rows of a frame that one expectation names
TASKS_EVIDENCE_REASONS_MAX = 5
TASKS_EVIDENCE_ROWS_MAX = 500

# tasks/functions.py
TASKS_FUNCTIONS_NAMED = 10

# tasks/live_sync.py
TASKS_LIVE_SYNC_FOLLOW_S = 15.0
TASKS_LIVE_SYNC_REPAIR_ROUNDS = 5
# a replication stream begins after repl-diskless-sync-delay, by default 5 s
TASKS_LIVE_SYNC_PROOF_S = 20.0

# tasks/native.py
TASKS_NATIVE_WATCH_S = 20.0  # of one task, like one round of a slice
TASKS_NATIVE_STUCK_S = 60.0  # without another byte or key
TASKS_NATIVE_POLL_S = 0.2

# tasks/probe.py
TASKS_PROBE_PINGS = 20
TASKS_PROBE_ADDED_MS = 1.0  # to the median of PING, before the row says that it is slower
TASKS_PROBE_NAMED = 10  # settings that changed, listed by name

# tasks/profile.py
TASKS_PROFILE_HOT_KEYS = 20

# tasks/progress.py
TASKS_PROGRESS_LOOK_S = 0.3
TASKS_PROGRESS_TELL_S = 5.0

# tasks/runs.py
TASKS_RUNS_WHY_MAX = 500
TASKS_RUNS_RUNS_READ = 50  # rollbacks, newest first; other migrations may have some

# tasks/turn.py
TASKS_TURN_LOOK_S = 0.5

# tasks/watching.py, tasks/proofs.py
TASKS_WATCHING_PATTERNS = 200  # key patterns that are shown
TASKS_WATCHING_SAMPLED_KEYS = 2_000  # of the source, for the workload model
TASKS_WATCHING_SAMPLE_S = 10.0
TASKS_PROOFS_NAMED = 5  # commands or shapes in one line
TASKS_PROOFS_SEEN_MIN = 0.99  # of the server's own count, that the copy must show
TASKS_PROOFS_PARSED_MIN = 0.99  # of the watched bytes
TASKS_PROOFS_PLAYED_MIN = 0.8  # of the observed requests

# tasks/weighing.py
TASKS_WEIGHING_LEFT_OUT_SHARE = 0.05  # of the gateways' requests, that the model may lack
TASKS_WEIGHING_NAMED = 5  # commands in one line

# exodus/shadow/shape_proofs.py
SHAPE_PROOFS_MAX = 500  # kinds of requests that are tried

# tasks/sizing.py, tasks/predictions.py
TASKS_SIZING_HEADROOM = 1.25  # for writes meanwhile
TASKS_SIZING_COPIED = 0.25  # of the data, by a background save of a source that made none yet
TASKS_CAPACITY_SECONDS = 1.0  # for which Analyze plays each speed at most; Test plays longer
TASKS_SIZING_LOOKS_MAX = 1_000  # of the history, from scheduled runs of Analyze
TASKS_PREDICTED_MEMORY_OFF = 0.25  # of the measured size
TASKS_PREDICTED_WATCH_S = 3.0  # of the gateways after a cutover
TASKS_PREDICTED_P99_OFF = 0.5  # of the source's

# tasks/plots.py
TASKS_PLOTS_BARS = 20

# exodus/cli/output.py
CLI_TABLE_COLUMNS_MAX = 1_000  # characters of a table's line, where the output is no terminal

# exodus/cli/report.py
CLI_REPORT_ROWS_MAX = 40  # of one table in the terminal

# exodus/telemetry/windows.py, exodus/control/windows.py
TELEMETRY_WINDOW_S = 10.0  # of the gateways' counters
TELEMETRY_WINDOW_BYTES_MAX = 32 * 1024  # packed; a larger one lacks what prefixes took
TELEMETRY_WINDOWS_MAX = 8_640  # of all gateways: a day of one, at most 270 MB
TELEMETRY_WINDOWS_KEPT_S = 7 * 24 * 3_600
TASKS_PROFILE_WINDOWS_S = 24 * 3_600.0  # that Analyze shows

# exodus/backfill/progress.py
PROGRESS_SHARE_MIN = 0.01  # done, before an end is told

# exodus/cli/decisions.py
DECISIONS_SUSPENDS_WITHIN_S = 60.0

# exodus/cli/prefect_api.py
PREFECT_API_AGAIN_S = 0.5
ASKED_ONCE_S = 2.0
PREFECT_API_RUNS_MAX = 200  # of all migrations

# exodus/cli/traffic.py
TRAFFIC_STATUS_S = 1.0

# exodus/cli/waiting.py
WAITING_EVERY_S = 1.0

# exodus/gateway/cursors.py
CURSORS_DIGITS_MAX = 20  # of a cursor

# exodus/observe/composer.py
COMPOSER_DEFAULT_EXPIRY_MS = 60_000
COMPOSER_KEY_BYTES = 60  # of a key and its bookkeeping, where prepared bytes are estimated

# exodus/observe/monitor_cost.py
MONITOR_COST_REQUESTS_MIN = 200  # of the time before, for a figure a request

# exodus/observe/player.py
PLAYER_TICK_S = 0.001
PLAYER_LATE_US_MAX = 10_000

# exodus/observe/profile.py
PROFILE_SHAPES_SHOWN = 200
PROFILE_PATTERNS_SHOWN = 50
PROFILE_CLIENTS_SHOWN = 50

# exodus/observe/skew.py
SKEW_LG_KEYS = 12
SKEW_EXPONENT_MAX = 3.0
SKEW_RANKS_SUMMED_MAX = 2_000  # terms of a Zipf sum, added one by one; then an integral
SKEW_LG_BUCKETS = 12  # 2**12 buckets count distinct keys: an error of 1.6 %
SKEW_EXPONENT_STEPS = 40  # of a bisection
SKEW_TOP_KEYS = 20  # the hottest keys, to which the exponent is fitted

# exodus/plan/scope.py
SCOPE_DATABASE_MAX = 1_000_000

# exodus/shadow/findings.py
FINDINGS_MAX = 1_000  # more than a person can look at by name

# exodus/shadow/sampling.py
SAMPLING_FOLLOW_S = 10.0

# exodus/shadow/sweep.py
SWEEP_EVERY_S = 0.5

# exodus/shadow/verdicts.py
VERDICTS_KILL_S = 0.2  # between two attempts to end a script


# exodus/stack/processes.py
LOG_LINES_SHOWN = 20
PROCESSES_TERM_S = 10.0

# exodus/stack/clusters.py, servers.py, up.py
STACK_CLUSTER_MASTERS = 3
STACK_CLUSTER_WITHIN_S = 30.0  # for the nodes of a new cluster to agree
STACK_LISTENERS = 8  # of the gateway in front of a cluster
# A failover on one machine then takes about two seconds.
STACK_SENTINEL_DOWN_AFTER_MS = 500
STACK_SENTINEL_FAILOVER_TIMEOUT_MS = 2_000

# exodus/telemetry/sketches.py
KEY_BYTES_MAX = 1024  # a longer key is counted by its beginning
# 2**10 counters, three quarters of them in use: an error of at most 0.35 % of all requests
SKETCHES_HOT_LG_KEYS = 10
# 2**12 buckets: a relative error of 1.6 % (one standard deviation)
SKETCHES_DISTINCT_LG_BUCKETS = 12

# exodus/telemetry/counters.py
COUNTERS_COMMANDS_MAX = 1_000  # a client may send any bytes as a name
COUNTERS_ERRORS_MAX = 64  # codes of one command; scripts may make up their own
COUNTERS_CODE_BYTES_MAX = 32
COUNTERS_PREFIXES_MAX = 512
COUNTERS_PREFIX_BYTES_MAX = 64
COUNTERS_HOT_KEYS_SHOWN = 20
COUNTERS_WAITING_KEYS_MAX = 64  # that wait for a sketch
HOT_SAMPLE = 8  # the sketch of hot keys sees one request in 8; a power of two
# the sketch of distinct keys sees the keys whose hash is divisible by 16; a power of two
DISTINCT_SAMPLE = 16

# tasks/advice.py
TASKS_ADVICE_LONG_S = 3_600.0

# tasks/clients.py
TASKS_CLIENTS_BETWEEN_S = 1.0  # a connection that opens or closes between two reads is no finding

# tasks/comparison.py
TASKS_COMPARISON_FOLLOW_S = 15.0
TASKS_COMPARISON_SETTLE_S = 1.0
TASKS_COMPARISON_POLL_S = 0.2
TASKS_COMPARISON_LOOK_S = 0.5
TASKS_COMPARISON_LOOKS_MAX = 500
TASKS_COMPARISON_SAMPLE_S_MAX = 3_600.0  # of a schedule's sample: no phase begins meanwhile
TASKS_COMPARISON_EXPIRY_STEP_MS = 1_000  # a smaller move of an expiry is the time between two reads

# tasks/decision.py
TASKS_DECISION_FIELDS_MAX = 4  # with more, Prefect's dialog has no room for the summary

# exodus/observe/traffic_copy.py
COPY_PROBED_SHARE = 0.7  # of the time to watch: what is sent later may come too late

# exodus/observe/monitor.py
MONITOR_READ_BYTES = 256 * 1024

# exodus/observe/packets.py
PACKETS_SWEEP_EVERY = 4_096
# behind the first bytes of a connection, at which its SYN still belongs to it
PACKETS_LATE_SYN_BYTES = 1024 * 1024

# exodus/observe/segments.py
SEGMENTS_LAYERS_MAX = 4  # of VXLAN in VXLAN; no cloud has two
SEGMENTS_VLANS_MAX = 4  # tags of one frame
SEGMENTS_EXTENSIONS_MAX = 8  # IPv6 headers before the TCP header

# exodus/observe/capture.py
CAPTURE_HEAD_BYTES = 64 * 1024  # in which a file's first packet is

# exodus/observe/keyspace.py
KEYSPACE_SAMPLED_ELEMENTS = 5  # of a key, by MEMORY USAGE

# exodus/net/inquiry.py
INQUIRY_READ_BYTES = 64 * 1024

# exodus/rehearsal/clients.py
REHEARSAL_POP_S = 0.3

# exodus/acceptance/delivery.py
ACCEPTANCE_BLOCK_S = 0.2

# exodus/acceptance/trial_copy.py
TRIAL_SLICES = 8

# exodus/shadow/comparer.py
COMPARE_ENTRIES = 4  # of the shadow stream that are taken at a time
COMPARE_WAIT_MS = 200
COMPARE_WAIT_PENDING_MS = 20  # while replies are to be asked for again

# exodus/cli/prefect_api.py
CLI_PREFECT_ATTEMPTS = 20

# exodus/cli/phases.py
CLI_ENDS_WITHIN_S = 60.0
CLI_PROGRESS_MS = 10_000  # older progress belongs to work that has ended
CLI_FAILOVERS_SHOWN = 3

# exodus/cli/doctor.py
CLI_DOCTOR_ANSWERS_S = 5.0

# exodus/cli/traffic.py
CLI_TRAFFIC_SHOWN = 25

# exodus/cli/demo.py
DEMO_PHASE_S = 300.0  # longest time without progress
DEMO_APP_S_MAX = 3_600
DEMO_APP_CONNECTIONS = 8  # six writers, a producer, and a consumer of jobs
DEMO_OBSERVE_S = 3.0
DEMO_SHORT_TTL_S = 4.5

# exodus/cli/demo_failover.py
DEMO_FAILOVER_PAUSE_MS = 20_000  # the master is dead long before
DEMO_FAILOVER_WITHIN_S = 20.0

# tasks/profile.py
TASKS_PROFILE_SLOWER = 2  # times its last p99: then a command is listed as changed

# blocks/register.py
BLOCKS_REGISTER_TRIES = 10
BLOCKS_REGISTER_AGAIN_S = 0.5
