"""Replies that name nodes, as servers give them: what clients are told in their place."""

from __future__ import annotations

import pytest

from exodus.gateway.topology_replies import Told, rewritten
from exodus.resp.tree import ReplyElement, parse, render


class Known:
    """Two nodes; their listeners are 7001 and 7002."""

    def __init__(
        self, host: str = "10.0.0.9", *, tls: bool = False, replicas: bool = False
    ) -> None:
        self.host, self.ip, self.tls, self.replicas = host, "10.0.0.9", tls, replicas
        self.asked: list[tuple[str, list[str], int | None]] = []

    def told(self, node_id: str, places: list[str], slot: int | None) -> Told | None:
        self.asked.append((node_id, places, slot))
        port = {"a" * 40: 7001, "b" * 40: 7002}.get(node_id)
        return Told(self.host, port) if port is not None else None


def text(value: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value.encode())


def slots_node(host: str, node_id: str, more: bytes = b"") -> bytes:
    count = 4 if more else 3
    return (
        b"*%d\r\n" % count
        + (text(host) if host else b"$-1\r\n")
        + b":6379\r\n"
        + text(node_id)
        + more
    )


def slots(*nodes: bytes) -> bytes:
    return b"*1\r\n*%d\r\n:0\r\n:16383\r\n" % (2 + len(nodes)) + b"".join(nodes)


A, B, UNKNOWN = "a" * 40, "b" * 40, "c" * 40


@pytest.mark.parametrize("host", ["172.17.0.2", "node-1.internal", "?", "", "2001:db8::1"])
def test_slots_of_redis_62_name_the_listeners(host: str) -> None:
    known = Known()
    assert rewritten(b"slots", slots(slots_node(host, A)), known) == slots(
        slots_node("10.0.0.9", A).replace(b":6379", b":7001")
    )
    shown = {"2001:db8::1": "[2001:db8::1]", "?": ""}.get(host, host)
    assert known.asked == [(A, [f"{shown}:6379"], 0)]


def test_what_follows_the_id_is_not_told() -> None:
    """From 7.0 on it is the node's other address and its host name, a map in RESP3."""
    for more in (b"*2\r\n" + text("hostname") + text("n1"), b"%1\r\n" + text("ip") + text("1.2")):
        told = rewritten(b"SLOTS", slots(slots_node("n1", A, more)), Known())
        assert told == slots(
            slots_node("10.0.0.9", A, more[:1] + b"0\r\n").replace(b":6379", b":7001")
        )


def test_replicas_are_hidden_or_listed_by_the_plan() -> None:
    frame = slots(slots_node("h", A), slots_node("h", B), slots_node("h", UNKNOWN))
    hidden = rewritten(b"SLOTS", frame, Known())
    assert hidden == slots(slots_node("10.0.0.9", A).replace(b":6379", b":7001"))
    listed = rewritten(b"SLOTS", frame, Known(replicas=True))
    assert listed == slots(
        slots_node("10.0.0.9", A).replace(b":6379", b":7001"),
        slots_node("10.0.0.9", B).replace(b":6379", b":7002"),
    )


def test_a_master_that_nobody_can_find_is_left_away_with_its_slots() -> None:
    assert rewritten(b"SLOTS", slots(slots_node("h", UNKNOWN)), Known()) == b"*0\r\n"


def shard(*fields: tuple[str, bytes], third: bool) -> bytes:
    kind = b"%%%d\r\n" % len(fields) if third else b"*%d\r\n" % (2 * len(fields))
    return kind + b"".join(text(name) + value for name, value in fields)


@pytest.mark.parametrize("third", [False, True])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("host", ["10.0.0.9", "gw.example.com"])
def test_shards_name_the_listeners(third: bool, tls: bool, host: str) -> None:
    def node(node_id: str, role: str, *where: tuple[str, bytes]) -> bytes:
        more = (("role", text(role)), ("health", text("online")))
        return shard(("id", text(node_id)), *where, *more, third=third)

    def answer(*nodes: bytes) -> bytes:
        return b"*1\r\n" + shard(
            ("slots", b"*2\r\n:0\r\n:16383\r\n"),
            ("nodes", b"*%d\r\n" % len(nodes) + b"".join(nodes)),
            third=third,
        )

    where = (
        ("port", b":6379\r\n"),
        ("tls-port", b":6380\r\n"),
        ("ip", text("172.17.0.2")),
        ("endpoint", text("n1.internal")),
        ("hostname", text("n1.internal")),
    )
    told = rewritten(
        b"SHARDS",
        answer(node(A, "master", *where), node(B, "replica", *where)),
        Known(host, tls=tls),
    )
    assert b"172.17" not in told
    assert b"internal" not in told
    fields = parse(told).parts[0].parts[3].parts[0].parts
    found = {key.text: value.text for key, value in zip(fields[::2], fields[1::2], strict=True)}
    assert found.pop("health") == "online"
    wanted = {"id": A, "role": "master", "ip": "10.0.0.9", "endpoint": host}
    wanted["tls-port" if tls else "port"] = "7001"
    if host != "10.0.0.9":
        wanted["hostname"] = host
    assert found == wanted
    assert len(parse(told).parts[0].parts[3].parts) == 1


LINE = (
    f"{A} 172.17.0.2:6379@16379,n1.internal,,tls-port=0,shard-id=s1 myself,master - 0 0 1 connected"
)
REPLICA = f"{B} 172.17.0.3:6379@16379 slave {A} 0 0 1 connected"


@pytest.mark.parametrize("kind", [b"$", b"="])
def test_lines_of_nodes_name_the_listeners(kind: bytes) -> None:
    body = f"{LINE} 0-100 200 [300->-{B}]\n{REPLICA}\n"
    body = ("txt:" if kind == b"=" else "") + body
    frame = render(ReplyElement(kind, body.encode()))
    known = Known()
    told = parse(rewritten(b"NODES", frame, known)).text.removeprefix("txt:")
    assert told == (
        f"{A} 10.0.0.9:7001@17001,,shard-id=s1 myself,master - 0 0 1 connected 0-100 200 "
        f"[300->-{B}]\n"
    )
    assert known.asked == [(A, ["n1.internal:6379", "172.17.0.2:6379"], 0)]
    told = parse(rewritten(b"NODES", frame, Known("gw.example.com", replicas=True))).text
    assert told.removeprefix("txt:").splitlines() == [
        f"{A} 10.0.0.9:7001@17001,gw.example.com,shard-id=s1 myself,master - 0 0 1 connected "
        f"0-100 200 [300->-{B}]",
        f"{B} 10.0.0.9:7002@17002,gw.example.com slave {A} 0 0 1 connected",
    ]


@pytest.mark.parametrize("word", [b"REPLICAS", b"SLAVES"])
def test_replicas_of_a_node_are_lines_of_nodes(word: bytes) -> None:
    frame = b"*1\r\n" + text(REPLICA)
    assert rewritten(word, frame, Known()) == b"*0\r\n"
    told = rewritten(word, frame, Known(replicas=True))
    assert told == b"*1\r\n" + text(f"{B} 10.0.0.9:7002@17002 slave {A} 0 0 1 connected")


@pytest.mark.parametrize(
    "frame", [b"+OK\r\n", b"*1\r\n*1\r\n:0\r\n", b"*1\r\n", b"*1\r\n*3\r\n:0\r\n:1\r\n*1\r\n:1\r\n"]
)
def test_a_reply_that_is_not_understood_is_no_leak(frame: bytes) -> None:
    told = rewritten(b"SLOTS", frame, Known())
    assert told == b"-ERR the gateway does not understand this server's reply to CLUSTER SLOTS\r\n"
