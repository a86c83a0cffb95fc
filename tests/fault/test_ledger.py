"""The ledger's chain, and who the people in it are, on a real control store."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from exodus.control import approvers, ledger
from exodus.control.approvers import KnownBy, PersonIdentity, why_not_allowed, why_not_the_second
from exodus.control.ledger import LedgerEntry
from exodus.control.store import ControlStore
from exodus.net.client import answered
from exodus.plan.address import Address
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Phase
from tests.support.servers import DatabaseServer

pytestmark = pytest.mark.fault
_ANSWER = {"decision": "approve", "decided_by": "Ada", "why": "numbers look right"}


@pytest_asyncio.fixture
async def store(control_server: DatabaseServer) -> AsyncIterator[ControlStore]:
    async with await ControlStore.connect(control_server.address(), "orders") as opened:
        yield opened


def _entry(number: int) -> LedgerEntry:
    facts = {"share": 1.0, "keys": number, "none": None, "yes": True, "text": "ünï"}
    return LedgerEntry(
        at_ms=number,
        phase=Phase.COMMIT,
        event="noted",
        verdict=str(number),
        flow_run_id=f"run-{number}",
        facts=facts,
    )


async def test_entries_of_writers_at_once_are_one_chain(store: ControlStore) -> None:
    await asyncio.gather(*(ledger.record(store, _entry(number)) for number in range(12)))
    await ledger.record(store, _entry(3))
    entries = await ledger.read_stored(store)
    assert len(entries) == 12
    assert ledger.broken(entries) == []
    assert entries[0]["before"] == ledger.FIRST


@pytest.mark.parametrize("edit", ["changed", "removed", "added", "moved"])
async def test_an_edit_of_the_store_shows(store: ControlStore, edit: str) -> None:
    for number in range(4):
        await ledger.record(store, _entry(number))
    raw = await answered(store.client.xrange(store.keys.ledger))
    entries = [fields[b"entry"] for _, fields in raw]
    if edit == "changed":
        entries[1] = orjson.dumps({**orjson.loads(entries[1]), "decided_by": "somebody else"})
    elif edit == "removed":
        del entries[1]
    elif edit == "added":
        entries.insert(2, entries[1])
    else:
        entries[1], entries[2] = entries[2], entries[1]
    await answered(store.client.delete(store.keys.ledger))
    for entry in entries:
        await answered(store.client.xadd(store.keys.ledger, {"entry": entry}))
    assert ledger.broken(await ledger.read_stored(store)) != []


async def test_the_operating_system_says_who_answers_and_a_typed_name_does_not(
    store: ControlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER", "LOGNAME", "SUDO_USER"):
        monkeypatch.setenv(name, "somebody-else")
    typed = await approvers.identify(store, "run", "cutover", 1, _ANSWER)
    assert (typed.person, typed.known_by) == ("Ada", KnownBy.TYPED)
    await approvers.attest(store, "run", "cutover", 1, _ANSWER)
    known = await approvers.identify(store, "run", "cutover", 1, _ANSWER)
    assert known.known_by is KnownBy.OPERATING_SYSTEM
    assert known.person == pwd.getpwuid(os.getuid()).pw_name
    assert f"uid {os.getuid()} on " in known.detail
    # It speaks for that answer, of that question, and no other.
    for run, gate, attempt, answer in (
        ("run", "cutover", 1, {**_ANSWER, "why": "another"}),
        ("run", "cutover", 2, _ANSWER),
        ("run", "finalise", 1, _ANSWER),
        ("another", "cutover", 1, _ANSWER),
    ):
        assert (
            await approvers.identify(store, run, gate, attempt, answer)
        ).known_by is KnownBy.TYPED
    assert (
        0
        < int(await answered(store.client.ttl("".join((store.keys.answers, "run:cutover:1")))))
        <= 30 * 86_400
    )


def _known(name: str) -> PersonIdentity:
    return PersonIdentity(person=name, known_by=KnownBy.OPERATING_SYSTEM, detail="uid 1 on here")


def test_a_typed_name_alone_is_no_second_person_where_the_first_is_known() -> None:
    assert why_not_the_second(PersonIdentity(person="Ada"), PersonIdentity(person="Grace")) is None
    assert "somebody else" in (
        why_not_the_second(PersonIdentity(person="Ada"), PersonIdentity(person=" ada ")) or ""
    )
    assert "anybody can type" in (
        why_not_the_second(_known("ada"), PersonIdentity(person="Grace")) or ""
    )
    assert why_not_the_second(_known("ada"), _known("grace")) is None
    assert "somebody else" in (why_not_the_second(_known("ada"), _known("Ada")) or "")
    assert "somebody else" in (
        why_not_the_second(PersonIdentity(person="Grace"), _known("grace")) or ""
    )


def test_approvers_are_known_by_the_operating_system() -> None:
    there = Address(host="127.0.0.1", port=6379)
    plan = Plan(name="orders", source=there, target=there, approvers=("ada", "grace"))
    assert why_not_allowed(plan, "approve", _known("ada")) is None
    assert "not among" in (why_not_allowed(plan, "approve", _known("eve")) or "")
    assert "does not count" in (
        why_not_allowed(plan, "approve", PersonIdentity(person="ada")) or ""
    )
    assert "does not count" in (
        why_not_allowed(plan, "abandon", PersonIdentity(person="ada")) or ""
    )
    assert why_not_allowed(plan, "reject", PersonIdentity(person="eve")) is None
    assert (
        why_not_allowed(
            plan.model_copy(update={"approvers": ()}), "approve", PersonIdentity(person="eve")
        )
        is None
    )


async def test_the_ledger_says_how_a_person_was_known(store: ControlStore) -> None:
    said = _known("ada")
    entry = LedgerEntry(
        at_ms=1,
        phase=Phase.COMMIT,
        event="decided",
        decided_by="the boss",
        person=said.person,
        known_by=said.known_by,
        identity=said.detail,
    )
    await ledger.record(store, entry)
    (read,) = await ledger.read(store)
    assert approvers.decider(read) == said
    assert read.decided_by == "the boss"
