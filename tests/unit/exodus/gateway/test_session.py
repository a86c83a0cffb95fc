"""The session's rules, each at every byte split."""

from __future__ import annotations

import pytest

from exodus.commands.table import Command, CommandTable
from exodus.control.changes import Barrier
from exodus.control.gap_reasons import UNREADABLE
from exodus.gateway.orders import Orders
from exodus.gateway.session import Session
from exodus.plan.bounds import STREAM_FRAME_BYTES
from exodus.plan.vocabulary import JournalMode
from exodus.resp.encode import encode
from exodus.telemetry.counters import NoKeyStatistics, Telemetry
from tests.support.script import Recorder, Script, replayed

OK = b"+OK\r\n"
QUEUED = b"+QUEUED\r\n"
NIL = b"*-1\r\n"
_WRITES = {
    b"SET": (1, 1),
    b"DEL": (1, -1),
    b"BLPOP": (1, -2),
    b"LPUSH": (1, 1),
    b"FLUSHALL": (0, 0),
    b"FLUSHDB": (0, 0),
    b"MOVE": (1, 1),
    b"EVAL": (0, 0),
    b"EVALSHA": (0, 0),
    b"FT.DROP": (0, 0),  # of a module
}
_READS = (
    b"GET",
    b"HSCAN",
    b"RESET",
    b"UNWATCH",
    b"UNSUBSCRIBE",
    b"SCRIPT",
    b"FUNCTION",
    b"REPLICAOF",
    b"PING",
    b"MULTI",
    b"EXEC",
    b"DISCARD",
    b"WATCH",
    b"SELECT",
    b"AUTH",
    b"HELLO",
    b"CLIENT",
    b"SUBSCRIBE",
    b"MONITOR",
    b"SCAN",
    b"XREAD",
)


def orders(**more: object) -> Orders:
    found = Orders(
        CommandTable(
            [
                Command(name, write=True, first=first, last=last)
                for name, (first, last) in _WRITES.items()
            ]
            + [Command(name, write=False, first=1, last=1) for name in _READS]
        ),
        Telemetry(NoKeyStatistics()),
    )
    found.journal = JournalMode.ALL
    for name, value in more.items():
        setattr(found, name, value)
    return found


def make(**more: object):
    return lambda out: Session(out, orders(**more))


SET_K = encode("SET", "k", "v")
GET_K = encode("GET", "k")


def test_a_key_is_journalled_only_after_the_authority_has_answered() -> None:
    """Race rule 1: a sync that reads the entry reads the write."""
    (
        Script(make())
        >> ("from_client", SET_K)
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", SET_K)
        >> ("from_server", OK)
        << ("to_client", OK)
        << ("journal", [(0, b"k")], None)
    ).play_at_every_split()


def test_a_refused_request_changes_nothing() -> None:
    error = b"-NOPERM no\r\n"
    (
        Script(make())
        >> ("from_client", SET_K)
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", SET_K)
        >> ("from_server", error)
        << ("to_client", error)
    ).play_at_every_split()


def test_the_error_of_a_script_is_journalled() -> None:
    """It may have written before it failed."""
    run, error = encode("EVAL", "x", 1, "k"), b"-ERR oops script: 1, on @user_script:1.\r\n"
    (
        Script(make())
        >> ("from_client", run)
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", run)
        >> ("from_server", error)
        << ("to_client", error)
        << ("journal", [(0, b"k")], None)
        >> ("from_client", run)
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", run)
        >> ("from_server", b"-NOAUTH Authentication required.\r\n")
        << ("to_client", b"-NOAUTH Authentication required.\r\n")
    ).play_at_every_split()


def test_reads_leave_no_trace() -> None:
    (
        Script(make())
        >> ("from_client", GET_K)
        << ("to_server", GET_K)
        >> ("from_server", b"$1\r\nv\r\n")
        << ("to_client", b"$1\r\nv\r\n")
    ).play_at_every_split()


