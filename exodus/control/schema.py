"""The schema of the control store.

Every key begins with `exodus:{MIGRATION}:` (the braces keep a migration in one cluster slot):

    KEY              TYPE     WRITTEN BY → READ BY
        what it holds, and for how long

    plan             string   exodus apply → everybody
        `Plan` as JSON, no secrets; until removed
    route            string   flows → gateways, syncers
        `Route` as JSON; compare-and-set by epoch
    route:changed    channel  flows → gateways, syncers
        the new route, or `say MS`; polling backs it up
    part:changed     channel  gateways → cutover
        a heartbeat that a switch waits for was written
    part:KIND        hash     each process → flows, status
        id → heartbeat with state, JSON
    owner:KIND       hash     each process → processes, by script
        id → the instance that may write its heartbeat
    acknowledged     hash     gateways → gateways
        id → number of its last batch in the journal
    fsync:ID         string   gateway → nobody
        written before a WAITAOF; expires
    journal:P        stream   gateways, chunks → syncers, chunks
        changed keys of partition P; trimmed behind the syncer
    position         hash     syncers → flows, chunks
        partition → last entry id synced
    trimmed          hash     syncers → chunks
        partition → last entry id trimmed away
    lease:P          string   syncers → syncers
        owner of partition P, expires by itself
    token            string   syncers → syncers
        counter of fencing tokens
    verified         string   verification → syncers, cutover
        `Pass` as JSON: what the last clean pass speaks for
    verifying:NAME   string   verification → verification
        how far a pass has come, JSON; removed at its end
    budget           string   operator, flows → bulk readers
        impact budget as JSON, in place of the plan's
    pace             hash     bulk readers → status
        what each spends of it and why, JSON
    fresh            hash     syncers → status, cutover
        partition → keys dirty since that pass, JSON
    feed:SIDE        hash     syncers → syncers, cutover
        how far the changes of a side were read
    feed:SIDE:lease  string   syncers → syncers
        which syncer reads it, expires by itself
    feed:SIDE:asks   list     syncers, cutover → syncers
        questions whether all was heard; expires
    checkpoint:RUN   hash     backfill → backfill, status
        slice → progress, JSON
    dead             hash     sync → status, decisions
        packed key → why it could not be carried, JSON
    accepted         hash     decisions → verification, status
        packed key → a dead letter that a person accepted
    gap              hash     gateways, syncers → cutover, status
        open gaps: what no journal covers, JSON
    scripts          hash     gateways → cutover
        digest → text of a script that a client loaded or ran
    lives            hash     syncers, flows → syncers, cutover
        side → run id of the server that the journal speaks for
    topology         hash     gateways, syncers → everybody
        side → the master of a service, JSON: address, epoch
    listeners        hash     gateways → gateways, cutover
        side → which listener stands for which node, JSON
    failovers        list     gateways, syncers → status, report
        failovers of both sides, and what they may have lost, JSON
    ledger           stream   flows → preconditions
        decisions and phase ends, chained, never trimmed
    steps:RUN        hash     flows → flows
        step → what it returned; expires after the run's end
    turn:PHASE       string   flows → flows
        the process of the phase, or of a scheduled sample; expires by itself
    bundle:NAME      hash     flows → command line
        file → its bytes, of an evidence bundle; the newest
    bundles          list     flows → command line
        names of those bundles, newest first
    answers:RUN:…    string   command line → flows
        who gives an answer, by the operating system; expires
    phase            hash     flows → status
        phase → state, JSON
    shadow           stream   gateways → comparer
        sampled requests and replies; bounded, expires
    shadow:published string   gateways → comparer
        how many sampled requests all gateways published: shows what expired untaken
    divergence       hash     comparer → flows, repair
        packed key and command → divergence, JSON; until removed
    divergence:values hash    comparer → flows, status
        the same → both values, JSON; bounded, expires
    judged:EPOCH     string   comparer → flows
        HyperLogLog of the keys that were judged; expires
    comparisons      list     flows → flows
        runs of Compare: figures, JSON; bounded
    seeded           set      comparer → flows
        packed keys that Compare put on the target
    seeding          set      comparer → comparer
        of them, those whose first copy is under way
    sampling         string   comparer → comparer
        where it stands and what it counted, JSON; expires
    scratch          set      comparer → flows
        packed keys of the target that writes were tried on
    telemetry:ID     string   gateway → flows, status
        counters and histograms, JSON; expires
    windows          stream   gateway → flows
        counters of 10 s each, packed; bounded in number, expires
    report:NAME      string   flows → status, later phases
        last result of a task, JSON
    fence:SIDE       string   cutover → cutover, gateways
        whose fence it is, of what kind, what was before it
    fence:SIDE:word  string   flows → cutover
        who confirmed a provider's fence, and what, JSON
    fence:SIDE:let   string   cutover → cutover, gateways
        a switch back let Exodus in behind it; expires
    abort            string   exodus abort → cutover
        why a switch is to be given up; expires
    postponed        string   exodus hold → cutover
        who postpones the switch, and why, JSON

`exodus:archive`, a hash, is the one key that belongs to no migration: NAME/MS → where an archived
one's evidence is.

On the two sides of the migration the engine owns keys with the same prefix (`guard_key`,
`lane_guard_key`, `cluster_guard_key`, `fence_guard_key`, `native_guard_key`), which are never
copied, compared or counted.
"""

from __future__ import annotations

from exodus.commands.slots import tag_of

ARCHIVE = "exodus:archive"  # the only key that is no one migration's


