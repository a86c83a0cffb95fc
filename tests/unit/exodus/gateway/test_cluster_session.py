"""A session whose leg is a node of a cluster: redirects and replies that name nodes are given with
the gateway's listeners, at every byte split, and all else passes as it is.
"""

from __future__ import annotations

import pytest

from exodus.commands.table import Command, CommandTable
from exodus.control.changes import Barrier
from exodus.gateway.orders import Orders
from exodus.gateway.session import Dialect, Session
from exodus.plan.vocabulary import JournalMode
from exodus.resp.encode import encode
from exodus.telemetry.counters import NoKeyStatistics, Telemetry
from tests.support.script import Recorder, Script, replayed

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
GET, SET = encode("GET", "k"), encode("SET", "k", "v")
MOVED = b"-MOVED 12706 127.0.0.1:30001\r\n"
TOLD = b"-MOVED 12706 gateway:7001\r\n"
SLOTS = encode("CLUSTER", "SLOTS")
NODES = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:30001\r\n"
_READS = (
    b"GET",
    b"PING",
    b"MULTI",
    b"EXEC",
    b"CLUSTER",
    b"READONLY",
    b"READWRITE",
    b"ASKING",
    b"CLIENT",
    b"SSUBSCRIBE",
    b"SUBSCRIBE",
    b"HELLO",
    b"SCAN",
    b"EVAL_RO",
)


def made(out: Recorder) -> Session:
    commands = [Command(b"SET", write=True, first=1, last=1), Command(b"EVAL", write=True)]
    table = CommandTable([*commands, *(Command(name, write=False) for name in _READS)])
    table.find(b"CLUSTER").subcommands[b"FLUSHSLOT"] = Command(b"CLUSTER|FLUSHSLOT", write=True)
    orders = Orders(table, Telemetry(NoKeyStatistics()))
    orders.journal = JournalMode.ALL
    session = Session(out, orders)
    session.log_in(None, 0.0, Dialect.CLUSTER)
    return session


def script() -> Script:
    return Script(made)


def test_a_redirect_names_the_listener_and_changes_nothing() -> None:
    (
        script()
        >> ("from_client", SET)
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", SET)
        >> ("from_server", MOVED)
        << ("to_client", TOLD)
    ).play_at_every_split()


@pytest.mark.parametrize("kind", [b"MOVED", b"ASK"])
def test_redirects_between_other_replies_are_given_in_their_order(kind: bytes) -> None:
    answers = b"$1\r\n1\r\n" + MOVED.replace(b"MOVED", kind) + b"-ERR other\r\n:4\r\n"
    told = b"$1\r\n1\r\n" + TOLD.replace(b"MOVED", kind) + b"-ERR other\r\n:4\r\n"
    (
        script()
        >> ("from_client", GET * 4)
        << ("to_server", GET * 4)
        >> ("from_server", answers)
        << ("to_client", told)
    ).play_at_every_split()


@pytest.mark.parametrize(
    "payload", [b"-MOVED 1 a:1", b"\r\n-MOVED 1 a:1\r\n", b"-ASK 2 b:2\r\n", b"-"]
)
def test_a_payload_with_the_words_of_a_redirect_passes_as_it_is(payload: bytes) -> None:
    frame = b"$%d\r\n%b\r\n" % (len(payload), payload)
    nested = b"*2\r\n" + frame + b"-ERR in a transaction\r\n"
    answers = frame + nested + frame
    (
        script()
        >> ("from_client", GET * 3)
        << ("to_server", GET * 3)
        >> ("from_server", answers)
        << ("to_client", answers)
    ).play_at_every_split()


def test_errors_that_are_no_redirects_pass_as_they_are() -> None:
    answers = b"-WRONGTYPE no\r\n-MOVE\r\n-ASKING x\r\n-CLUSTERDOWN The cluster is down\r\n"
    (
        script()
        >> ("from_client", GET * 4)
        << ("to_server", GET * 4)
        >> ("from_server", answers)
        << ("to_client", answers)
    ).play_at_every_split()


def test_a_reply_that_names_nodes_is_given_as_the_gateway_tells_it() -> None:
    (
        script()
        >> ("from_client", GET + SLOTS + GET)
        << ("to_server", GET + SLOTS + GET)
        >> ("from_server", b"$-1\r\n" + NODES + b"$1\r\n1\r\n")
        << ("to_client", b"$-1\r\n$5\r\nSLOTS\r\n$1\r\n1\r\n")
    ).play_at_every_split()


def test_a_refused_question_for_nodes_is_answered_as_the_server_did() -> None:
    refused = b"-NOPERM this user has no permissions\r\n"
    (
        script()
        >> ("from_client", SLOTS)
        << ("to_server", SLOTS)
        >> ("from_server", refused)
        << ("to_client", refused)
    ).play_at_every_split()


