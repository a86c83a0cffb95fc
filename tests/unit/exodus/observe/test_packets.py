"""Packets become requests with their answers: in any file format, at any segmentation, in any
order. What is missing is counted.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exodus.observe import packets as module
from exodus.observe.capture_files import CaptureReader, Packet
from exodus.observe.events import Answer, Event
from exodus.observe.known_commands import known_table
from exodus.observe.packets import PacketWatcher
from exodus.resp.encode import encode
from tests.support.packets import LINKS, SERVER_PORT, Talk, pcap, pcapng

TABLE = known_table()
GET, SET = encode("GET", "user:1"), encode("SET", "user:1", "v" * 40)


class Events(list[Event]):
    """A sink that keeps them all."""

    add = list.append

    def seen(self) -> list[tuple[str, str]]:
        return [(event.shape, event.answer.name) for event in self]


def watched(
    data: bytes, size: int = 1 << 20, *, ended: bool = True
) -> tuple[Events, PacketWatcher]:
    """Read a capture file in pieces of a size."""
    events, reader = Events(), CaptureReader()
    watcher = PacketWatcher(TABLE, events, [SERVER_PORT])
    for at in range(0, len(data), size):
        watcher.feed(reader.feed(data[at : at + size]))
    assert reader.broken is None
    if ended:
        watcher.finish()
    return events, watcher


def of_packets(packets: list[tuple[float, bytes]], link: int = 1) -> tuple[Events, PacketWatcher]:
    events = Events()
    watcher = PacketWatcher(TABLE, events, [SERVER_PORT])
    watcher.feed([Packet(at, link, frame, len(frame)) for at, frame in packets])
    watcher.finish()
    return events, watcher


def simple(**more: object) -> Talk:
    talk = Talk(**more)  # type: ignore[arg-type]
    talk.client(SET).server(b"+OK\r\n").client(GET).server(b"$40\r\n" + b"v" * 40 + b"\r\n")
    talk.client(encode("LPUSH", "user:1", "x")).server(b"-WRONGTYPE Operation\r\n")
    return talk.client(encode("GET", "none")).server(b"$-1\r\n").close()


SIMPLE = [("SET /3", "VALUE"), ("GET /2", "VALUE"), ("LPUSH /3", "ERROR"), ("GET /2", "NIL")]


# Files.


@pytest.mark.parametrize("size", [1, 17, 1 << 20])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", ["pcap", "pcap in ns", "pcapng", "pcapng in ns"])
def test_each_format_is_read_at_any_split(form: str, order: str, size: int) -> None:
    packets = simple().packets()
    if form.startswith("pcapng"):
        data = pcapng(packets, order=order, resolution=9 if "ns" in form else 6)
    else:
        data = pcap(packets, order=order, nanoseconds="ns" in form)
    events, watcher = watched(data, size)
    assert events.seen() == SIMPLE
    assert events[0].at == pytest.approx(packets[2][0], abs=2e-6)
    assert events[0].latency_us == pytest.approx(100, abs=2)
    assert events[2].error == "WRONGTYPE"
    assert events[0].client == "10.0.0.2:40000"
    assert watcher.coverage.parsed_share == 1
    assert watcher.coverage.remarks() == []


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_each_link_type_is_read(link: str, family: str) -> None:
    addresses = {"client": "fd00::2", "server": "fd00::1"} if family == "IPv6" else {}
    talk = simple(link=link, **addresses)
    packets = talk.packets()
    if family == "IPv6" and link in ("sll", "sll2", "null", "loop"):
        assert b"\xfd\x00" in packets[0][1]  # their heads are not looked at
    events, watcher = of_packets(packets, talk.link)
    assert events.seen() == SIMPLE
    assert watcher.open_connections == 0


def test_a_file_that_is_cut_off_counts_up_to_there() -> None:
    data = simple().pcap()
    reader = CaptureReader()
    assert len(reader.feed(data[:-5])) == len(simple().made) - 1
    assert reader.broken is None
    assert reader.partial_bytes


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + bytes(40),
        struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 0, 1) + b"\xff" * 16,
        b"\x0a\x0d\x0d\x0a" + b"\xff" * 40,
    ],
    ids=["an image", "a huge packet", "a huge block"],
)
def test_what_is_no_capture_is_said(data: bytes) -> None:
    reader = CaptureReader()
    assert reader.feed(data) == []
    assert reader.broken


# Pairing.


def test_pipelined_requests_get_their_own_answers() -> None:
    talk = Talk()
    talk.client(SET + GET + GET).server(b"+OK\r\n$1\r\n").server(b"a\r\n$-1\r\n")
    events, _ = watched(talk.pcap())
    assert events.seen() == [("SET /3", "VALUE"), ("GET /2", "VALUE"), ("GET /2", "NIL")]
    assert [event.depth for event in events] == [1, 2, 3]
    assert [event.latency_us for event in events] == [
        pytest.approx(100, abs=2),
        pytest.approx(200, abs=2),
        pytest.approx(200, abs=2),
    ]


def test_a_transaction_counts_when_it_is_executed() -> None:
    talk = Talk()
    talk.client(encode("MULTI")).server(b"+OK\r\n")
    talk.client(SET + GET).server(b"+QUEUED\r\n+QUEUED\r\n")
    talk.client(encode("EXEC")).server(b"*2\r\n+OK\r\n$1\r\nv\r\n")
    talk.client(encode("MULTI") + SET + encode("DISCARD")).server(b"+OK\r\n+QUEUED\r\n+OK\r\n")
    talk.client(encode("MULTI") + SET + encode("EXEC")).server(b"+OK\r\n+QUEUED\r\n*-1\r\n")
    events, watcher = watched(talk.pcap())
    assert [event.command for event in events] == [
        "MULTI",
        "SET",
        "GET",
        "EXEC",
        "MULTI",
        "DISCARD",
        "MULTI",
        "EXEC",
    ]
    assert [event.batch for event in events if event.command == "EXEC"] == [2, 0]
    assert [event.queued for event in events].count(True) == 2
    assert watcher.coverage.requests_not_executed == 2


@pytest.mark.parametrize("resp3", [False, True])
def test_pushes_answer_nobody(resp3: bool) -> None:
    mark = b">" if resp3 else b"*"
    talk = Talk()
    talk.client(encode("SUBSCRIBE", "a", "b"))
    talk.server(mark + b"3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
    talk.server(mark + b"3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n")
    talk.server(mark + b"3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n")
    talk.server(mark + b"3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n")
    talk.client(encode("PING"))
    talk.server(mark + b"3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n")
    talk.server(b"+PONG\r\n" if resp3 else b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    talk.client(encode("UNSUBSCRIBE"))
    talk.server(mark + b"3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n")
    talk.server(mark + b"3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:0\r\n")
    talk.client(GET).server(b"$1\r\nv\r\n")
    events, watcher = watched(talk.pcap())
    assert events.seen() == [
        ("SUBSCRIBE /3", "VALUE"),
        ("PING /1", "VALUE"),
        ("UNSUBSCRIBE /1", "VALUE"),
        ("GET /2", "VALUE"),
    ]
    assert watcher.coverage.pushes == 4  # the second confirmation of a bare UNSUBSCRIBE too
    assert watcher.coverage.requests_without_reply == 0


def test_a_list_that_begins_like_a_message_is_an_answer() -> None:
    talk = Talk()
    talk.client(encode("LRANGE", "l", 0, -1)).server(b"*2\r\n$7\r\nmessage\r\n$1\r\nx\r\n")
    events, watcher = watched(talk.pcap())
    assert events.seen() == [("LRANGE /4", "VALUE")]
    assert watcher.coverage.pushes == 0


def test_requests_that_ask_for_no_answer_get_none() -> None:
    talk = Talk()
    talk.client(encode("CLIENT", "REPLY", "SKIP") + SET + GET).server(b"$1\r\nv\r\n")
    talk.client(encode("CLIENT", "REPLY", "OFF") + SET + SET)
    talk.client(encode("CLIENT", "REPLY", "ON")).server(b"+OK\r\n")
    talk.client(GET).server(b"$-1\r\n")
    events, _ = watched(talk.pcap())
    assert [event.answer.name for event in events] == [
        "NONE",
        "NONE",
        "VALUE",
        "NONE",
        "NONE",
        "NONE",
        "VALUE",
        "NIL",
    ]


def test_the_database_and_the_name_of_a_connection_are_followed() -> None:
    talk = Talk()
    talk.client(encode("CLIENT", "SETNAME", "billing")).server(b"+OK\r\n")
    talk.client(encode("SELECT", 3)).server(b"+OK\r\n").client(GET).server(b"$-1\r\n")
    talk.client(encode("SELECT", 99)).server(b"-ERR DB index\r\n").client(GET).server(b"$-1\r\n")
    events, _ = watched(talk.pcap())
    assert [(event.db, event.client) for event in events[2:]] == [(3, "billing")] * 3
    assert events[1].db == 0


def test_replication_and_monitor_are_streams() -> None:
    talk = Talk()
    talk.client(encode("PSYNC", "?", -1)).server(b"+FULLRESYNC x 0\r\n$5\r\nREDIS")
    talk.server(SET * 5)
    events, watcher = watched(talk.pcap())
    assert [event.command for event in events] == ["PSYNC"]
    assert watcher.coverage.stream_bytes == sum(
        len(made.payload) for made in talk.made if not made.to_server
    )
    assert watcher.coverage.unparsed_bytes == {}


# Unreadable packets.


@pytest.mark.parametrize("begin", [True, False])
def test_tls_is_detected_and_said(begin: bool) -> None:
    talk = Talk(begin=begin)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200))
    record = b"\x17\x03\x03\x00\x20" + bytes(32)
    talk.client(hello if begin else record).server(record).client(record * 3).server(record)
    events, watcher = watched(talk.pcap())
    coverage = watcher.coverage
    assert events == []
    assert coverage.tls_connections == 1
    assert coverage.tls_bytes == sum(len(made.payload) for made in talk.made)
    assert "MONITOR" in coverage.remarks()[0]
    assert coverage.parsed_share == 0


def test_another_protocol_on_the_port_is_counted() -> None:
    talk = Talk()
    talk.client(b"\x00\x01\x02" * 100 + b"\n*1\r\n$x\r\n").server(b"\xff\xfe" * 50 + b"\r\n")
    _, watcher = watched(talk.pcap())
    sizes = watcher.coverage.unparsed_bytes
    assert sum(sizes.values()) >= 100
    assert watcher.coverage.parsed_share < 1
    assert "in no request and no reply" in watcher.coverage.remarks()[-1]


# Order, repetition, loss.


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("side", [0, 1])
def test_a_last_segment_that_is_missing_is_lost(side: int, reset: bool) -> None:
    """Nothing follows it on its side. Only the other side's ACK shows it."""
    talk = Talk()
    talk.client(SET).server(b"+OK\r\n").client(GET)
    talk.server(b"$4\r\nlast\r\n")
    if side == 0:
        talk.client(SET)
    missing = talk.made.pop()
    talk.ack(1 - side)
    if reset:
        talk.reset(1 - side)
    events, watcher = watched(talk.pcap())
    assert watcher.coverage.lost_bytes == len(missing.payload)
    assert watcher.coverage.gaps == 1
    assert [event.command for event in events] == ["SET", "GET"]
    assert (events[1].answer is Answer.UNKNOWN) == (side == 1)


