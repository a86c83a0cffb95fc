"""What requests may change, and what answered requests did change: keys, barriers and gaps."""

from __future__ import annotations

from typing import NamedTuple

from exodus.commands.semantics import Role
from exodus.control.changes import Barrier, Key
from exodus.control.gap_reasons import NO_ANSWER, SCRIPTS
from exodus.gateway.session.parts import SessionParts
from exodus.gateway.session.pending import Pending
from exodus.gateway.session.transaction import flushes
from exodus.plan.vocabulary import JournalMode
from exodus.resp.scanner import Reply

_OFF, _SAMPLE, _ALL = JournalMode.OFF, JournalMode.SAMPLE, JournalMode.ALL


class Unanswered(NamedTuple):
    """The writes under way: keys, barriers, and a gap for each write whose keys are unknown."""

    keys: list[Key]
    barriers: list[Barrier]
    gaps: list[str]

    def __bool__(self) -> bool:
        return bool(self.keys or self.barriers or self.gaps)


class Effects:
    """Collects the intents of requests, and marks what was answered."""

    __slots__ = ("barriers", "gaps", "intents", "parts")

    def __init__(self, parts: SessionParts) -> None:
        self.parts = parts
        self.intents: list[Key] = []  # of requests that are about to be forwarded
        self.barriers: list[Barrier] = []  # likewise
        self.gaps: list[str] = []  # likewise, of writes whose keys are unknown

    def intend(self, pending: Pending) -> None:
        """Add what a request may change to the intents."""
        parts = self.parts
        predicted = parts.predicted
        if (
            pending.unseen is not None
            or pending.undescribed is not None
            or pending.transaction is not None
        ):
            self.gaps += _gaps_of(pending)
        if (
            pending.transaction is None
            and not predicted.selects_in_flight
            and pending.barrier is None
            and not pending.elsewhere
        ):
            # The common case, one command in one database, needs no list of its own.
            orders = parts.orders
            if orders.journal is _SAMPLE and orders.rule and pending.sampled_as == -orders.rule:
                return  # by far the most while keys are sampled
            db = predicted.db
            for key in pending.keys:
                self.intents.append((db, key))
        else:
            keys, found = self.of(pending)
            self.intents.extend(keys)
            self.barriers.extend(found)

    def log(self) -> None:
        """Log the intents. Their requests are forwarded next."""
        parts = self.parts
        orders = parts.orders
        journals = orders.journal is not _OFF
        if self.intents:
            intents, self.intents = self.intents, []
            if orders.journal is _SAMPLE:
                intents = [key for key in intents if orders.sampled(key[0], key[1])]
            if journals and intents:
                parts.out.log_intents(intents, None)
        if self.barriers:
            barriers, self.barriers = self.barriers, []
            for barrier in barriers if journals else ():
                parts.out.log_intents([], barrier)
        if self.gaps:
            gaps, self.gaps = self.gaps, []
            self.log_gaps(self._counted(gaps))

    def log_gaps(self, gaps: list[str]) -> None:
        """Log writes of unknown keys. The authority executes nothing for a stranger."""
        if not self.parts.is_stranger():
            for why in gaps:
                self.parts.out.log_gap(why)

    def _counted(self, gaps: list[str]) -> list[str]:
        """Return each reason once: none unless every write is journalled, and none that the change
        feed reports.
        """
        if self.parts.orders.journal is not _ALL:
            return []
        if not self.parts.orders.scripts_unseen:
            gaps = [why for why in gaps if why != SCRIPTS]
        return list(dict.fromkeys(gaps))

    def of(self, pending: Pending) -> tuple[list[Key], list[Barrier]]:
        """Return what a request may change, in each database that may be selected."""
        parts = self.parts
        predicted = parts.predicted
        dbs = [predicted.db]
        if predicted.selects_in_flight:  # each of them may fail
            asked = [each.select for each in parts.pending if each.select is not None]
            dbs = list({parts.state.db, predicted.db, *asked})
        if pending.transaction is None:
            keys = [(db, key) for db in dbs for key in pending.keys]
            return keys + pending.elsewhere, flushes(pending.barrier, dbs)
        keys = []
        barriers: list[Barrier] = []
        for db in dbs:
            outcome = pending.transaction.run(db, None)
            keys += outcome.keys
            barriers += outcome.barriers
        return keys, barriers

    def mark(self, pending: Pending, reply: Reply, marks: list[Key], done: set[int] | None) -> None:
        """Add the keys that an answered request may have changed to `marks`.

        A write whose keys are unknown opens a gap.
        """
        parts = self.parts
        orders = parts.orders
        if pending.transaction is not None or pending.barrier is not None:
            self._mark_several(pending, reply, marks, done)
            return
        db = parts.state.db
        if orders.journal is _SAMPLE:
            # Another rule may be in force since the request was admitted.
            if not orders.rule or pending.sampled_as != -orders.rule:
                for key in pending.keys:
                    if orders.sampled(db, key):
                        marks.append((db, key))  # noqa: PERF401 - likewise
            if pending.elsewhere:
                marks.extend(
                    [entry for entry in pending.elsewhere if orders.sampled(entry[0], entry[1])]
                )
            return
        for key in pending.keys:
            marks.append((db, key))  # noqa: PERF401 - no closure in the compiled form
        if pending.elsewhere:
            marks.extend(pending.elsewhere)
        if pending.unseen is not None:
            parts.open_gap(pending.unseen)
        if pending.undescribed is not None and orders.journal is _ALL:
            parts.out.learn_command(pending.undescribed, db)

    def _mark_several(
        self, pending: Pending, reply: Reply, marks: list[Key], done: set[int] | None
    ) -> None:
        parts, transaction = self.parts, pending.transaction
        orders, db = parts.orders, parts.state.db
        if transaction is None:
            keys = [(db, key) for key in pending.keys] + pending.elsewhere
            barriers = flushes(pending.barrier, [db])
        elif reply.nil:
            return
        else:
            keys, barriers, undescribed, _ = transaction.run(db, done)
            for why in transaction.unseen:
                parts.open_gap(why)
            if orders.journal is _ALL:
                for args, each in undescribed:
                    parts.out.learn_command(args, each)
        if orders.journal is _SAMPLE:
            keys = [key for key in keys if orders.sampled(key[0], key[1])]
        marks.extend(keys)
        for barrier in barriers:
            parts.out.journal([], barrier)

    def unanswered(self) -> Unanswered:
        """Return the writes that the authority was asked for and has not answered.

        There are none where the authority requires a login that this session does not have:
        nothing is sent behind a login before it is answered.
        """
        parts = self.parts
        unread = parts.unread
        if parts.is_stranger() and not unread.unanswered:
            return Unanswered([], [], [])
        keys: list[Key] = []
        barriers: list[Barrier] = []
        # The authority may have executed bytes that the gateway cannot read.
        gaps: list[str] = [NO_ANSWER] if unread.unanswered or unread.executed else []
        for pending in parts.pending:
            if pending.command.role is Role.QUIT:
                break  # the authority reads nothing behind it
            if pending.write:
                found, more = self.of(pending)
                keys.extend(found)
                barriers.extend(more)
                gaps.extend(_gaps_of(pending))
        return Unanswered(keys, barriers, self._counted(gaps))


def _gaps_of(pending: Pending) -> list[str]:
    """Return the gaps that an unanswered write opens."""
    gaps = [] if pending.unseen is None else [pending.unseen]
    if pending.undescribed is not None:
        gaps.append(NO_ANSWER)
    if pending.transaction is not None:
        gaps.extend(pending.transaction.unseen)
        if pending.transaction.undescribed:  # a request whose command no server has described
            gaps.append(NO_ANSWER)
    return gaps
