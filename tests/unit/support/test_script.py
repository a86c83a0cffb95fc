"""`Script` itself: it shows differences, and a script that is never played is noticed."""

from __future__ import annotations

import pytest

from tests.support.script import Recorder, Script


class _Echo:
    def __init__(self, out: Recorder) -> None:
        self.out = out

    def from_client(self, data: bytes, now: float) -> None:
        del now
        self.out.to_server(data)
        self.out.settled()
        self.out.resume_client()


def test_a_difference_is_shown_call_by_call() -> None:
    script = Script(_Echo) >> ("from_client", b"a") << ("to_server", b"b") << ("settled",)
    with pytest.raises(AssertionError) as failed:
        script.play()
    lines = str(failed.value).splitlines()
    assert lines[0] == "step 0: from_client([b'a'])"
    assert "-('to_server', b'b')" in lines
    assert "+('to_server', b'a')" in lines
    assert " ('settled',)" in lines
    assert "+('resume_client',)" in lines


def test_the_cut_is_shown_at_which_a_split_differs() -> None:
    class Late(_Echo):
        def from_client(self, data: bytes, now: float) -> None:
            del now
            self.out.to_server(data if len(data) > 1 else b"")

    with pytest.raises(AssertionError, match="cut at byte 1"):
        (Script(Late) >> ("from_client", b"ab") << ("to_server", b"ab")).play_at_every_split()


def test_a_script_that_nobody_played_is_counted() -> None:
    script = (
        Script(_Echo)
        >> ("from_client", b"a")
        << ("to_server", b"a")
        << ("settled",)
        << ("resume_client",)
    )
    assert Script.unplayed() == 1
    script >> ("from_client", b"b")
    assert Script.unplayed() == 1, "it was extended after it had been played"
    script << ("to_server", b"b") << ("settled",) << ("resume_client",)
    script.play()
    assert Script.unplayed() == 0