def test_the_end_of_a_connection_is_no_loss() -> None:
    talk = simple()
    for _ in range(3):
        talk.ack(0).ack(1)
    _, watcher = watched(talk.pcap())
    assert watcher.coverage.lost_bytes == watcher.coverage.gaps == 0


def conversation(draw: random.Random, exchanges: int, *, begin: bool = True) -> Talk:
    """Batches of requests and their answers, cut into packets anywhere."""
    talk = Talk(begin=begin, first=(2**32 - 300, 2**32 - 200))
    for number in range(exchanges):
        batch = draw.randint(1, 5)
        requests, replies = b"", b""
        for _ in range(batch):
            if draw.random() < 0.5:
                requests += encode("SET", f"k:{number}", "v" * draw.randint(0, 90))
                replies += b"+OK\r\n"
            else:
                requests += encode("GET", f"k:{number}")
                size = draw.randint(0, 90)
                replies += b"$%d\r\n%s\r\n" % (size, b"x" * size)
        for data, send in ((requests, talk.client), (replies, talk.server)):
            cuts = sorted(draw.sample(range(1, len(data)), min(draw.randint(0, 3), len(data) - 1)))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                send(data[start:end])
    return talk.close()


def facts(events: Events) -> list[tuple[object, ...]]:
    return [(event.shape, event.answer, event.request_bytes, event.reply_bytes) for event in events]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), distance=st.integers(0, 12))
