"""Canary reads: the client gets what the authority answered, in its order, and at most waits for
the follower.
"""

from __future__ import annotations

from itertools import pairwise

from exodus.gateway.canary_reads import Canary, CanaryOutcome, CanaryRead, chosen
from exodus.gateway.session import Session
from exodus.resp.encode import encode
from tests.support.script import Recorder
from tests.unit.exodus.gateway.test_session import orders

GET_K, GET_L, PING = encode("GET", "k"), encode("GET", "l"), encode("PING")
ONE, TWO, NIL, ERROR = b"$1\r\n1\r\n", b"$1\r\n2\r\n", b"$-1\r\n", b"-ERR no\r\n"


class Seat:
    """A session, its outlet and the canary's counts."""

    def __init__(self, *, bad_max: int = 5, below: int = 2**32) -> None:
        self.gave_up: list[str] = []
        self.canary = Canary(bad_max, self.gave_up.append)
        self.orders = orders(canary=self.canary)
        self.orders.pick(canary_below=below)
        self.out = Recorder()
        self.session = Session(self.out, self.orders)

    def ask(self, request: bytes) -> None:
        self.session.from_client(request, 0.0)

    @property
    def read(self) -> CanaryRead:
        """Return what the follower was asked last."""
        return self.out.reads[-1]

    def follower(self, read: CanaryRead, frame: bytes) -> None:
        read.answered(frame, error=frame.startswith(b"-"))
        self.session.from_follower()

    def authority(self, data: bytes) -> None:
        self.session.from_server(data, 1.0)

    def client_got(self) -> bytes:
        return b"".join(call[1] for call in self.out.take() if call[0] == "to_client")


def test_the_follower_is_asked_once_the_authority_has_answered_and_then_lets_the_client_go_on() -> (
    None
):
    """The follower runs the read as Exodus. A request that the authority refuses this client must
    not reach it.
    """
    seat = Seat()
    seat.ask(GET_K)
    assert seat.out.take() == [("to_server", GET_K)], (
        "the follower is asked before the authority has answered"
    )
    seat.authority(ONE)
    assert seat.out.take() == [("ask_follower", GET_K, 2)]
    seat.follower(seat.read, ONE)
    assert seat.client_got() == ONE
    assert seat.canary.counts == {CanaryOutcome.SERVED: 1}


def test_what_the_authority_refuses_reaches_no_follower() -> None:
    seat = Seat()
    for error in (b"-NOAUTH Authentication required.\r\n", b"-NOPERM no\r\n", ERROR):
        seat.ask(GET_K)
        seat.authority(error)
        assert seat.client_got() == error
    assert seat.out.reads == []
    assert seat.canary.counts == {CanaryOutcome.REFUSED: 3}


def test_an_old_value_reaches_nobody() -> None:
    """The authority's answer decides: after another client's write, after an expiry, and for a key
    that was never copied.
    """
    for authority, follower, outcome in (
        (TWO, ONE, CanaryOutcome.NOT_FRESH),
        (NIL, ONE, CanaryOutcome.NOT_FRESH),
        (ONE, NIL, CanaryOutcome.NOT_FRESH),
        (ONE, ERROR, CanaryOutcome.FAILED),
    ):
        seat = Seat()
        seat.ask(GET_K)
        seat.authority(authority)
        seat.follower(seat.read, follower)
        assert seat.client_got() == authority
        assert seat.canary.counts == {outcome: 1}


def test_replies_keep_their_order_while_one_waits() -> None:
    pong = b"+PONG\r\n"
    data = pong + ONE + pong + TWO + pong
    for cut in range(1, len(data)):
        seat = Seat()
        seat.ask(PING + GET_K + PING + GET_L + PING)
        seat.out.take()
        seat.authority(data[:cut])
        seat.authority(data[cut:])
        first, second = seat.out.reads
        assert seat.client_got() == pong, "what came before the first is not held up"
        seat.follower(second, TWO)
        assert seat.client_got() == b""
        assert not seat.session.idle
        seat.follower(first, ONE)
        assert seat.client_got() == data[len(pong) :]
        assert seat.session.idle
        assert seat.canary.counts == {CanaryOutcome.SERVED: 2}


def test_an_error_keeps_its_place_behind_a_read_that_waits() -> None:
    seat = Seat()
    seat.ask(GET_K + GET_L)
    seat.authority(ONE + ERROR)
    assert seat.client_got() == b""
    seat.follower(seat.read, ONE)
    assert seat.client_got() == ONE + ERROR
    assert seat.session.idle
    assert seat.canary.counts == {CanaryOutcome.SERVED: 1, CanaryOutcome.REFUSED: 1}


def test_a_late_follower_costs_its_time_and_is_counted_once() -> None:
    seat = Seat()
    seat.ask(GET_K)
    seat.authority(ONE)
    seat.read.gave_up()
    seat.session.from_follower()
    assert seat.client_got() == ONE
    assert seat.canary.counts == {CanaryOutcome.LATE: 1}


def test_what_waits_is_passed_on_when_the_authority_closes() -> None:
    seat = Seat()
    seat.ask(GET_K + GET_L)
    seat.authority(ONE)
    seat.session.server_closed()
    assert seat.client_got() == ONE


def test_only_plain_reads_of_one_key_in_the_share_are_asked() -> None:
    seat = Seat()
    for request in (
        encode("SET", "k", "v"),
        PING,
        encode("MULTI"),
        GET_K,
        encode("EXEC"),
        encode("SELECT", 3),
        GET_K,
        encode("SCAN", "0"),
    ):
        seat.session.from_client(request, 0.0)
    seat.authority(
        b"+OK\r\n+PONG\r\n+OK\r\n+QUEUED\r\n*1\r\n"
        + ONE
        + b"+OK\r\n"
        + ONE
        + b"*2\r\n$1\r\n0\r\n*0\r\n"
    )
    assert seat.out.reads == []
    none = Seat(below=0)
    none.session.from_client(GET_K, 0.0)
    none.authority(ONE)
    assert none.out.reads == []


def test_a_larger_share_has_the_keys_of_a_smaller_one() -> None:
    keys = [b"key:%d" % number for number in range(10_000)]
    shares = [
        {key for key in keys if chosen(key, int(share * 2**32))}
        for share in (0.01, 0.05, 0.25, 1.0)
    ]
    assert [a <= b for a, b in pairwise(shares)] == [True] * 3
    assert [
        50 < len(shares[0]) < 200,
        350 < len(shares[1]) < 650,
        2200 < len(shares[2]) < 2800,
        len(shares[3]) == 10_000,
    ] == [True] * 4


def test_more_bad_answers_than_allowed_among_the_last_hundred_end_it_once() -> None:
    seat = Seat(bad_max=2)
    for outcome in [
        CanaryOutcome.LATE,
        CanaryOutcome.FAILED,
        *[CanaryOutcome.SERVED] * 99,
        CanaryOutcome.LATE,
        CanaryOutcome.NOT_FRESH,
        CanaryOutcome.FAILED,
    ]:
        seat.canary.note(outcome)
    assert seat.gave_up == [], "never more than two of a hundred"
    seat.canary.note(CanaryOutcome.LATE)
    seat.canary.note(CanaryOutcome.LATE)
    assert len(seat.gave_up) == 1
    assert "3 of the last 100 reads" in seat.gave_up[0]