def test_a_transaction_is_journalled_at_exec() -> None:
    script = Script(make())
    script >> ("from_client", encode("MULTI")) << ("to_server", encode("MULTI"))
    script >> ("from_server", OK) << ("to_client", OK)
    script >> ("from_client", SET_K) << ("log_intents", [(0, b"k")], None) << ("to_server", SET_K)
    script >> ("from_server", QUEUED) << ("to_client", QUEUED)
    (
        script
        >> ("from_client", encode("EXEC"))
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", encode("EXEC"))
    )
    (
        script
        >> ("from_server", b"*1\r\n+OK\r\n")
        << ("to_client", b"*1\r\n+OK\r\n")
        << ("journal", [(0, b"k")], None)
    )
    script.play_at_every_split()


def test_an_aborted_transaction_changes_nothing() -> None:
    script = Script(make())
    data = encode("MULTI") + SET_K + encode("EXEC")
    script >> ("from_client", encode("MULTI")) << ("to_server", encode("MULTI"))
    script >> ("from_client", SET_K) << ("log_intents", [(0, b"k")], None) << ("to_server", SET_K)
    (
        script
        >> ("from_client", encode("EXEC"))
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", encode("EXEC"))
    )
    script >> ("from_server", OK + QUEUED + NIL) << ("to_client", OK + QUEUED + NIL)
    script.play_at_every_split()
    assert data


def test_the_database_is_the_one_that_select_chose() -> None:
    script = Script(make())
    script >> ("from_client", encode("SELECT", 3)) << ("to_server", encode("SELECT", 3))
    script >> ("from_server", OK) << ("to_client", OK)
    script >> ("from_client", SET_K) << ("log_intents", [(3, b"k")], None) << ("to_server", SET_K)
    script >> ("from_server", OK) << ("to_client", OK) << ("journal", [(3, b"k")], None)
    script.play_at_every_split()


def test_while_a_select_is_unanswered_both_databases_are_noted() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(encode("SELECT", 3) + SET_K, 0.0)
    assert out.take()[0] == ("log_intents", [(0, b"k"), (3, b"k")], None)
    session.from_server(b"-ERR DB index is out of range\r\n" + OK, 0.0)
    assert out.take()[-1] == ("journal", [(0, b"k")], None)


@pytest.mark.parametrize("select_fails", [False, True])
def test_a_key_is_sampled_by_the_database_that_it_is_in(select_fails: bool) -> None:
    """A SELECT without a reply may fail, and then the write was in the database before it."""
    found, sampled = orders(journal=JournalMode.SAMPLE), set()
    found.pick(shadow_below=2**31, shadow_salt=7)
    answer = b"-ERR DB index is out of range\r\n" if select_fails else OK
    for number in range(100):
        out, key = Recorder(), b"k%d" % number
        session = Session(out, found)
        session.from_client(encode("SELECT", 3) + encode("SET", key, "v"), 0.0)
        session.from_server(answer + OK, 0.0)
        sampled.update(call[1][0] for call in out.take() if call[0] == "journal")
    db = 0 if select_fails else 3
    wanted = {(db, b"k%d" % number) for number in range(100) if found.sampled(db, b"k%d" % number)}
    assert sampled == wanted
    assert {(3 - db, key) for _, key in wanted} != {
        (3 - db, b"k%d" % number) for number in range(100) if found.sampled(3 - db, b"k%d" % number)
    }


def test_move_marks_both_databases_and_flush_is_a_barrier() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(encode("MOVE", "k", 2), 0.0)
    session.from_server(b":1\r\n", 0.0)
    assert ("journal", [(0, b"k"), (2, b"k")], None) in out.take()
    session.from_client(encode("FLUSHALL"), 0.0)
    assert ("log_intents", [], Barrier("flushall")) in out.take()
    session.from_server(OK, 0.0)
    assert ("journal", [], Barrier("flushall")) in out.take()


def test_a_held_write_waits_and_a_read_behind_it_too() -> None:
    """The client decides the order within its connection."""
    session_orders = orders(hold=True)
    out = Recorder()
    session = Session(out, session_orders)
    session.from_client(GET_K + SET_K + GET_K, 0.0)
    assert out.take() == [("to_server", GET_K)]
    session.from_server(b"$-1\r\n", 0.0)
    assert out.take() == [("to_client", b"$-1\r\n"), ("settled",)]
    session_orders.hold = False
    session.thaw(1.0)
    assert out.take() == [
        ("resume_client",),
        ("log_intents", [(0, b"k")], None),
        ("to_server", SET_K + GET_K),
    ]


