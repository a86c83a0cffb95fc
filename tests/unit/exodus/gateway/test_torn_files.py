"""Spool and intent log after a crash, or on a full or failing disk: readable entries are read, and
damage is reported, at any byte.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from exodus.control.changes import RESYNC, Barrier, UnreadableChanges, pack, parse_entries, unpack
from exodus.gateway.intents import IntentLog
from exodus.gateway.spool import Spool, SpooledBatch

A, B, C = [(0, b"a" * 300)], [(3, b"b"), (70_000, b"wide")], [(0, b"c")]
FLUSHED = Barrier("flushdb", (70_000,))


def read(folder: Path) -> tuple[list[SpooledBatch], list[str]]:
    spool = Spool(folder)
    return list(spool.batches([])), spool.damage


@pytest.fixture
def spooled(tmp_path: Path) -> Path:
    spool = Spool(tmp_path)
    assert spool.append(A, []) and spool.append(B, [FLUSHED])
    return tmp_path


def test_a_torn_last_record_is_cut_off_and_never_read_as_a_part_of_the_next(spooled: Path) -> None:
    path = spooled / "spool.log"
    whole = path.read_bytes()
    first = len(whole) - (16 + len(pack(B)) + len(FLUSHED.encode()))
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        spool = Spool(spooled)
        assert path.exists() and path.stat().st_size == first, "the tail is cut at the start"
        assert spool.append(C, [])
        assert read(spooled) == ([(A, []), (C, [])], [])


def test_every_damaged_byte_of_the_spool_is_noticed(spooled: Path) -> None:
    path = spooled / "spool.log"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        found, damage = read(spooled)
        assert damage, at
        assert all(batch in [(A, []), (B, [FLUSHED]), ([], [])] for batch in found)


def test_a_spool_that_cannot_be_read_is_told_and_does_not_end_the_process(tmp_path: Path) -> None:
    (tmp_path / "spool.log").mkdir()
    spool = Spool(tmp_path)
    assert spool.damage == ["the spool cannot be read: Is a directory"]
    assert not spool.append(A, [])


def test_a_spool_that_shrank_while_it_was_replayed_is_told(spooled: Path) -> None:
    spool = Spool(spooled)
    (spooled / "spool.log").write_bytes(b"")
    damage: list[str] = []
    assert list(spool.batches(damage)) == []
    assert damage


_FULL = """
import resource, signal, sys
from pathlib import Path
from exodus.gateway.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]))
assert spool.append([(0, b"a" * 100)], [])
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
assert not spool.append([(0, b"b" * 1000)], [])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert spool.append([(0, b"c")], [])
print(spool.keys)
"""


def test_a_record_that_the_disk_took_half_of_is_not_in_the_way_of_later_ones(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("2\n", "")
    assert read(tmp_path) == ([([(0, b"a" * 100)], []), ([(0, b"c")], [])], [])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert signal.getsignal(signal.SIGXFSZ) is not None


def logged(folder: Path) -> Path:
    log = IntentLog(folder, pytest.fail)
    log.append(A, None)
    log.append(B, FLUSHED)
    assert log.append_gap("a gap")
    log.close()
    return folder / "intent-1.log"


def test_intents_are_read_back_with_barriers_and_gaps(tmp_path: Path) -> None:
    logged(tmp_path)
    found = IntentLog(tmp_path, pytest.fail).recover()
    assert (list(found.keys), list(found.barriers), list(found.gaps), found.damage) == (
        A + B,
        [FLUSHED],
        ["a gap"],
        [],
    )


def test_a_torn_last_intent_is_no_damage(tmp_path: Path) -> None:
    """Its kind is written last, so a torn intent has none, and its request was never forwarded."""
    path = logged(tmp_path)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    head = end - len(b"a gap") - 9
    for size in range(head, end):
        torn = bytearray(whole[:size].ljust(len(whole), b"\0"))
        torn[head + 8] = 0
        path.write_bytes(bytes(torn))
        found = IntentLog(tmp_path, pytest.fail).recover()
        assert (list(found.keys), found.damage) == (A + B, []), size


def test_every_damaged_byte_of_the_intent_log_is_noticed(tmp_path: Path) -> None:
    path = logged(tmp_path)
    whole = path.read_bytes()
    for at in range(len(whole.rstrip(b"\0"))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert IntentLog(tmp_path, pytest.fail).recover().damage, at


@pytest.mark.parametrize("harm", ["cut", "empty", "page", "folder", "missing"])
def test_a_segment_that_is_not_whole_is_told(tmp_path: Path, harm: str) -> None:
    path = logged(tmp_path)
    whole = path.read_bytes()
    if harm == "cut":
        path.write_bytes(whole[:100])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "page":
        path.write_bytes(bytes(300) + whole[300:])
    elif harm == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.unlink()
    assert IntentLog(tmp_path, pytest.fail).recover().damage


@pytest.mark.parametrize("harm", ["gone", "flip"])
def test_a_manifest_that_cannot_be_relied_on_is_told(tmp_path: Path, harm: str) -> None:
    logged(tmp_path)
    path = tmp_path / "intents.json"
    raw = path.read_bytes()
    if harm == "gone":
        path.unlink()
        assert IntentLog(tmp_path, pytest.fail).recover().damage == ["intents.json is missing"]
        return
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert IntentLog(tmp_path, pytest.fail).recover().damage, at


def test_segments_that_were_dropped_are_not_missed(tmp_path: Path) -> None:
    log = IntentLog(tmp_path, pytest.fail)
    for key in (A, B, C):
        log.append(key, None)
        log.roll()
    log.retire_before(3, above=1, spool_bytes=100)
    log.close()
    found = IntentLog(tmp_path, pytest.fail).recover()
    assert (list(found.keys), found.damage, found.spool_bytes) == (A + C, [], 100)


def test_a_new_log_never_takes_the_number_of_one_that_is_not_recovered_yet(tmp_path: Path) -> None:
    logged(tmp_path)
    log = IntentLog(tmp_path, pytest.fail)
    log.append(C, None)
    found = log.recover()
    assert list(found.keys) == A + B + C
    log.close()


def test_a_gap_finds_room_where_the_log_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed: list[object] = []
    log = IntentLog(tmp_path, missed.append)
    monkeypatch.setattr("exodus.gateway.intents.INTENT_SEGMENTS_MAX", 1)
    while not missed:
        log.append([(0, b"k" * 60_000)], None)
    assert log.append_gap("the intent log is full")
    log.close()
    assert list(IntentLog(tmp_path, pytest.fail).recover().gaps) == ["the intent log is full"]


def test_a_gap_is_logged_once_in_each_segment(tmp_path: Path) -> None:
    """The old segments are dropped, and the reason has to outlast them."""
    log = IntentLog(tmp_path, pytest.fail)
    assert log.append_gap("scripts")
    used = log.used_bytes
    assert log.append_gap("scripts")
    assert log.used_bytes == used
    number = log.roll()
    assert log.append_gap("scripts")
    log.retire_before(number)
    log.close()
    assert list(IntentLog(tmp_path, pytest.fail).recover().gaps) == ["scripts"]


def test_databases_above_two_bytes_are_packed_and_older_bytes_are_still_read() -> None:
    keys = [(0, b""), (65_534, b"k"), (65_535, b"k"), (70_000, b"k"), (2**32 - 1, b"k" * 300)]
    assert unpack(pack(keys)) == keys
    assert unpack(b"\x02\x00\x01\x00\x00\x00k") == [(2, b"k")]


def test_packed_keys_that_end_too_early_are_unreadable_and_an_entry_of_them_may_be_any_key() -> (
    None
):
    whole = pack([(70_000, b"wide")])
    for size in range(1, len(whole)):
        with pytest.raises(UnreadableChanges):
            unpack(whole[:size])
        assert parse_entries([(b"1-1", {b"k": whole[:size]})]).barriers == [Barrier(RESYNC)]
    assert parse_entries([(b"1-1", {b"b": b"flushdb:x"})]).barriers == [Barrier(RESYNC)]