def test_any_segmentation_order_and_repetition_gives_the_same(seed: int, distance: int) -> None:
    draw = random.Random(seed)
    talk = conversation(draw, 12)
    truth, _ = of_packets(talk.packets())
    assert all(event.answer is Answer.VALUE for event in truth)
    packets = talk.packets()
    mixed = sorted(range(2, len(packets)), key=lambda place: place + draw.random() * distance)
    places = [0, 1, *mixed]
    for place in draw.sample(places, 5):
        places.insert(min(len(places), places.index(place) + draw.randint(1, 9)), place)
    events, watcher = of_packets([packets[place] for place in places])
    assert facts(events) == facts(truth)
    assert watcher.coverage.lost_bytes == watcher.coverage.gaps == 0
    assert watcher.coverage.parsed_share == 1
    assert watcher.open_connections == 0


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), share=st.floats(0.01, 0.3))
@example(seed=122460, share=0.25)  # the first packet of all is lost, and its answer is not
def test_every_lost_byte_is_counted_and_no_request_is_made_up(seed: int, share: float) -> None:
    draw = random.Random(seed)
    talk = conversation(draw, 60)
    truth, _ = of_packets(talk.packets())
    kept = [made for made in talk.made if not made.payload or draw.random() > share]
    lost = sum(len(made.payload) for made in talk.made) - sum(len(made.payload) for made in kept)
    events, watcher = of_packets([(made.at, made.frame) for made in kept])
    coverage = watcher.coverage
    assert coverage.lost_bytes == lost
    assert bool(coverage.gaps) == bool(lost)
    assert bool(coverage.remarks()) == bool(lost)
    assert len(events) <= len(truth)
    # Each byte of a packet that is there is in a request, in a reply, or has its reason
    assert coverage.request_bytes + coverage.reply_bytes + sum(
        coverage.unparsed_bytes.values()
    ) == sum(len(made.payload) for made in kept)
    answered = {fact for event, fact in zip(events, facts(events), strict=True) if event.answer}
    assert answered <= set(facts(truth))


