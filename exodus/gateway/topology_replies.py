"""Replies in which a cluster names its nodes, with the gateway's listeners in place of the nodes.

CLUSTER SLOTS, SHARDS, NODES, REPLICAS and SLAVES, in RESP2 and RESP3, of Redis 6.2 and later and
Valkey. What says where a node is, is replaced or left away; all else stays as the node said it. No
I/O.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple, Protocol

from exodus.plan.address import place_of
from exodus.plan.bounds import CLUSTER_BUS_PORTS, PORT_MAX
from exodus.resp.tree import ReplyElement, array, bulk, number, parse, render

NAMES_NODES = frozenset({b"SLOTS", b"SHARDS", b"NODES", b"REPLICAS", b"SLAVES"})
_NOT_UNDERSTOOD = b"-ERR the gateway does not understand this server's reply to CLUSTER %b\r\n"
_WHERE = frozenset({"port", "tls-port", "ip", "endpoint", "hostname"})  # fields of CLUSTER SHARDS
_NODE_FIELDS = 8  # of a line of CLUSTER NODES, before the slots


class Told(NamedTuple):
    """Where clients find a node."""

    host: str
    port: int


class NodeFinder(Protocol):
    """Who knows where clients find the nodes."""

    tls: bool  # clients of the gateway use TLS
    replicas: bool  # clients are told of replicas
    ip: str  # of the gateway, as the client reached it

    def told(self, node_id: str, places: list[str], slot: int | None) -> Told | None:
        """Return where clients find a node; None: nowhere.

        Args:
            node_id: the node's.
            places: its address as host:port, under each name that the reply has. An empty host is
                that of the node that answered.
            slot: one that it serves; None: none that this reply tells.
        """


def rewritten(word: bytes, frame: bytes, nodes: NodeFinder) -> bytes:
    """Return a whole reply to `CLUSTER word` as a client may see it."""
    word = word.upper()
    try:
        reply = parse(frame)
        if word == b"SLOTS":
            found = array([row for each in reply.parts if (row := _slots_row(each, nodes))])
        elif word == b"SHARDS":
            found = array([shard for each in reply.parts if (shard := _shard(each, nodes))])
        elif word == b"NODES":
            found = _lines(reply, nodes)
        else:
            replicas = [line for each in reply.parts if (line := _line(each.text, nodes))]
            found = array([bulk(line.encode()) for line in replicas])
    except (ValueError, IndexError):
        return _NOT_UNDERSTOOD % word
    return render(found)


def _slots_row(row: ReplyElement, nodes: NodeFinder) -> ReplyElement | None:
    """Rewrite first slot, last slot, master, replicas; None where nobody can find the master."""
    first, last, master, *replicas = row.parts
    found = _slots_node(master, nodes, int(first.text))
    if found is None:
        return None
    others = [_slots_node(each, nodes, None) for each in replicas] if nodes.replicas else []
    return array([first, last, found, *(each for each in others if each is not None)])


def _slots_node(node: ReplyElement, nodes: NodeFinder, slot: int | None) -> ReplyElement | None:
    host, port, *more = node.parts
    node_id = more[0].text if more else ""
    told = nodes.told(node_id, [_place(host.text, int(port.text))], slot)
    if told is None:
        return None
    # What follows the id, from 7.0 on, is the node's other address and name.
    rest = [more[0], *(ReplyElement(each.kind, []) for each in more[1:])] if more else []
    return array([bulk(told.host.encode()), number(told.port), *rest])


def _shard(shard: ReplyElement, nodes: NodeFinder) -> ReplyElement | None:
    fields = _pairs(shard)
    slots = fields["slots"].parts
    first = int(slots[0].text) if slots else None
    found = []
    for node in fields["nodes"].parts:
        told = _shard_node(node, nodes, first)
        if told is not None:
            found.append(told)
    if not found:
        return None
    parts = []
    for name, value in fields.items():
        parts += [bulk(name.encode()), array(found) if name == "nodes" else value]
    return ReplyElement(shard.kind, parts)


def _shard_node(node: ReplyElement, nodes: NodeFinder, slot: int | None) -> ReplyElement | None:
    fields = _pairs(node)
    is_master = fields["role"].text == "master"
    if not is_master and not nodes.replicas:
        return None
    ports = [int(fields[name].text) for name in ("tls-port", "port") if name in fields]
    hosts = [fields[name].text for name in ("endpoint", "hostname", "ip") if name in fields]
    places = [_place(host, port) for host in hosts for port in ports if host not in ("", "?")]
    told = nodes.told(fields["id"].text, places, slot if is_master else None)
    if told is None:
        return None
    ip = told.host if _is_ip(told.host) else nodes.ip
    where = [
        ("tls-port" if nodes.tls else "port", number(told.port)),
        ("ip", bulk(ip.encode())),
        ("endpoint", bulk(told.host.encode())),
        *([("hostname", bulk(told.host.encode()))] if ip != told.host else []),
    ]
    kept = [(name, value) for name, value in fields.items() if name not in _WHERE]
    parts = [each for name, value in (*where, *kept) for each in (bulk(name.encode()), value)]
    return ReplyElement(node.kind, parts)


def _lines(reply: ReplyElement, nodes: NodeFinder) -> ReplyElement:
    text = reply.text
    verbatim = reply.kind == b"="
    found = [
        line
        for each in (text[4:] if verbatim else text).splitlines()
        if (line := _line(each, nodes))
    ]
    body = "".join(f"{line}\n" for line in found)
    return ReplyElement(reply.kind, ((text[:4] if verbatim else "") + body).encode())


def _line(line: str, nodes: NodeFinder) -> str | None:
    """Rewrite a line of CLUSTER NODES; None where clients are not told of the node."""
    node_id, where, flags, *rest = line.split(" ")
    is_master = "master" in flags.split(",")
    if not is_master and not nodes.replicas:
        return None
    where, _, names = where.partition(",")
    hostname, *more = names.split(",")
    address, _, _ = where.partition("@")
    host, _, port = address.rpartition(":")
    fields = [node_id, where, flags, *rest]
    served = [each for each in fields[_NODE_FIELDS:] if not each.startswith("[")]
    slot = int(served[0].partition("-")[0]) if served and is_master else None
    places = [_place(each, int(port)) for each in (hostname, host) if each] or [
        _place("", int(port))
    ]
    told = nodes.told(node_id, places, slot)
    if told is None:
        return None
    bus = told.port + CLUSTER_BUS_PORTS if told.port + CLUSTER_BUS_PORTS <= PORT_MAX else told.port
    name = "" if _is_ip(told.host) else told.host
    ip = nodes.ip if name else told.host
    kept = [each for each in more if each.startswith("shard-id=")]
    named = f",{name}" if names or name else ""
    fields[1] = f"{ip}:{told.port}@{bus}" + ",".join([named, *kept])
    return " ".join(fields)


def _pairs(part: ReplyElement) -> dict[str, ReplyElement]:
    """Return a map, which is a flat array in RESP2."""
    parts = part.parts
    return {key.text: value for key, value in zip(parts[::2], parts[1::2], strict=True)}


def _place(host: str, port: int) -> str:
    return place_of("" if host == "?" else host, port)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
