"""Who gives an answer, and how that is known.

A form's `decided_by` is typed. The command line knows the user that the operating system runs it
as. It writes that user into the control store before it answers (`attest`), and the flow reads it
there (`identify`). Somebody with only Prefect's login cannot write there. Prefect's open-source
server has one login for everybody, so an answer from its UI is known by the typed name only.

Whoever has the control store's password can attest anything: see docs/operating/security.md.
"""

from __future__ import annotations

import os
import pwd
import socket
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from exodus.control.ledger import LedgerEntry, digest
from exodus.control.store import ControlStore, Json
from exodus.net.client import answered
from exodus.plan.bounds import ATTESTED_KEPT_S
from exodus.plan.plan import Plan

_UNSET = 2**32 - 1  # of a login user that the kernel was not told
_ANSWER = ("decision", "decided_by", "why")


class KnownBy(StrEnum):
    """How it is known who answered."""

    TYPED = "typed"
    OPERATING_SYSTEM = "operating system"


class PersonIdentity(BaseModel):
    """One person, as the rules compare them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    person: str
    known_by: KnownBy = KnownBy.TYPED
    detail: str = ""

    @property
    def strong(self) -> bool:
        """Return whether it is more than a typed name."""
        return self.known_by is not KnownBy.TYPED

    def same(self, other: PersonIdentity) -> bool:
        """Return whether both may be one person."""
        return self.person.strip().casefold() == other.person.strip().casefold()


class _Attested(BaseModel):
    """What the command line wrote down: for which answer, and who gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: str
    identity: PersonIdentity


def _digest(answer: Json) -> str:
    return digest({name: answer[name] for name in _ANSWER})


def of_this_process() -> PersonIdentity:
    """Return the user that the operating system runs this process as; behind sudo or su, who logged
    in.

    Environment variables such as USER are not asked: anybody sets them.
    """
    uid = os.getuid()
    if uid == 0:
        uid = _login_uid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    return PersonIdentity(
        person=name,
        known_by=KnownBy.OPERATING_SYSTEM,
        detail=f"uid {uid} on {socket.gethostname()}",
    )


def _login_uid() -> int:
    try:
        with open("/proc/self/loginuid") as file:  # noqa: PTH123 - a file of the kernel's
            uid = int(file.read())
    except (OSError, ValueError):
        return 0
    return 0 if uid == _UNSET else uid


def _key(store: ControlStore, run_id: str, gate: str, attempt: int) -> str:
    return f"{store.keys.answers}{run_id}:{gate}:{attempt}"


async def attest(
    store: ControlStore, run_id: str, gate: str, attempt: int, answer: Json
) -> PersonIdentity:
    """Write down who is about to give this answer to a gate of a run."""
    identity = of_this_process()
    said = _Attested(answer=_digest(answer), identity=identity)
    await answered(
        store.client.set(
            _key(store, run_id, gate, attempt), said.model_dump_json(), ex=ATTESTED_KEPT_S
        )
    )
    return identity


async def identify(
    store: ControlStore, run_id: str, gate: str, attempt: int, answer: Json
) -> PersonIdentity:
    """Return who gave this answer: as attested for exactly this answer, else as typed."""
    raw = await answered(store.client.get(_key(store, run_id, gate, attempt)))
    typed = PersonIdentity(person=str(answer["decided_by"]))
    if raw is None:
        return typed
    said = _Attested.model_validate_json(raw)
    return said.identity if said.answer == _digest(answer) else typed


def decider(entry: LedgerEntry) -> PersonIdentity:
    """Return who took a decision, as its entry in the ledger says."""
    return PersonIdentity(
        person=entry.person or entry.decided_by,
        known_by=KnownBy(entry.known_by or KnownBy.TYPED),
        detail=entry.identity,
    )


def why_not_allowed(plan: Plan, verdict: str, identity: PersonIdentity) -> str | None:
    """Return why this person may not decide so, by the plan's `approvers`; or None. Everybody may
    reject.
    """
    if not plan.approvers or verdict == "reject":
        return None
    if not identity.strong:
        return (
            "approvers are known by the operating system: answer by `exodus approve`; a typed "
            "name does not count"
        )
    if not any(identity.same(PersonIdentity(person=name)) for name in plan.approvers):
        return f"{identity.person} ({identity.detail}) is not among the plan's approvers"
    return None


def why_not_the_second(first: PersonIdentity, second: PersonIdentity) -> str | None:
    """Return why two answers do not count as two people's; or None."""
    if first.same(second):
        return f"{first.person} decided to cut over; somebody else must decide this (two_people)"
    if first.strong and not second.strong:
        return (
            f"{first.person} is known by the {first.known_by}, {second.person} by a typed name "
            "only, which anybody can type: "
            "answer by `exodus approve` (two_people)"
        )
    return None