def test_a_connection_that_began_before_is_understood_from_its_next_request_on() -> None:
    talk = conversation(random.Random(3), 30, begin=False)
    truth, _ = of_packets(talk.packets())
    assert all(event.answer is Answer.VALUE for event in truth)
    cut = 7
    events, watcher = of_packets(talk.packets()[cut:])
    assert watcher.coverage.connections_before == 1
    assert len(events) > len(truth) - 8
    assert [event.answer for event in events][-20:] == [Answer.VALUE] * 20


def test_what_the_capture_cut_off_is_counted() -> None:
    talk = Talk()
    for _ in range(20):
        talk.client(encode("SET", "k", "v" * 500)).server(b"+OK\r\n")
    events, watcher = watched(talk.pcap(snap_bytes=200))
    coverage = watcher.coverage
    assert coverage.cut_bytes + sum(coverage.unparsed_bytes.values()) > 20 * 400
    assert "-s 0" in " ".join(coverage.remarks())
    assert events == []


# Bounds.


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCHED_CONNECTIONS_MAX", 10)
    packets = []
    for port in range(50):
        packets += Talk(30_000 + port).client(GET).packets()
    events, watcher = of_packets(packets)
    assert len(events) == 50
    assert watcher.coverage.connections_forgotten == 40
    assert "connections_forgotten 40" in " ".join(watcher.coverage.remarks())