def test_a_write_is_not_even_queued_under_a_hold() -> None:
    """The old side may be fenced. It would refuse to queue the write, and the new side would still
    run the transaction.
    """
    session_orders = orders(hold=True)
    out = Recorder()
    session = Session(out, session_orders)
    session.from_client(encode("MULTI") + GET_K + SET_K + encode("EXEC"), 0.0)
    assert out.take() == [("to_server", encode("MULTI") + GET_K)]
    session.from_server(OK + QUEUED, 0.0)
    session.freeze()
    assert replayed(session)[:2] == (encode("MULTI") + GET_K, 2)
    session.adopt_leg()
    session_orders.hold = False
    out.take()
    session.thaw(1.0)
    assert out.take()[-1] == ("to_server", SET_K + encode("EXEC"))


def test_a_held_exec_waits_and_its_queue_is_queued_again() -> None:
    session_orders = orders()
    out = Recorder()
    session = Session(out, session_orders)
    session.from_client(encode("MULTI") + SET_K, 0.0)
    session.from_server(OK + QUEUED, 0.0)
    session_orders.hold = True
    session.from_client(encode("EXEC"), 0.0)
    assert ("to_server", encode("MULTI") + SET_K) in out.take()
    assert session.waits
    session.freeze()
    out.take()
    assert session.idle
    script, expected, _ = replayed(session)
    assert (script, expected) == (encode("MULTI") + SET_K, 2)
    session.adopt_leg()
    session_orders.hold = False
    session.thaw(1.0)
    assert ("to_server", encode("EXEC")) in out.take()


def test_after_a_switch_a_watch_fails_its_exec() -> None:
    """The new server does not know the watched keys: EXEC must report a change."""
    out = Recorder()
    session = Session(out, orders())
    session.from_client(encode("WATCH", "k"), 0.0)
    session.from_server(OK, 0.0)
    session.freeze()
    session.adopt_leg()
    session.thaw(1.0)
    out.take()
    session.from_client(encode("MULTI") + SET_K + encode("EXEC"), 1.0)
    assert out.take()[-1] == ("to_server", encode("MULTI") + SET_K + encode("DISCARD"))
    session.from_server(OK + QUEUED + OK, 1.0)
    assert out.take() == [("to_client", OK + QUEUED + NIL)]


@pytest.mark.parametrize("waited_s", [0.0, 4.0])
def test_a_blocked_pop_is_ended_and_sent_again_with_the_time_left(waited_s: float) -> None:
    session_orders = orders()
    out = Recorder()
    session = Session(out, session_orders)
    session.from_client(encode("BLPOP", "q", 10), 0.0)
    assert out.take() == [
        ("to_server", encode("CLIENT", "ID")),
        ("log_intents", [(0, b"q")], None),
        ("to_server", encode("BLPOP", "q", 10)),
    ]
    session.from_server(b":77\r\n", 0.0)
    assert out.take() == []
    session_orders.hold = True
    assert session.unblock(reads=False) is None
    assert out.take() == [("unblock", 77)]
    session.from_server(NIL, waited_s)
    assert out.take() == [("settled",)]
    assert session.confirmed
    session_orders.hold = False
    session.thaw(waited_s)
    assert out.take()[-1] == ("to_server", encode("BLPOP", "q", b"%.3f" % (10 - waited_s)))


def test_a_pop_that_was_served_before_it_could_be_ended_is_delivered() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(encode("BLPOP", "q", 0), 0.0)
    session.from_server(b":77\r\n", 0.0)
    session.unblock(reads=False)
    out.take()
    served = b"*2\r\n$1\r\nq\r\n$1\r\nx\r\n"
    session.from_server(served, 1.0)
    assert out.take() == [("to_client", served), ("journal", [(0, b"q")], None)]