def test_nodes_are_not_named_in_a_transaction_either() -> None:
    sent = encode("MULTI") + SLOTS + GET + encode("EXEC")
    (
        script()
        >> ("from_client", sent)
        << ("to_server", sent)
        >> ("from_server", OK + QUEUED * 2 + b"*2\r\n" + NODES + b"$-1\r\n")
        << ("to_client", OK + QUEUED * 2 + b"*2\r\n$5\r\nSLOTS\r\n$-1\r\n")
    ).play_at_every_split()


def test_readonly_is_replayed_and_asking_is_not() -> None:
    for sent, wanted in (
        ([b"READONLY"], encode("READONLY")),
        ([b"READONLY", b"READWRITE"], b""),
        ([b"ASKING"], b""),
    ):
        session = made(Recorder())
        for word in sent:
            session.from_client(encode(word), 0.0)
            session.from_server(OK, 0.0)
        assert replayed(session)[0] == wanted
    session.from_client(encode("READONLY"), 0.0)
    session.from_server(b"-ERR This instance has cluster support disabled\r\n", 0.0)
    assert replayed(session)[0] == b""


def test_sharded_channels_are_replayed_slot_by_slot() -> None:
    out = Recorder()
    session = made(out)
    for name in ("one", "two"):
        session.from_client(encode("SSUBSCRIBE", name), 0.0)
        session.from_server(b"*3\r\n$10\r\nssubscribe\r\n$3\r\n%b\r\n:1\r\n" % name.encode(), 0.0)
    stages = session.replay_stages()
    assert [stage.shard_channels for stage in stages] == [(b"one",), (b"two",)]
    told = session.leave_channels((b"one",))
    assert told == b"*3\r\n$12\r\nsunsubscribe\r\n$3\r\none\r\n:1\r\n"
    assert [stage.shard_channels for stage in session.replay_stages()] == [(b"two",)]


@pytest.mark.parametrize("third", [False, True])
def test_a_subscription_that_a_node_ends_is_not_replayed(third: bool) -> None:
    """The node says so when the slot moves away; nobody asked."""

    def told(kind: bytes, name: bytes, count: int) -> bytes:
        mark = b">" if third else b"*"
        return b"%b3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:%d\r\n" % (
            *(mark, len(kind), kind, len(name), name, count),
        )

    message = b"*3\r\n$8\r\nsmessage\r\n$3\r\ntwo\r\n$12\r\nsunsubscribe\r\n"
    message = message.replace(b"*", b">") if third else message
    ask = encode("SSUBSCRIBE", "one") + encode("SSUBSCRIBE", "two")
    one = told(b"ssubscribe", b"one", 1) + told(b"ssubscribe", b"two", 2)
    ended = told(b"sunsubscribe", b"one", 1)
    sessions: list[Session] = []

    def remembered(out: Recorder) -> Session:
        sessions.append(made(out))
        sessions[-1].state.protocol = 3 if third else 2
        return sessions[-1]

    (
        Script(remembered)
        >> ("from_client", ask)
        << ("to_server", ask)
        >> ("from_server", one)
        << ("to_client", one)
        >> ("from_server", message + ended + message)
        << ("to_client", message + ended + message)
    ).play_at_every_split()
    for session in sessions:
        assert session.state.channels == {b"SSUBSCRIBE two"}
        assert session.opaque is None


def test_a_script_that_another_node_has_to_run_changes_nothing() -> None:
    evaluated = encode("EVAL", "return 1", "1", "k")
    (
        script()
        >> ("from_client", evaluated)
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", evaluated)
        >> ("from_server", MOVED)
        << ("to_client", TOLD.replace(b"gateway", b"doubted"))
    ).play_at_every_split()


def test_a_slot_that_was_emptied_counts_as_a_change_of_every_key() -> None:
    """CLUSTER FLUSHSLOT of Valkey 9 names no key."""
    asked = encode("CLUSTER", "FLUSHSLOT", "7")
    (
        script()
        >> ("from_client", asked)
        << ("log_intents", [], Barrier("flushdb", (0,)))
        << ("to_server", asked)
        >> ("from_server", OK)
        << ("to_client", OK)
        << ("journal", [], Barrier("flushdb", (0,)))
    ).play_at_every_split()
    refused = b"-ERR Invalid slot\r\n"
    (
        script()
        >> ("from_client", asked)
        << ("log_intents", [], Barrier("flushdb", (0,)))
        << ("to_server", asked)
        >> ("from_server", refused)
        << ("to_client", refused)
    ).play_at_every_split()


def test_a_session_that_leaves_a_cluster_is_a_plain_relay_again() -> None:
    out = Recorder()
    session = made(out)
    session.adopt_leg(None, Dialect.PLAIN)
    assert session.parts.replies.edits == 0
    session.from_client(GET, 0.0)
    session.from_server(MOVED, 0.0)
    assert out.take()[-1] == ("to_client", MOVED)
    session.adopt_leg(None, Dialect.CLUSTER)
    session.from_client(GET, 0.0)
    session.from_server(MOVED, 0.0)
    assert out.take()[-1] == ("to_client", TOLD)
