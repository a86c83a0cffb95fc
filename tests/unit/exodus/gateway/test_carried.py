"""The state that a session takes to another server, played at every byte split: subscriptions,
tracking, iterations.
"""

from __future__ import annotations

from typing import Any

import pytest

from exodus.gateway.session import Session
from exodus.plan.bounds import CURSOR_BITS
from exodus.resp.encode import encode
from exodus.resp.scanner import ReplyScanner
from tests.support.script import Recorder, Script, replayed
from tests.unit.exodus.gateway.test_session import OK, SET_K, make, orders

GET = encode("GET", "k")


def page(cursor: bytes, *keys: bytes) -> bytes:
    items = b"".join(b"$%d\r\n%b\r\n" % (len(key), key) for key in keys)
    return b"*2\r\n$%d\r\n%b\r\n*%d\r\n%b" % (len(cursor), cursor, len(keys), items)


def confirmation(kind: bytes, name: bytes, count: int, *, push: bool = False) -> bytes:
    return b"%b3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:%d\r\n" % (
        b">" if push else b"*",
        len(kind),
        kind,
        len(name),
        name,
        count,
    )


def _moved(session: Session) -> None:
    session.freeze()
    session.adopt_leg()
    session.thaw(9.0)


def _switched(session: Session) -> None:
    session.orders.tag += 1
    _moved(session)


def _tagged(tag: int, cursor: int) -> bytes:
    return b"%d" % (tag << CURSOR_BITS | cursor)


def test_an_iteration_begins_anew_on_the_new_server() -> None:
    """The old cursor means nothing there. From 0 on, the iteration returns every element that
    stays.
    """
    first, second = encode("SCAN", 0, "COUNT", 10), encode("SCAN", 17, "COUNT", 10)
    third = encode("SCAN", _tagged(1, 5), "COUNT", 10)
    (
        Script(make())
        >> ("from_client", first)
        << ("to_server", first)
        >> ("from_server", page(b"17", b"a"))
        << ("to_client", page(b"17", b"a"))
        >> ("switched", _switched)
        >> ("from_client", second)
        << ("to_server", encode("SCAN", 0, "COUNT", 10))
        >> ("from_server", page(b"5", b"a"))
        << ("to_client", page(_tagged(1, 5), b"a"))
        >> ("from_client", third)
        << ("to_server", encode("SCAN", 5, "COUNT", 10))
        >> ("from_server", page(b"0", b"b"))
        << ("to_client", page(b"0", b"b"))
    ).play_at_every_split()


def test_another_connection_of_the_pool_begins_a_moved_iteration_anew_too() -> None:
    """The cursor itself names its authority, so no session has to remember it."""
    session_orders, out = orders(), Recorder()
    session_orders.tag = 2
    other = Session(out, session_orders)
    for cursor, sent in (
        (b"17", b"0"),
        (_tagged(1, 17), b"0"),
        (_tagged(2, 17), b"17"),
        (b"0", b"0"),
        (b"junk", b"junk"),
        (b"9" * 30, b"9" * 30),
    ):
        other.from_client(encode("HSCAN", "h", cursor), 0.0)
        assert out.take() == [("to_server", encode("HSCAN", "h", sent))], cursor
    assert all(value < 2**53 for value in (255 << CURSOR_BITS | 2**CURSOR_BITS - 1,))


def test_a_long_page_is_passed_on_in_part_with_its_cursor_marked() -> None:
    session_orders, out = orders(), Recorder()
    session_orders.tag = 1
    session = Session(out, session_orders)
    session.from_client(encode("SCAN", 0) + GET, 0.0)
    out.take()
    found, wanted = page(b"7", *[b"k" * 90] * 40), page(_tagged(1, 7), *[b"k" * 90] * 40)
    session.from_server(found[:900], 0.0)
    assert out.take() == [("to_client", wanted[: 900 + len(wanted) - len(found)])]
    session.from_server(found[900:] + b"$1\r\nv\r\n", 0.0)
    assert out.take() == [("to_client", wanted[900 + len(wanted) - len(found) :] + b"$1\r\nv\r\n")]
    assert session.idle


def test_a_cursor_inside_a_transaction_is_marked_too() -> None:
    session_orders, out = orders(), Recorder()
    session_orders.tag = 1
    session = Session(out, session_orders)
    session.from_client(encode("MULTI") + encode("SCAN", 0) + GET + encode("EXEC"), 0.0)
    out.take()
    session.from_server(
        OK + b"+QUEUED\r\n" * 2 + b"*2\r\n" + page(b"7", b"a") + b"$1\r\nv\r\n", 0.0
    )
    assert out.take() == [
        (
            "to_client",
            OK + b"+QUEUED\r\n" * 2 + b"*2\r\n" + page(_tagged(1, 7), b"a") + b"$1\r\nv\r\n",
        )
    ]