def test_session_state_is_replayed_in_its_order() -> None:
    out = Recorder()
    session = Session(out, orders())
    for command, reply in (
        (encode("HELLO", 3), b"%0\r\n"),
        (encode("AUTH", "u", "p"), OK),
        (encode("CLIENT", "SETNAME", "a"), OK),
        (encode("CLIENT", "SETNAME", "b"), OK),
        (encode("AUTH", "u", "wrong"), b"-WRONGPASS\r\n"),
        (encode("SELECT", 2), OK),
    ):
        session.from_client(command, 0.0)
        session.from_server(reply, 0.0)
    script, expected, _ = replayed(session)
    assert script == encode("AUTH", "u", "p") + encode("HELLO", 3) + encode(
        "CLIENT", "SETNAME", "b"
    ) + encode("SELECT", 2)
    assert expected == 4


def test_pushes_are_not_replies() -> None:
    script = Script(make())
    push = b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n"
    script >> ("from_client", SET_K) << ("log_intents", [(0, b"k")], None) << ("to_server", SET_K)
    script >> ("from_server", push) << ("to_client", push)
    script >> ("from_server", OK) << ("to_client", OK) << ("journal", [(0, b"k")], None)
    script.play_at_every_split()


def test_messages_between_replies_in_resp2_are_not_replies() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(encode("SUBSCRIBE", "a", "b"), 0.0)
    session.from_server(
        b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n", 0.0
    )
    session.from_server(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n", 0.0)
    assert not session.pending.count
    session.from_client(encode("PING"), 0.0)
    session.from_server(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", 0.0)
    assert not session.pending.count
    assert session.cannot_switch is None


def test_bytes_that_no_server_accepts_are_passed_on_unread() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(b"*1\r\n+bad\r\n", 0.0)
    assert out.take() == [("to_server", b"*1\r\n+bad\r\n")]
    assert session.opaque is not None
    assert not session.confirmed
    session.from_server(b"-ERR Protocol error\r\n", 0.0)
    assert out.take() == [("to_client", b"-ERR Protocol error\r\n")]
    assert session.confirmed
    session.from_client(b"more", 0.0)
    assert out.take() == [("to_server", b"more")]


def test_bytes_that_the_server_accepts_and_we_do_not_are_a_gap_from_the_first() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(b'ECHO "a"b\r\n' + SET_K, 0.0)
    assert not session.confirmed
    out.take()
    session.from_server(b"$2\r\nab\r\n" + OK, 0.0)
    assert ("gap", UNREADABLE) in out.take()
    session.from_client(SET_K, 0.0)
    assert out.take() == [("gap", UNREADABLE), ("to_server", SET_K)]


def test_unreadable_bytes_are_held_like_a_write() -> None:
    session_orders = orders(hold=True)
    out = Recorder()
    session = Session(out, session_orders)
    session.from_client(GET_K + b'ECHO "a"b\r\n' + SET_K, 0.0)
    assert out.take() == [("to_server", GET_K)]
    session_orders.hold = False
    session.thaw(1.0)
    assert out.take() == [("resume_client",), ("to_server", b'ECHO "a"b\r\n' + SET_K)]
    session_orders.hold = True
    session.from_client(SET_K, 1.0)
    assert out.take() == []


def test_a_long_request_is_forwarded_while_it_arrives_and_its_intent_before_its_end() -> None:
    out = Recorder()
    session = Session(out, orders())
    data = encode("SET", "k", b"x" * (4 * STREAM_FRAME_BYTES))
    for at in range(0, len(data), 10_000):
        session.from_client(data[at : at + 10_000], 0.0)
    calls = out.take()
    assert b"".join(call[1] for call in calls if call[0] == "to_server") == data
    assert calls[-2] == ("log_intents", [(0, b"k")], None)
    assert len(calls[-1][1]) <= 10_000


def test_what_had_no_answer_when_the_leg_was_lost_counts_as_changed() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(SET_K, 0.0)
    out.take()
    session.server_closed()
    assert out.take() == [("journal", [(0, b"k")], None), ("settled",)]


def test_a_password_is_in_no_repr() -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(encode("AUTH", "secret-word"), 0.0)
    assert "secret-word" not in repr(session)
    assert "secret-word" not in repr(session.pending.head)
