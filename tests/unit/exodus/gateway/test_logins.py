"""The login that the target gets in place of the client's."""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.gateway.logins import Logins
from exodus.gateway.session import Session
from exodus.plan.settings import Login
from exodus.resp.encode import encode
from tests.support.script import Recorder, Script, replayed
from tests.unit.exodus.gateway.test_session import GET_K, OK, orders


@pytest.fixture
def logins(tmp_path: Path) -> Logins:
    for name in ("ours", "theirs"):
        (tmp_path / name).write_text(f"{name}\n")
    both = {"password_file": tmp_path / "ours", "target_password_file": tmp_path / "theirs"}
    nobody = Login(target_user="any", target_password_file=tmp_path / "theirs")
    return Logins(
        [Login(user="shop", target_user="there", **both), Login(target_user="all", **both), nobody]
    )


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        (("AUTH", "shop", "ours"), ("AUTH", "there", "theirs")),
        (("auth", "ours"), ("auth", "all", "theirs")),
        (("HELLO", "3", "AUTH", "shop", "ours"), ("HELLO", "3", "AUTH", "there", "theirs")),
        (
            ("HELLO", "3", "SETNAME", "auth", "auth", "default", "ours"),
            ("HELLO", "3", "SETNAME", "auth", "auth", "all", "theirs"),
        ),
        (
            ("HELLO", "3", "AUTH", "shop", "ours", "SETNAME", "me"),
            ("HELLO", "3", "AUTH", "there", "theirs", "SETNAME", "me"),
        ),
        (("AUTH", "shop", "another"), None),
        (("AUTH", "there", "theirs"), None),
        (("AUTH", "theirs"), None),
        (("AUTH",), None),
        (("AUTH", "a", "b", "c"), None),
        (("HELLO",), None),
        (("HELLO", "3"), None),
        (("HELLO", "3", "AUTH", "shop"), None),
    ],
)
def test_only_who_shows_the_source_s_password_gets_the_target_s(
    logins: Logins, said: tuple[str, ...], instead: tuple[str, ...] | None
) -> None:
    assert logins.translated([word.encode() for word in said]) == (
        None if instead is None else encode(*instead)
    )
    assert logins.translated_request(encode(*said)) == encode(*(instead or said))


def test_a_session_says_the_one_and_its_client_the_other(logins: Logins) -> None:
    """A login is forwarded only when everything before it was answered: Redis from 7.2 on may not
    answer it otherwise.
    """
    ours, theirs = encode("AUTH", "shop", "ours"), encode("AUTH", "there", "theirs")
    (
        Script(lambda out: Session(out, orders()))
        >> ("log_in", logins, 0.0)
        << ("to_server", logins.default_login)
        >> ("from_server", OK)
        << ("resume_client",)
        >> ("from_client", GET_K + ours + GET_K)
        << ("to_server", GET_K)
        >> ("from_server", b"$-1\r\n")
        << ("to_client", b"$-1\r\n")
        << ("resume_client",)
        << ("to_server", theirs + GET_K)
        >> ("from_server", OK + b"$-1\r\n")
        << ("to_client", OK + b"$-1\r\n")
    ).play_at_every_split()


def test_nothing_runs_behind_a_login_of_ours_that_is_refused(logins: Logins) -> None:
    """Principle 6: it would run as another user."""
    (
        Script(lambda out: Session(out, orders()))
        >> ("log_in", logins, 0.0)
        << ("to_server", logins.default_login)
        >> ("from_client", GET_K)
        >> ("from_server", b"-WRONGPASS no\r\n")
        << ("close", "the login that the plan gives was refused")
    ).play()


def test_what_is_carried_is_what_the_client_said(logins: Logins) -> None:
    out = Recorder()
    session = Session(out, orders())
    session.from_client(encode("CLIENT", "NO-TOUCH", "ON") + encode("AUTH", "shop", "ours"), 0.0)
    session.from_server(OK, 0.0)
    session.from_server(OK, 0.0)
    there = (
        logins.default_login
        + encode("AUTH", "there", "theirs")
        + encode("CLIENT", "NO-TOUCH", "ON")
    )
    assert replayed(session, logins) == (there, 3, frozenset({2}))
    session.adopt_leg(logins)
    assert replayed(session) == (
        encode("AUTH", "shop", "ours") + encode("CLIENT", "NO-TOUCH", "ON"),
        2,
        frozenset({1}),
    )


def test_the_end_of_a_hold_lets_nothing_run_before_our_login_was_taken(logins: Logins) -> None:
    out = Recorder()
    session = Session(out, orders())
    session.log_in(logins, 0.0)
    session.from_client(GET_K, 0.0)
    out.take()
    session.thaw(0.0)
    assert out.take() == []
    session.from_server(OK, 0.0)
    assert out.take() == [("resume_client",), ("to_server", GET_K)]