def test_segments_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_SEGMENT_BYTES_MAX", 10_000)
    talk = Talk()
    for _ in range(500):
        talk.client(SET)
    packets = talk.packets()
    del packets[3]
    events = Events()
    watcher = PacketWatcher(TABLE, events, [SERVER_PORT])
    watcher.feed([Packet(at, 1, frame, len(frame)) for at, frame in packets])
    assert watcher.coverage.lost_bytes == len(SET)
    assert watcher.coverage.held_at_limit == 1
    watcher.finish()
    assert len(events) == 499


def test_all_that_waits_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_ALL_BYTES_MAX", 20_000)
    monkeypatch.setattr(module, "PACKETS_SWEEP_EVERY", 50)
    packets = []
    for port in range(20):
        talk = Talk(30_000 + port).client(SET)
        for _ in range(40):
            talk.client(SET)
        there = talk.packets()
        del there[2]
        packets += there
    watcher = PacketWatcher(TABLE, Events(), [SERVER_PORT])
    watcher.feed([Packet(at, 1, frame, len(frame)) for at, frame in packets])
    assert watcher.held_bytes <= 20_000 + 40 * len(SET)
    assert watcher.coverage.held_at_limit


def test_ports_that_are_used_again_are_another_connection() -> None:
    first = Talk().client(SET + b"*2\r\n$3\r\nGE")
    second = Talk(first=(500_000_000, 700_000_000), at=first.at + 1).client(GET).server(b"$-1\r\n")
    events, watcher = of_packets(first.packets() + second.packets())
    assert [event.command for event in events] == ["SET", "GET"]
    assert watcher.coverage.connections == 2
    assert len({event.connection for event in events}) == 2


# Hostile input.


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    form=st.sampled_from(["pcap", "pcapng"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 10**6),
)
def test_nothing_in_a_file_raises(
    seed: int, form: str, changes: list[tuple[int, int]], cut: int
) -> None:
    draw = random.Random(seed)
    link = draw.choice(list(LINKS))
    talk = Talk(link=link)
    for _ in range(4):
        talk.client(SET + GET).server(b"+OK\r\n$-1\r\n")
    make = pcapng if form == "pcapng" else pcap
    data = bytearray(make(talk.packets(), talk.link))
    for place, byte in changes:
        data[place % len(data)] = byte
    reader = CaptureReader()
    watcher = PacketWatcher(TABLE, Events(), [SERVER_PORT])
    for piece in (data[: cut % len(data)], data[cut % len(data) :]):
        watcher.feed(reader.feed(bytes(piece)))
    watcher.finish()
    assert watcher.open_connections == 0


@given(st.binary(max_size=200), st.sampled_from([0, 1, 12, 101, 108, 113, 276, 999]))
def test_no_frame_raises(frame: bytes, link: int) -> None:
    watcher = PacketWatcher(TABLE, Events(), [SERVER_PORT])
    watcher.feed([Packet(1.0, link, frame, len(frame))])
    watcher.finish()
    assert watcher.coverage.packets == 1