class Keys:
    """Names of keys; nothing else in Exodus spells one."""

    def __init__(self, migration: str) -> None:
        self.prefix = f"exodus:{{{migration}}}:"
        self.plan = self.prefix + "plan"
        self.route = self.prefix + "route"
        self.route_changed = self.prefix + "route:changed"
        self.part_changed = self.prefix + "part:changed"
        self.position = self.prefix + "position"
        self.trimmed = self.prefix + "trimmed"
        self.token = self.prefix + "token"
        self.windows = self.prefix + "windows"
        self.dead = self.prefix + "dead"
        self.accepted = self.prefix + "accepted"
        self.gap = self.prefix + "gap"
        self.lives = self.prefix + "lives"
        self.topology = self.prefix + "topology"
        self.failovers = self.prefix + "failovers"
        self.listeners = self.prefix + "listeners"
        self.ledger = self.prefix + "ledger"
        self.phase = self.prefix + "phase"
        self.shadow = self.prefix + "shadow"
        self.shadow_published = self.prefix + "shadow:published"
        self.answers = self.prefix + "answers:"
        self.divergence = self.prefix + "divergence"
        self.divergence_values = self.prefix + "divergence:values"
        self.budget = self.prefix + "budget"
        self.pace = self.prefix + "pace"
        self.verified_pass = self.prefix + "verified"
        self.fresh = self.prefix + "fresh"
        self.comparisons = self.prefix + "comparisons"
        self.seeded = self.prefix + "seeded"
        self.seeding = self.prefix + "seeding"
        self.sampling = self.prefix + "sampling"
        self.scratch = self.prefix + "scratch"
        self.abort = self.prefix + "abort"
        self.postponed = self.prefix + "postponed"
        self.scripts = self.prefix + "scripts"
        self.acknowledged = self.prefix + "acknowledged"
        self.bundles = self.prefix + "bundles"

    def part(self, kind: str) -> str:
        """Registrations of the processes of one kind."""
        return f"{self.prefix}part:{kind}"

    def owner(self, kind: str) -> str:
        """Return which instance each registration of a kind belongs to."""
        return f"{self.prefix}owner:{kind}"

    def fsync(self, process: str) -> str:
        """Return the key that a process writes before it waits for an fsync."""
        return f"{self.prefix}fsync:{process}"

    def journal(self, partition: int) -> str:
        """Return the stream of one journal partition."""
        return f"{self.prefix}journal:{partition}"

    def lease(self, partition: int) -> str:
        """Return the lease of one partition."""
        return f"{self.prefix}lease:{partition}"

    def judged(self, salt: int) -> str:
        """The keys that the sampling of this salt has judged."""
        return f"{self.prefix}judged:{salt}"

    def feed(self, side: str) -> str:
        """Return how far the replication stream of a side was read."""
        return f"{self.prefix}feed:{side}"

    def feed_lease(self, side: str) -> str:
        """Return the lease of the syncer that reads the feed."""
        return f"{self.prefix}feed:{side}:lease"

    def feed_asks(self, side: str) -> str:
        """Questions to its reader whether all was heard."""
        return f"{self.prefix}feed:{side}:asks"

    def checkpoint(self, run: str) -> str:
        """Return the checkpoints of one backfill."""
        return f"{self.prefix}checkpoint:{run}"

    def telemetry(self, process: str) -> str:
        """Return the last telemetry of one gateway process."""
        return f"{self.prefix}telemetry:{process}"

    def verifying(self, name: str) -> str:
        """Return how far a verification has come."""
        return f"{self.prefix}verifying:{name}"

    def steps(self, run: str) -> str:
        """Return the results of a run's steps."""
        return f"{self.prefix}steps:{run}"

    def turn(self, phase: str) -> str:
        """Return which process runs a phase."""
        return f"{self.prefix}turn:{phase}"

    def bundle(self, name: str) -> str:
        """Return the files of one evidence bundle."""
        return f"{self.prefix}bundle:{name}"

    def report(self, name: str) -> str:
        """Return the last report of a name."""
        return f"{self.prefix}report:{name}"

    def fence(self, side: str) -> str:
        """Return what must be restored when the fence on `side` is lowered."""
        return f"{self.prefix}fence:{side}"

    def fence_confirmation(self, side: str) -> str:
        """Return who confirmed the provider's fence of `side`."""
        return f"{self.prefix}fence:{side}:word"

    def fence_suspended(self, side: str) -> str:
        """While it is there, nobody puts the fence of `side` up again."""
        return f"{self.prefix}fence:{side}:let"


def guard_key(migration: str) -> bytes:
    """Return the follower's key that holds the epoch in which Exodus may write there (rule 6)."""
    return f"exodus:{{{migration}}}:epoch".encode()


def lane_guard_key(migration: str, partition: int) -> bytes:
    """Return the key on a follower whose value is the fencing token of the partition's owner (race
    rule 2).
    """
    return f"exodus:{{{migration}}}:lane:{partition}".encode()


def cluster_guard_key(migration: str, slot: int) -> bytes:
    """Return the key in `slot` of a cluster that is what `guard_key`, `lane_guard_key` and
    `fence_guard_key` are on a single server: a hash with their values.
    """
    return b"exodus:{%b}:guard" % tag_of(migration.encode(), slot)


def fence_guard_key(migration: str) -> bytes:
    """Return the key on a side whose value is the id of the switch that may put its fence up or
    down.
    """
    return f"exodus:{{{migration}}}:fence".encode()


def native_guard_key(migration: str) -> bytes:
    """Return the key on both sides that holds the writers' epoch in which the target may become the
    source's replica.
    """
    return f"exodus:{{{migration}}}:native".encode()