def test_what_is_pipelined_around_a_rewritten_scan_keeps_its_order() -> None:
    session_orders, out = orders(), Recorder()
    session = Session(out, session_orders)
    session.from_client(encode("SCAN", 0), 0.0)
    session.from_server(page(b"9"), 0.0)
    _switched(session)
    out.take()
    session.from_client(SET_K + encode("SCAN", 9) + SET_K, 1.0)
    sent = b"".join(call[1] for call in out.take() if call[0] == "to_server")
    assert sent == SET_K + encode("SCAN", 0) + SET_K


@pytest.mark.parametrize("protocol", [2, 3])
def test_subscriptions_are_made_again_and_their_confirmations_told_from_messages(
    protocol: int,
) -> None:
    out = Recorder()
    session = Session(out, orders())
    push = protocol == 3
    session.from_client(encode("HELLO", protocol), 0.0)
    session.from_server(b"%0\r\n" if push else b"*0\r\n", 0.0)
    session.from_client(encode("SUBSCRIBE", "b", "a"), 0.0)
    session.from_server(
        confirmation(b"subscribe", b"b", 1, push=push)
        + confirmation(b"subscribe", b"a", 2, push=push),
        0.0,
    )
    assert session.cannot_switch is None
    assert session.idle
    script, expected, _ = replayed(session)
    assert script == encode("HELLO", protocol) + encode("SUBSCRIBE", "a", "b")
    assert expected == 3
    message = b"%b3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n" % (b">" if push else b"*")
    replies = ReplyScanner().feed(confirmation(b"subscribe", b"a", 1, push=push) + message)
    assert [session.out_of_band(reply) for reply in replies] == [False, True]


def test_a_cache_is_emptied_when_its_tracking_moves() -> None:
    """No server told the client of writes during the move."""
    hello, track = encode("HELLO", 3), encode("CLIENT", "TRACKING", "ON")
    script = Script(make())
    (
        script
        >> ("from_client", hello)
        << ("to_server", hello)
        >> ("from_server", b"%0\r\n")
        << ("to_client", b"%0\r\n")
    )
    (
        script
        >> ("from_client", track)
        << ("to_server", track)
        >> ("from_server", OK)
        << ("to_client", OK)
    )
    script >> ("moved", _moved) << ("to_client", b">2\r\n$10\r\ninvalidate\r\n_\r\n")
    script.play_at_every_split()
    out = Recorder()
    session = Session(out, orders())
    for data, reply in ((hello, b"%0\r\n"), (track, OK)):
        session.from_client(data, 0.0)
        session.from_server(reply, 0.0)
    assert replayed(session)[0] == hello + track


@pytest.mark.parametrize(
    "arguments", [("TRACKING", "ON", "REDIRECT", 7), ("tracking", "on", "redirect", 7)]
)
def test_tracking_that_is_redirected_cannot_be_carried(arguments: tuple[Any, ...]) -> None:
    """The other connection has another id on the new server."""
    out = Recorder()
    session = Session(out, orders())
    session.state.protocol = 3
    session.from_client(encode("CLIENT", *arguments), 0.0)
    session.from_server(OK, 0.0)
    assert session.cannot_switch == "client tracking that is redirected"


def test_settings_that_an_older_server_does_not_know_may_be_missing_there() -> None:
    out = Recorder()
    session = Session(out, orders())
    for command in (
        encode("CLIENT", "SETNAME", "app"),
        encode("CLIENT", "SETINFO", "LIB-NAME", "x"),
        encode("CLIENT", "NO-TOUCH", "ON"),
    ):
        session.from_client(command, 0.0)
        session.from_server(OK, 0.0)
    _, expected, optional = replayed(session)
    assert (expected, optional) == (3, frozenset({1, 2}))


def test_a_blocked_pop_whose_hold_ended_before_it_could_be_sent_again_goes_on_by_itself() -> None:
    """The reply to its unblocking came after the release. No other event would send it again."""
    session_orders, out = orders(hold=True), Recorder()
    session_orders.hold = False
    session = Session(out, session_orders)
    session.from_client(encode("BLPOP", "q", 10), 0.0)
    session.from_server(b":77\r\n", 0.0)
    session_orders.hold = True
    session.unblock(reads=False)
    session_orders.hold = False
    session.thaw(1.0)
    out.take()
    session.from_server(b"*-1\r\n", 2.0)
    assert out.take()[-1] == ("to_server", encode("BLPOP", "q", b"8.000"))


def test_a_long_write_that_is_forwarded_while_it_arrives_keeps_a_hold_from_being_complete() -> None:
    session_orders, out = orders(), Recorder()
    session = Session(out, session_orders)
    long = encode("SET", "k", b"x" * 200_000)
    session.from_client(long[:150_000], 0.0)
    assert not session.confirmed
    session_orders.hold = True
    session.from_client(long[150_000:], 0.0)
    assert not session.confirmed
    session.from_server(OK, 0.0)
    assert session.confirmed
