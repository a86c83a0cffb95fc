"""The compiled hot path and its sources do the same, call for call, with whatever arrives
(exodus/compiled.py).

Without a compiled form both would be the sources. The last test fails then, unless
EXODUS_COMPILED=0 asks for it.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections import deque
from types import ModuleType, SimpleNamespace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from exodus import compiled
from exodus.plan.vocabulary import JournalMode
from exodus.resp.encode import encode, encode_arguments
from tests.support.full import FULL
from tests.support.script import Recorder

pytestmark = pytest.mark.property
EXAMPLES = 5_000 if FULL else 120


NAMES = [name for name in compiled.HOT if not name.endswith((".relay", ".intents"))]


def _forms() -> list[SimpleNamespace]:
    """The hot modules as this process runs them, and as sources."""
    running = {name: importlib.import_module(name) for name in NAMES}
    finder = compiled.SourceFinder()
    sys.meta_path.insert(0, finder)
    for name in NAMES:
        del sys.modules[name]
    try:
        sources = {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.meta_path.remove(finder)
        for name, module in running.items():
            sys.modules[name] = module
            setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    return [
        SimpleNamespace(**{name.rpartition(".")[2]: module for name, module in modules.items()})
        for modules in (running, sources)
    ]


RUNNING, SOURCES = FORMS = _forms()
_WRITES = {
    b"SET": (1, 1),
    b"DEL": (1, -1),
    b"BLPOP": (1, -2),
    b"MSET": (1, -1),
    b"FLUSHDB": (0, 0),
    b"MOVE": (1, 1),
    b"EVAL": (0, 0),
    b"CLUSTER|FLUSHSLOT": (0, 0),
}
_READS = (
    b"GET PING MULTI EXEC DISCARD WATCH SELECT AUTH HELLO CLIENT SUBSCRIBE UNSUBSCRIBE MONITOR "
    b"SCAN XREAD RESET QUIT CLUSTER READONLY READWRITE ASKING INFO SSUBSCRIBE SUNSUBSCRIBE"
).split()


def _session(
    form: SimpleNamespace, journal: JournalMode, shadow: int, canary: int, dialect: int
) -> tuple[object, Recorder, object]:
    table = form.table
    commands = [
        table.Command(name, write=True, first=first, last=last)
        for name, (first, last) in _WRITES.items()
    ]
    commands += [table.Command(name, write=False, first=1, last=1) for name in _READS]
    telemetry = form.counters.Telemetry(form.counters.NoKeyStatistics())
    orders = form.orders.Orders(table.CommandTable(commands), telemetry)
    orders.journal = journal
    orders.pick(shadow_below=shadow, canary_below=canary)
    out = Recorder()
    session = form.machine.Session(out, orders)
    session.log_in(None, 0.0, form.leg.Dialect(dialect))
    return session, out, telemetry


_words = st.sampled_from(
    [
        b"k",
        b"a:b",
        b"0",
        b"3",
        b"",
        b"x" * 70,
        b"v" * 300,
        b"ON",
        b"OFF",
        b"SKIP",
        b"REPLY",
        b"SETNAME",
        b"STREAMS",
        b"BLOCK",
        b"SLOTS",
        b"nodes",
        b"MYID",
    ]
)
_commands = st.builds(
    lambda name, args: encode(name, *args),
    st.sampled_from([*_WRITES, *_READS, b"get", b"nosuch"]),
    st.lists(st.one_of(_words, st.binary(max_size=5)), max_size=4),
)
_client = st.one_of(
    _commands,
    _commands,
    _commands,
    st.sampled_from([b"PING\r\n", b"*0\r\n", b"\r\n", b'SET "a b" c\n']),
    st.binary(max_size=12),
)
_replies = st.one_of(
    st.sampled_from(
        [
            b"+OK\r\n",
            b"+QUEUED\r\n",
            b"-ERR no\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"_\r\n",
            b":1\r\n",
            b"*2\r\n$1\r\na\r\n:2\r\n",
            b"$3\r\nabc\r\n",
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
            b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n",
            b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n",
            b"%1\r\n+k\r\n#t\r\n",
            b"|1\r\n+a\r\n:1\r\n+OK\r\n",
            b"!3\r\nERR\r\n",
            b"-" + b"e" * 60 + b"\r\n",
            b"*0\r\n",
            b"-MOVED 1 a:1\r\n",
            b"-ASK 2 b:2\r\n",
            b"*3\r\n$12\r\nsunsubscribe\r\n$1\r\nk\r\n:0\r\n",
            b">3\r\n$10\r\nssubscribe\r\n$1\r\nk\r\n:1\r\n",
            b"~1\r\n,1.5\r\n",
        ]
    ),
    st.binary(max_size=8),
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("from_client"), st.lists(_client, min_size=1, max_size=4).map(b"".join)),
        st.tuples(st.just("from_server"), st.lists(_replies, min_size=1, max_size=4).map(b"".join)),
        st.tuples(st.just("from_follower"), _replies),
        st.tuples(st.sampled_from(["hold", "thaw", "freeze", "log_pending"]), st.just(b"")),
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    _steps,
    st.sampled_from(list(JournalMode)),
    st.sampled_from([0, 2**31, 2**32]),
    st.sampled_from([0, 0, 2**32]),
    st.sampled_from([0, 1, 2]),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_both_forms_say_the_same(
    steps: list[tuple[str, bytes]],
    journal: JournalMode,
    shadow: int,
    canary: int,
    dialect: int,
    cuts: list[int],
) -> None:
    told = []
    for form in FORMS:
        session, out, telemetry = _session(form, journal, shadow, canary, dialect)
        for number, (what, data) in enumerate(steps):
            if what in ("from_client", "from_server"):
                at = 0
                for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
                    getattr(session, what)(data[at:end], float(number))
                    at = end
            elif what == "from_follower":
                for read in out.reads:
                    read.answered(data, error=data.startswith(b"-"))
                session.from_follower()
            elif what == "hold":
                session.orders.hold = True
            elif what == "thaw":
                session.orders.hold = False
                session.thaw(float(number))
            else:
                getattr(session, what)()
        state = session.state
        told.append(
            (
                repr(out.calls),
                state.db,
                state.protocol,
                state.name,
                session.opaque,
                state.replay,
                sorted(state.channels),
                session.idle,
                session.writes_in_flight,
                len(session.pending),
                session.cannot_switch,
                (session.parts.replies.edits, session.parts.replies.copies),
                telemetry.snapshot(),
                telemetry.prefixes_snapshot(),
            )
        )
    assert told[0] == told[1]


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    st.lists(st.one_of(_client, _replies, st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(0, 120), max_size=8),
)
def test_both_forms_frame_the_same(parts: list[bytes], cuts: list[int]) -> None:
    data = b"".join(parts)
    found = []
    for form in FORMS:
        requests, replies = form.scanner.RequestScanner(), form.scanner.ReplyScanner()
        seen: list[tuple[object, ...]] = []
        at = 0
        for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
            seen += [
                (request.args, request.size, request.skipped)
                for request in requests.feed(data[at:end])
            ]
            seen += [
                (reply.kind, reply.head, reply.size, reply.first)
                for reply in replies.feed(data[at:end])
            ]
            at = end
        found.append(
            (seen, requests.broken, requests.partial_bytes, replies.broken, replies.partial_bytes)
        )
    assert found[0] == found[1]


@given(st.lists(st.sampled_from(["push", "push", "pop", "put back", "clear"]), max_size=400))
def test_both_queues_keep_the_order(steps: list[str]) -> None:
    for form in FORMS:
        queue, model = form.pending.PendingQueue(), deque()
        for step in steps:
            pending = queue.make(form.table.Command(b"GET", write=False, first=1, last=1), 0.0, 0)
            if step == "push":
                queue.push(pending)
                model.append(pending)
            elif step == "put back":
                queue.put_back(pending)
                model.appendleft(pending)
            elif step == "clear":
                queue.clear()
                model.clear()
            elif model:
                assert queue.pop() is model.popleft()
            assert list(queue) == list(model)
            assert len(queue) == queue.count == len(model)
            assert queue.head is (model[0] if model else None)


@given(st.lists(st.tuples(st.integers(0, 65_535), st.binary(max_size=300)), max_size=20))
def test_both_forms_pack_the_same(keys: list[tuple[int, bytes]]) -> None:
    assert RUNNING.changes.pack(keys) == SOURCES.changes.pack(keys)
    assert RUNNING.changes.unpack(SOURCES.changes.pack(keys)) == keys


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.text("{}ab", max_size=9).map(str.encode))),
    st.integers(0, 2**32),
)
def test_both_forms_know_the_same_slots(keys: list[bytes], seed: int) -> None:
    draw = random.Random(seed)
    owners = [draw.randrange(-1, 3) for _ in range(SOURCES.key_slots.SLOTS)]
    slots = [SOURCES.key_slots.slot_of(key) for key in keys]
    assert [RUNNING.key_slots.slot_of(key) for key in keys] == slots
    places = RUNNING.key_slots.places_by_owner(keys, owners)
    assert places == SOURCES.key_slots.places_by_owner(keys, owners)
    assert sorted(at for each in places.values() for at in each) == list(range(len(keys)))
    assert all(owners[slots[at]] == owner for owner, each in places.items() for at in each)
    groups = RUNNING.key_slots.groups_by_owner(keys, owners)
    assert groups == SOURCES.key_slots.groups_by_owner(keys, owners)
    together = {owner: sorted(at for part in each for at in part) for owner, each in groups.items()}
    assert together == places
    assert all(len({slots[at] for at in each}) == 1 for of in groups.values() for each in of)
    assert sum(map(len, groups.values())) == len(set(slots))


def test_both_forms_know_the_same_tags() -> None:
    assert RUNNING.key_slots.tags_by_slot(b"m-1") == SOURCES.key_slots.tags_by_slot(b"m-1")


@given(
    st.lists(
        st.tuples(st.binary(max_size=300), st.integers(-2, 2**45), st.binary(max_size=300)),
        max_size=20,
    ),
    st.integers(1, 5),
)
def test_both_forms_encode_the_same_strings(
    strings: list[tuple[bytes, int, bytes]], step: int
) -> None:
    """The batch of a single server, and the groups of a cluster's node."""
    keys, expiries_ms, values = ([each[at] for each in strings] for at in range(3))
    sent = RUNNING.encode.encode_strings(keys, expiries_ms, values)
    assert sent == SOURCES.encode.encode_strings(keys, expiries_ms, values)
    commands = [
        ("SET", key, value, "PXAT", at_ms) if at_ms > 0 else ("SET", key, value)
        for key, at_ms, value in strings
    ]
    assert sent == b"".join(encode(*command) for command in commands)
    places = list(range(len(keys)))
    groups = [places[start : start + step] for start in range(0, len(places), step)]
    words, count, written = RUNNING.encode.string_commands(keys, expiries_ms, values, groups)
    told = SOURCES.encode.string_commands(keys, expiries_ms, values, groups)
    assert (words, count, written) == told
    wanted = b""
    for each in written:
        command = commands[each[0]]
        if len(each) > 1:
            command = ("MSET", *[word for at in each for word in (keys[at], values[at])])
            assert all(expiries_ms[at] <= 0 for at in each)
        wanted += encode_arguments(len(command), *command)
        count -= len(command) + 1
    assert (words, count) == (wanted, 0)
    assert sorted(at for part in written for at in part) == places


@pytest.mark.skipif(
    os.environ.get("EXODUS_COMPILED") == "0", reason="EXODUS_COMPILED=0 asks for the sources"
)
def test_what_was_compiled_is_what_runs() -> None:
    """Otherwise the tests above compare the sources with themselves, and CI tests a gateway that
    nobody deploys.
    """
    assert compiled.why_not() is None, f"{compiled.why_not()}: `make install` compiles the hot path"
    modules: list[ModuleType] = [getattr(RUNNING, name.rpartition(".")[2]) for name in NAMES]
    assert [module.__name__ for module in modules if not str(module.__file__).endswith(".so")] == []
    sources: list[ModuleType] = [getattr(SOURCES, name.rpartition(".")[2]) for name in NAMES]
    assert [module.__name__ for module in sources if not str(module.__file__).endswith(".py")] == []
