"""State follows replies, not requests: a session believes what the authority answered (principle
1).
"""

from __future__ import annotations

import pytest

from exodus.control.changes import Barrier
from exodus.control.gap_reasons import NO_ANSWER, REPLACED, SCRIPTS, UNMATCHED
from exodus.gateway.session import Session
from exodus.plan.bounds import (
    REPLAYED_BYTES_MAX,
    RETAINED_ARG_BYTES,
    STREAM_FRAME_BYTES,
    SUBSCRIPTIONS_BYTES_MAX,
    TRANSACTION_BYTES_MAX,
)
from exodus.plan.vocabulary import JournalMode
from exodus.resp.encode import encode
from tests.support.script import Recorder, Script, replayed
from tests.unit.exodus.gateway.test_carried import confirmation
from tests.unit.exodus.gateway.test_session import GET_K, NIL, OK, QUEUED, SET_K, make, orders

ERROR = b"-NOPERM no\r\n"
REPLY_OFF, REPLY_SKIP, REPLY_ON = (
    encode("CLIENT", "REPLY", word) for word in ("OFF", "SKIP", "ON")
)


def told(session: Session, *steps: tuple[bytes, bytes]) -> list[tuple[object, ...]]:
    """Play requests with their replies; return all calls of the session."""
    for request, reply in steps:
        session.from_client(request, 0.0)
        session.from_server(reply, 0.0)
    return session.out.take()


