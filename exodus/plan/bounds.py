"""Every bound of the data plane. Each queue, buffer, wait, and retry names one of these, with its
unit.
"""

# Bounds. Each queue, buffer, wait and retry of the data plane names one of these.
STREAM_FRAME_BYTES = 64 * 1024  # a request longer than this is forwarded while it still arrives
RETAINED_ARG_BYTES = (
    1024 * 1024
)  # an argument longer than this is skipped, never copied; as a key it is a gap
SCRIPTS_BYTES_MAX = (
    8 * 1024 * 1024
)  # texts of scripts that a gateway keeps, to load them on the other side at a switch
# Answered requests that wait until the server tells what their command is; more are a gap
UNKNOWN_REQUESTS_MAX = 1_000
UNKNOWN_BYTES_MAX = 4 * 1024 * 1024  # all their arguments together
CURSOR_BITS = (
    45  # of a SCAN cursor that are the server's own; the bits above say from which authority it is
)
RETAINED_FRAME_BYTES = 16 * 1024 * 1024  # all retained arguments of one request together
INLINE_BYTES_MAX = 64 * 1024  # the servers' own limit for an inline request or a header line
HELD_BYTES_MAX = (
    1024 * 1024
)  # what a session keeps of a client while its writes are held, before it stops reading
TRANSACTION_BYTES_MAX = (
    1024 * 1024
)  # a queued MULTI larger than this cannot be carried over a switch
WHOLE_REPLY_BYTES_MAX = (
    16 * 1024 * 1024
)  # of a reply that is taken apart, or changed, before it is passed on
SUBSCRIPTIONS_TRACKED_MAX = 10_000
JOURNAL_WINDOW_S = 0.01  # keys written within it are one journal entry
SAMPLE_WINDOW_S = 0.04  # likewise, while only sampled keys are journalled: nobody waits for them
JOURNAL_BATCH_KEYS = 4_000
JOURNAL_RETAIN_MS = 15 * 60 * 1000  # a backfill chunk may look back this far
SPOOL_BYTES_MAX = 256 * 1024 * 1024
INTENT_SEGMENT_BYTES = 1024 * 1024
INTENT_SEGMENTS_MAX = 64
HEARTBEAT_S = 0.5
HELD_HEARTBEAT_S = (
    0.05  # while writes are held; a switch that waits for a word asks for it on the route's channel
)
HEARTBEAT_STALE_S = 5.0
LEASE_MS = 5_000
TURN_MS = 15_000  # for which a process has the turn of a phase after it renewed it last
TURN_RENEW_S = 3.0
HEAVY_BYTES = 64 * 1024  # of a key's payload, from which on its copies are counted one by one
HEAVY_KEYS_MAX = 1_000
BUNDLES_KEPT = 8  # evidence bundles in the control store
BUNDLE_BYTES_MAX = 32 * 1024 * 1024  # of one, compressed
HOLD_SECONDS_MAX = 10.0
HOLD_ACK_S = (
    1.5  # in which every gateway must say that it holds; one that does not costs no more than this
)
# Under a hold, for a request that does not end or that cannot be read; then its session is closed
DRAIN_PATIENCE_S = 0.5
TURN_BYTES = 64 * 1024  # of one client, read before others have their turn
TURN_BYTES_BUSY = 4 * 1024  # likewise, where these bytes are many requests
TURN_REQUESTS = 100  # so many in one turn are many
TURNS_S = 0.001  # that all clients which need several turns get in one pass of the event loop
# Unanswered requests of one session, before it is read no further until half of them are answered
PIPELINE_MAX = 2_000
MOVE_SECONDS_MAX = (
    1.0  # in which a session's requests under way must be answered, or it is closed at the switch
)
SHADOW_QUEUE_MAX = 10_000
CANARY_IN_FLIGHT_MAX = (
    10_000  # reads that the follower was asked and has not answered; beyond, it counts as failing
)
SHADOW_PAYLOAD_BYTES_MAX = 64 * 1024
SHADOW_BYTES_PER_S_MAX = (
    2 * 1024 * 1024
)  # of sampled requests and replies that one gateway process puts into the control store
SHADOW_KEPT_MS = 15_000  # for how long they stay there
# That Compare waits for one request that it tries; a command that takes longer is tried no more
COMPARE_SECONDS_MAX = 1.0
# Seconds before Compare asks both sides again for a reply that differs; one a look
COMPARE_LOOKS_S = (0.05, 0.5, 5.0)
COMPARE_EXPIRY_MS = 500  # by which expiries may differ in a reply
COMPARE_PENDING_MAX = 1_000  # replies that differ and are asked for again; more are inconclusive
COMPARE_ASKS_PER_S_MAX = 100.0  # requests that Compare asks the authority again
COMPARE_WRITES_KEPT = 5  # the last writes of a sampled key that a divergence names
DIVERGENCES_MAX = 10_000  # rows of the ledger; more are counted
DIVERGENCE_VALUE_CHARS = 200  # of a value in it
DIVERGENCE_VALUES_KEPT_MS = 7 * 86_400_000
COMPARE_STATES_PER_S_MAX = 100  # states of sampled keys that Compare reads from both sides
COMPARE_LAGS_KEPT = 500  # the last times from a write to its copy
COMPARISONS_KEPT = 100  # runs of Compare whose figures are kept
COMPARE_KEYS_MAX = 100_000  # sampled keys that Compare copies to the follower
REDIRECT_PER_S_MAX = 1_000
REDIRECT_RETURNS_MIN = (
    3  # connections that come while clients are sent away, before it may stop for them
)
REDIRECT_RETURNS_SHARE_MAX = 0.5  # of those that were ended
STATUS_CLIENTS_MAX = 16  # of /metrics and /health at a time, each a thread
STATUS_SECONDS_MAX = 5.0  # that one of them gets
CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 60.0  # without a byte: a dead peer; one DUMP of the largest key takes seconds
DEAD_LETTER_ATTEMPTS = 5
READ_BATCH_BYTES = (
    1024 * 1024
)  # what one reading call collects; a call costs a server some 5 µs a key and 10 ms a MB
LARGE_KEY_BYTES = (
    1024 * 1024
    # Of memory; a larger key is copied in pieces: its DUMP would block a server for over 10 ms, and
    # its RESTORE too
)
LARGE_ELEMENTS = 10_000  # likewise, where a server does not tell the memory of a key
CHUNK_BYTES = 512 * 1024  # of a large key, in one command
CHUNK_ELEMENTS = 1_000
MIGRATE_TIMEOUT_MS = (
    1_000  # the source does nothing else for as long as the target does not answer it
)
CHUNKS_KEPT = 100_000
REPAIR_SECONDS_MAX = 120.0  # for live sync to come to keys that were marked to be copied again
# Journal entries not synced, beyond which a full comparison waits before it marks more keys
MARKED_AHEAD_ENTRIES_MAX = 1_000
# Of one partition, written since the last verification pass and not compared since; beyond, a new
# pass is needed
DIRTY_KEYS_MAX = 200_000