def marked(calls: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    return [call for call in calls if call[0] in ("journal", "gap", "learn_command")]


def test_with_replies_off_each_write_still_has_its_reply() -> None:
    """The gateway asks the authority for replies all the same, and drops them."""
    (
        Script(make())
        >> ("from_client", REPLY_OFF)
        << ("to_server", REPLY_ON)
        >> ("from_server", OK)
        >> ("from_client", SET_K)
        << ("log_intents", [(0, b"k")], None)
        << ("to_server", SET_K)
        >> ("from_server", OK)
        << ("journal", [(0, b"k")], None)
        >> ("from_client", encode("FLUSHALL"))
        << ("log_intents", [], Barrier("flushall"))
        << ("to_server", encode("FLUSHALL"))
        >> ("from_server", OK)
        << ("journal", [], Barrier("flushall"))
        >> ("from_client", REPLY_ON)
        << ("to_server", REPLY_ON)
        >> ("from_server", OK)
        << ("to_client", OK)
        >> ("from_client", GET_K)
        << ("to_server", GET_K)
        >> ("from_server", NIL)
        << ("to_client", NIL)
    ).play_at_every_split()


def test_a_skipped_reply_is_one_reply() -> None:
    (
        Script(make())
        >> ("from_client", REPLY_SKIP)
        << ("to_server", REPLY_ON)
        >> ("from_server", OK)
        >> ("from_client", GET_K)
        << ("to_server", GET_K)
        >> ("from_server", b"$3\r\nabc\r\n")
        >> ("from_client", GET_K)
        << ("to_server", GET_K)
        >> ("from_server", b"$3\r\nabc\r\n")
        << ("to_client", b"$3\r\nabc\r\n")
    ).play_at_every_split()


@pytest.mark.parametrize("words", [("REPLY", "OFF", "x"), ("REPLY", "BAD")])
def test_a_refused_client_reply_silences_nothing(words: tuple[str, ...]) -> None:
    session = Session(Recorder(), orders())
    calls = told(session, (encode("CLIENT", *words), b"-ERR wrong\r\n"), (GET_K, NIL))
    assert [call for call in calls if call[0] == "to_client"] == [
        ("to_client", b"-ERR wrong\r\n"),
        ("to_client", NIL),
    ]
    session = Session(Recorder(), orders())
    calls = told(session, (REPLY_OFF, ERROR), (GET_K, NIL))
    assert [call for call in calls if call[0] == "to_client"] == [
        ("to_client", ERROR),
        ("to_client", NIL),
    ]


def test_a_long_reply_that_nobody_wants_is_not_kept() -> None:
    session = Session(Recorder(), orders())
    told(session, (REPLY_OFF, OK))
    session.from_client(GET_K, 0.0)
    session.from_server(b"$400000\r\n" + b"x" * 200_000, 0.0)
    assert not session.idle
    session.from_server(b"x" * 200_000 + b"\r\n", 0.0)
    assert session.idle
    assert told(session, (REPLY_ON, OK), (GET_K, NIL))[-1] == ("to_client", NIL)


@pytest.mark.parametrize("protocol", [2, 3])
def test_messages_come_through_the_silence_where_the_server_lets_them(protocol: int) -> None:
    push = protocol == 3
    for covers in (False, True):
        session = Session(Recorder(), orders(silence_covers_pushes=covers))
        session.state.protocol = protocol
        told(session, (encode("SUBSCRIBE", "a"), confirmation(b"subscribe", b"a", 1, push=push)))
        told(session, (REPLY_OFF, OK))
        message = b"%b3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n" % (b">" if push else b"*")
        session.from_server(message, 0.0)
        assert session.out.take() == ([] if covers else [("to_client", message)])


def test_a_refused_subscribe_is_no_subscription() -> None:
    for protocol in (2, 3):
        session = Session(Recorder(), orders())
        session.state.protocol = protocol
        told(session, (encode("SUBSCRIBE", "a", "b"), ERROR))
        assert not session.state.channels
        assert session.idle
        assert replayed(session)[0] == b""
        assert marked(told(session, (SET_K, OK))) == [("journal", [(0, b"k")], None)]


def test_a_subscribe_after_a_refused_hello_is_confirmed_in_the_old_protocol() -> None:
    session = Session(Recorder(), orders())
    session.from_client(encode("HELLO", 3) + encode("SUBSCRIBE", "a", "b") + SET_K, 0.0)
    session.from_server(b"-NOPROTO no\r\n" + confirmation(b"subscribe", b"a", 1), 0.0)
    assert session.writes_in_flight == 1
    session.from_server(confirmation(b"subscribe", b"b", 2), 0.0)
    assert session.writes_in_flight == 1
    session.from_server(b"-ERR only\r\n", 0.0)
    assert session.idle
    assert session.state.channels == {b"SUBSCRIBE a", b"SUBSCRIBE b"}


def test_only_what_was_answered_without_an_error_is_shown_to_the_comparer() -> None:
    """Compare runs it with Exodus's rights. It knows some refusals by their code, and not all."""
    found = orders()
    found.pick(shadow_below=2**32)
    for reply, shown in ((OK, True), (b"-WRONGTYPE no\r\n", False), (b"-ERR syntax\r\n", False)):
        session = Session(Recorder(), found)
        calls = told(session, (SET_K, reply))
        assert any(call[0] == "shadow" for call in calls) is shown
        session = Session(Recorder(), found)
        calls = told(session, (GET_K, reply))
        assert any(call[0] == "shadow" for call in calls) is shown


def test_what_a_session_is_subscribed_to_has_a_bound_in_bytes() -> None:
    """A server keeps a channel's name once for many subscribers, a gateway for each."""
    session, size = Session(Recorder(), orders()), SUBSCRIPTIONS_BYTES_MAX // 10
    names = [b"%d" % number + b"x" * size for number in range(20)]
    for number, name in enumerate(names, 1):
        told(session, (encode("SUBSCRIBE", name), confirmation(b"subscribe", name, number)))
    assert sum(map(len, session.state.channels)) <= SUBSCRIPTIONS_BYTES_MAX
    assert session.cannot_switch == "more subscriptions than are tracked"
    leaving = Session(Recorder(), orders())
    for name in names * 2:  # one after the other, with an end each
        told(leaving, (encode("SUBSCRIBE", name), confirmation(b"subscribe", name, 1)))
        told(leaving, (encode("UNSUBSCRIBE", name), confirmation(b"unsubscribe", name, 0)))
    assert leaving.cannot_switch is None
    assert leaving.state.channel_bytes == 0


def test_a_long_session_command_is_not_kept_for_a_replay() -> None:
    session, long = Session(Recorder(), orders()), b"x" * REPLAYED_BYTES_MAX
    told(session, (encode("CLIENT", "KILL", "ID", long), b":0\r\n"))
    assert session.cannot_switch is None  # it sets nothing
    told(session, (encode("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", long), OK))
    assert session.cannot_switch == "a session command that is longer than is kept"
    assert session.state.replay == {}


def test_a_list_that_begins_with_message_is_a_reply() -> None:
    """Also while a SUBSCRIBE is in flight behind it."""
    session = Session(Recorder(), orders())
    session.from_client(GET_K + SET_K + encode("SUBSCRIBE", "a"), 0.0)
    session.from_server(b"*2\r\n$7\r\nmessage\r\n$1\r\na\r\n", 0.0)
    assert session.writes_in_flight == 1
    session.from_server(OK, 0.0)
    assert session.writes_in_flight == 0


def test_an_unsubscribe_of_everything_has_one_confirmation_a_channel() -> None:
    session = Session(Recorder(), orders())
    session.from_client(encode("SUBSCRIBE", "a", "b") + encode("UNSUBSCRIBE") + SET_K, 0.0)
    parts = [
        confirmation(b"subscribe", b"a", 1),
        confirmation(b"subscribe", b"b", 2),
        confirmation(b"unsubscribe", b"b", 1),
    ]
    session.from_server(b"".join(parts), 0.0)
    assert session.writes_in_flight == 1
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n"
    session.from_server(message + confirmation(b"unsubscribe", b"a", 0), 0.0)
    assert session.writes_in_flight == 1
    session.from_server(OK, 0.0)
    assert session.idle
    assert not session.state.channels


def test_nothing_goes_into_the_middle_of_a_long_request_that_blocks() -> None:
    """The question for our own id went there, and the server closed the connection."""
    for size in (STREAM_FRAME_BYTES + 1, RETAINED_ARG_BYTES + 1):
        session = Session(Recorder(), orders())
        request = encode("BLPOP", b"k" * size, 0)
        session.from_client(request[:-10], 0.0)
        session.from_client(request[-10:], 0.0)
        sent = b"".join(call[1] for call in session.out.take() if call[0] == "to_server")
        assert sent == request
        why = session.unblock(reads=False)
        assert why is not None  # it cannot be ended, so a switch ends the session
        assert ("longer than is kept" in why) is (size > RETAINED_ARG_BYTES)


def test_the_question_for_our_own_id_never_reaches_a_client() -> None:
    """A message may come between an UNSUBSCRIBE and a pop that is pipelined behind it."""
    session = Session(Recorder(), orders())
    told(session, (encode("SUBSCRIBE", "a"), confirmation(b"subscribe", b"a", 1)))
    session.from_client(encode("UNSUBSCRIBE") + encode("BLPOP", "q", 1), 0.0)
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n"
    ours = b":77\r\n" if ("to_server", encode("CLIENT", "ID")) in session.out.take() else b""
    session.from_server(message + confirmation(b"unsubscribe", b"a", 0) + ours + NIL, 0.0)
    received = b"".join(call[1] for call in session.out.take() if call[0] == "to_client")
    assert received == message + confirmation(b"unsubscribe", b"a", 0) + NIL


def test_a_refused_id_is_asked_for_again() -> None:
    session = Session(Recorder(), orders())
    told(session, (encode("BLPOP", "q", 1), b"-ERR not now\r\n" + NIL))
    assert ("to_server", encode("CLIENT", "ID")) in told(
        session, (encode("BLPOP", "q", 1), b":5\r\n" + NIL)
    )
    assert session.parts.leg.client_id == 5


def test_reset_ends_resp3_and_every_subscription() -> None:
    session = Session(Recorder(), orders())
    told(
        session,
        (encode("HELLO", 3), b"%0\r\n"),
        (encode("SUBSCRIBE", "a"), confirmation(b"subscribe", b"a", 1, push=True)),
    )
    told(session, (encode("RESET"), b"+RESET\r\n"))
    assert (session.state.protocol, session.state.channels) == (2, set())
    calls = told(
        session,
        (
            encode("SUBSCRIBE", "a", "b"),
            confirmation(b"subscribe", b"a", 1) + confirmation(b"subscribe", b"b", 2),
        ),
    )
    assert not marked(calls)
    assert session.idle


def test_a_failed_select_in_a_transaction_changes_no_database() -> None:
    """Requests behind it ran in the session's database."""
    session = Session(Recorder(), orders())
    session.from_client(encode("MULTI") + encode("SELECT", 99) + SET_K + encode("EXEC"), 0.0)
    session.from_server(
        OK + QUEUED + QUEUED + b"*2\r\n-ERR DB index is out of range\r\n+OK\r\n", 0.0
    )
    assert session.out.take()[-1] == ("journal", [(0, b"k")], None)
    assert session.state.db == 0
    session.from_client(encode("MULTI") + encode("SELECT", 3) + SET_K + encode("EXEC"), 0.0)
    session.from_server(OK + QUEUED + QUEUED + b"*2\r\n+OK\r\n+OK\r\n", 0.0)
    assert session.out.take()[-1] == ("journal", [(3, b"k")], None)
    assert session.state.db == 3


def test_what_was_to_be_queued_in_a_refused_multi_was_executed() -> None:
    session = Session(Recorder(), orders())
    session.from_client(encode("MULTI") + encode("SELECT", 2) + SET_K + encode("EXEC"), 0.0)
    session.from_server(ERROR + OK + OK + b"-ERR EXEC without MULTI\r\n", 0.0)
    assert ("journal", [(2, b"k")], None) in session.out.take()
    assert session.state.db == 2


def test_subscriptions_in_a_transaction_cannot_be_counted_and_are_a_gap_at_once() -> None:
    session = Session(Recorder(), orders())
    session.from_client(encode("MULTI") + encode("SUBSCRIBE", "a", "b") + encode("EXEC"), 0.0)
    session.from_server(OK + QUEUED + b"*1\r\n" + confirmation(b"subscribe", b"a", 1), 0.0)
    assert ("gap", UNMATCHED) in session.out.take()
    session.from_client(SET_K, 0.0)
    assert marked(session.out.take())


def test_a_reply_that_nobody_asked_for_is_a_gap() -> None:
    session = Session(Recorder(), orders())
    session.from_server(OK, 0.0)
    assert marked(session.out.take()) == [("gap", UNMATCHED)]


def test_a_refused_monitor_watches_nothing() -> None:
    session = Session(Recorder(), orders())
    told(session, (encode("MONITOR"), ERROR))
    assert session.opaque is None
    assert marked(told(session, (SET_K, OK))) == [("journal", [(0, b"k")], None)]
    told(session, (encode("MONITOR"), OK))
    assert session.parts.unread.streaming
    session.from_server(b'+1.2 [0 1] "GET" "k"\r\n', 0.0)
    assert not marked(session.out.take())
    told(session, (encode("RESET"), b"+RESET\r\n"))
    session.from_client(SET_K, 0.0)
    assert marked(session.out.take())


def test_barriers_of_a_transaction_stand_in_the_intent_log() -> None:
    session = Session(Recorder(), orders())
    session.from_client(encode("MULTI") + encode("FLUSHALL"), 0.0)
    session.from_server(OK + QUEUED, 0.0)
    session.out.take()
    session.from_client(encode("EXEC"), 0.0)
    assert session.out.take()[0] == ("log_intents", [], Barrier("flushall"))
    session.log_pending()
    assert session.out.take() == [("log_intents", [], Barrier("flushall"))]
    assert session.unanswered().barriers == [Barrier("flushall")]


@pytest.mark.parametrize("number", ["70000", "9" * 5000, str(2**63), "-1", "01"])
def test_databases_that_no_server_has_do_no_harm(number: str) -> None:
    session = Session(Recorder(), orders())
    for request in (
        encode("SELECT", number),
        encode("MOVE", "k", number),
        encode("EVAL", "x", number, "k"),
        encode("BLPOP", "q", number),
    ):
        assert not marked(
            told(
                session,
                (
                    request,
                    b"-ERR out of range\r\n"
                    if b"BLPOP" not in request
                    else b":1\r\n-ERR timeout\r\n",
                ),
            )
        )[1:]
    assert session.state.db == 0
    session.from_client(encode("SELECT", number) + SET_K, 0.0)
    session.from_server(b"-ERR out of range\r\n" + OK, 0.0)
    assert marked(session.out.take()) == [("journal", [(0, b"k")], None)]


def test_scripts_are_a_gap_where_only_the_journal_hears_of_writes() -> None:
    session_orders = orders(scripts_unseen=True)
    session = Session(Recorder(), session_orders)
    run = encode("EVAL", "x", 1, "k")
    assert marked(told(session, (run, b":1\r\n"))) == [
        ("gap", SCRIPTS),
        ("journal", [(0, b"k")], None),
    ]
    assert not marked(told(session, (run, b"-NOAUTH Authentication required.\r\n")))
    told(session, (encode("MULTI"), OK), (run, QUEUED))
    assert ("gap", SCRIPTS) in told(session, (encode("EXEC"), b"*1\r\n:1\r\n"))
    session_orders.scripts_unseen = False
    assert marked(told(session, (run, b":1\r\n"))) == [("journal", [(0, b"k")], None)]


def test_a_command_that_replaces_the_data_is_a_gap() -> None:
    session = Session(Recorder(), orders())
    assert marked(told(session, (encode("REPLICAOF", "h", 1), OK))) == [("gap", REPLACED)]
    assert not marked(
        told(session, (encode("REPLICAOF", "NO", "ONE"), OK), (encode("REPLICAOF", "h", 1), ERROR))
    )


def test_an_unknown_command_that_was_executed_is_looked_up() -> None:
    session = Session(Recorder(), orders())
    request = encode("XHSET", "h", "f", "v")
    assert marked(told(session, (request, b":1\r\n"))) == [
        ("learn_command", [b"XHSET", b"h", b"f", b"v"], 0)
    ]
    assert not marked(told(session, (request, b"-ERR unknown command 'XHSET'\r\n")))


def test_texts_of_scripts_are_noted_when_the_authority_has_taken_them() -> None:
    session_orders = orders()
    session = Session(Recorder(), session_orders)
    told(
        session,
        (encode("EVAL", "return 1", 0), b":1\r\n"),
        (encode("EVAL", "no", 0), b"-ERR Error compiling script\r\n"),
    )
    told(
        session,
        (encode("SCRIPT", "LOAD", "return 2"), b"$40\r\n" + b"a" * 40 + b"\r\n"),
        (encode("EVALSHA", "f" * 40, 0), b":1\r\n"),
    )
    assert session_orders.scripts.take() == [b"return 1", b"return 2"]
    assert session_orders.scripts.asked == {b"f" * 40}


def test_a_long_write_in_a_transaction_is_replayed_whole() -> None:
    session = Session(Recorder(), orders())
    long = encode("SET", "k", b"x" * 200_000)
    session.from_client(encode("MULTI") + long[:150_000], 0.0)
    session.from_client(long[150_000:], 0.0)
    session.from_server(OK + QUEUED, 0.0)
    assert session.cannot_switch is None
    assert replayed(session)[0] == encode("MULTI") + long
    session.from_client(encode("SET", "k", b"x" * TRANSACTION_BYTES_MAX), 0.0)
    session.from_server(QUEUED, 0.0)
    assert session.cannot_switch is not None


def test_a_request_that_is_announced_too_long_is_forwarded_at_once() -> None:
    """The server says at once that it takes no such value."""
    session = Session(Recorder(), orders())
    begun = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870913\r\n"
    session.from_client(begun, 0.0)
    assert session.out.take() == [("to_server", begun)]
    session_orders = orders(hold=True)
    session = Session(Recorder(), session_orders)
    session.from_client(begun, 0.0)
    assert session.out.take() == []


def test_the_login_that_a_hello_brought_is_kept_when_a_later_hello_brings_none() -> None:
    session = Session(Recorder(), orders())
    told(
        session,
        (encode("HELLO", 3, "AUTH", "u", "p", "SETNAME", "me"), b"%0\r\n"),
        (encode("HELLO", 2), b"*0\r\n"),
    )
    assert session.state.name == b"me"
    script, _, _ = replayed(session)
    assert script == encode("AUTH", "u", "p") + encode("CLIENT", "SETNAME", "me") + encode(
        "HELLO", 2
    )


def test_a_write_of_unknown_keys_is_in_the_intent_log_before_it_is_forwarded() -> None:
    """A killed gateway opens no gap for what it had forwarded."""
    session = Session(Recorder(), orders(scripts_unseen=True))
    for request, why in (
        (encode("EVAL", "x", 0), SCRIPTS),
        (encode("XHSET", "h", "f", "v"), NO_ANSWER),
        (encode("REPLICAOF", "h", 1), REPLACED),
        (encode("FT.DROP", "index"), REPLACED),
    ):
        session.from_client(request, 0.0)
        assert session.out.take() == [("log_gap", why), ("to_server", request)]
        session.log_pending()  # the old segments are about to go
        assert session.out.take() == [("log_gap", why)]
        session.from_server(b"-NOAUTH Authentication required.\r\n", 0.0)
        assert not marked(session.out.take())
    for others in (
        orders(scripts_unseen=False),  # a feed reports it
        orders(scripts_unseen=True, login_needed=True),  # a stranger executes nothing
        orders(scripts_unseen=True, journal=JournalMode.SAMPLE),
    ):
        session = Session(Recorder(), others)
        session.from_client(encode("EVAL", "x", 0), 0.0)
        session.log_pending()
        assert session.out.take() == [("to_server", encode("EVAL", "x", 0))]
        assert not session.unanswered().gaps


def test_an_unknown_command_is_looked_up_in_the_database_that_its_transaction_selected() -> None:
    session = Session(Recorder(), orders())
    request = encode("XHSET", "h", "f", "v")
    for done, dbs in ((b"*3\r\n+OK\r\n:1\r\n+OK\r\n", [3]), (b"*3\r\n-ERR\r\n:1\r\n+OK\r\n", [0])):
        session.from_client(encode("SELECT", 0) + encode("MULTI") + encode("SELECT", 3), 0.0)
        session.from_client(request + encode("SELECT", 5) + encode("EXEC"), 0.0)
        session.from_server(OK + OK + QUEUED * 3 + done, 0.0)
        assert marked(session.out.take()) == [
            ("learn_command", [b"XHSET", b"h", b"f", b"v"], db) for db in dbs
        ]
        assert session.state.db == 5


def test_a_command_of_a_module_that_hides_its_keys_is_a_gap() -> None:
    session = Session(Recorder(), orders())
    request = encode("FT.DROP", "index")
    assert marked(told(session, (request, OK))) == [("gap", REPLACED)]


@pytest.mark.parametrize("name", ["SCRIPT", "FUNCTION"])
def test_code_is_not_changed_while_writes_are_held(name: str) -> None:
    """What is loaded after the switch has looked at the code would be missing on the new side."""
    session_orders = orders()
    session = Session(Recorder(), session_orders)
    session.from_client(encode(name, "LOAD", "x"), 0.0)
    assert session.writes_in_flight == 1
    session.from_server(OK, 0.0)
    session_orders.hold = True
    session.out.take()
    for word in ("KILL", "LIST"):
        session.from_client(encode(name, word), 0.0)
        assert session.out.take() == [("to_server", encode(name, word))]
    session.from_client(encode(name, "LOAD", "y"), 0.0)
    assert not session.out.take()
    session_orders.hold = False
    session.from_server(OK * 2, 0.0)
    session.out.take()
    session.thaw(0.0)
    assert ("to_server", encode(name, "LOAD", "y")) in session.out.take()
