"""The facade: a single server looks to cluster clients like a cluster of one node with all slots.

So applications may use a cluster client before the server becomes a cluster, and go on with it
after a cluster has become a server. Everything but the requests here is relayed. These are answered
in their place among the replies (session/matching.py). No I/O.
"""

from __future__ import annotations

import hashlib

from exodus.commands.key_slots import SLOTS, slot_of
from exodus.commands.keys import integer
from exodus.plan.bounds import CLUSTER_BUS_PORTS, PORT_MAX
from exodus.resp.tree import ReplyElement, array, bulk, number, parse, render

_OK = b"+OK\r\n"
_WORDS = frozenset(
    b"SLOTS SHARDS NODES INFO MYID MYSHARDID KEYSLOT COUNTKEYSINSLOT GETKEYSINSLOT LINKS REPLICAS "
    b"SLAVES COUNT-FAILURE-REPORTS".split()
)
_STATES = frozenset({b"READONLY", b"READWRITE", b"ASKING"})
_ARGUMENTS = {
    b"KEYSLOT": 1,
    b"COUNTKEYSINSLOT": 1,
    b"GETKEYSINSLOT": 2,
    b"REPLICAS": 1,
    b"SLAVES": 1,
    b"COUNT-FAILURE-REPORTS": 1,
}
_INFO = (
    "cluster_enabled:1\r\ncluster_state:ok\r\n"
    f"cluster_slots_assigned:{SLOTS}\r\ncluster_slots_ok:{SLOTS}\r\n"
    "cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:1\r\ncluster_size:1\r\n"
    "cluster_current_epoch:1\r\ncluster_my_epoch:1\r\n"
    "cluster_stats_messages_sent:0\r\ncluster_stats_messages_received:0\r\n"
    "total_cluster_links_buffer_limit_exceeded:0\r\n"
)
_MODES = (
    (b"redis_mode:standalone\r\n", b"redis_mode:cluster\r\n"),
    (b"server_mode:standalone\r\n", b"server_mode:cluster\r\n"),
    (b"cluster_enabled:0\r\n", b"cluster_enabled:1\r\n"),
)
_NO_SLOT = {  # as a node says it
    b"COUNTKEYSINSLOT": b"-ERR Invalid slot\r\n",
    b"GETKEYSINSLOT": b"-ERR Invalid slot or number of keys\r\n",
}
# To know them, the whole keyspace would have to be scanned for each request. A number that is not
# true would be worse than an error: tools that move slots take 0 for a slot that is empty.
_KEYS_UNKNOWN = (
    b"-ERR the server behind this gateway is no cluster: it has no list of keys by slot\r\n"
)


def answers(args: list[bytes]) -> bool:
    """Tell whether a request is answered here."""
    word = args[0].upper()
    return word in _STATES or (word == b"CLUSTER" and len(args) > 1 and args[1].upper() in _WORDS)


def as_node(frame: bytes) -> bytes:
    """Return a whole reply to HELLO or INFO as a node of a cluster gives it."""
    try:
        reply = parse(frame)
    except ValueError:
        return frame
    if isinstance(reply.value, bytes):
        for here, there in _MODES:
            reply.value = reply.value.replace(here, there)
    else:
        parts = reply.parts
        for name, value in zip(parts[::2], parts[1::2], strict=False):
            if name.value == b"mode" and value.value == b"standalone":
                value.value = b"cluster"
    return render(reply)


def node_id(migration: str) -> str:
    """Return the id of the one node: the same in every gateway of a migration."""
    return hashlib.sha1(f"exodus:{migration}".encode(), usedforsecurity=False).hexdigest()


def answer(
    args: list[bytes], protocol: int, *, host: str, port: int, ident: str, tls: bool
) -> bytes:
    """Return the reply to a request that `answers` names.

    Args:
        args: the request.
        protocol: 2 or 3.
        host: where clients find the node.
        port: likewise; of the first listener.
        ident: the node's id.
        tls: clients use TLS.
    """
    if args[0].upper() in _STATES:
        return _OK if len(args) == 1 else _wrong(args[0])
    word = args[1].upper()
    if len(args) - 2 != _ARGUMENTS.get(word, 0):
        return _wrong(b"CLUSTER|" + word)
    if word in (b"REPLICAS", b"SLAVES", b"COUNT-FAILURE-REPORTS") and args[2] != ident.encode():
        return b"-ERR Unknown node %b\r\n" % args[2]
    if word in (b"COUNTKEYSINSLOT", b"GETKEYSINSLOT"):
        slot = integer(args[2])
        return _KEYS_UNKNOWN if slot is not None and slot < SLOTS else _NO_SLOT[word]
    found = _replies(protocol, host, port, ident, tls=tls)
    return render(number(slot_of(args[2])) if word == b"KEYSLOT" else found[word])


def _replies(
    protocol: int, host: str, port: int, ident: str, *, tls: bool
) -> dict[bytes, ReplyElement]:
    """Return what the one node says, by the word of CLUSTER."""
    name, none = bulk(ident.encode()), array([])
    node = array([bulk(host.encode()), number(port), name])
    return {
        b"SLOTS": array([array([number(0), number(SLOTS - 1), node])]),
        b"SHARDS": _shards(protocol, host, port, ident, tls=tls),
        b"NODES": _text(protocol, _line(host, port, ident)),
        b"INFO": _text(protocol, _INFO),
        b"MYID": name,
        b"MYSHARDID": name,
        b"REPLICAS": none,
        b"SLAVES": none,
        b"LINKS": none,
        b"COUNT-FAILURE-REPORTS": number(0),
    }


def _text(protocol: int, text: str) -> ReplyElement:
    return ReplyElement(b"=", b"txt:" + text.encode()) if protocol == 3 else bulk(text.encode())


def _line(host: str, port: int, ident: str) -> str:
    bus = port + CLUSTER_BUS_PORTS if port + CLUSTER_BUS_PORTS <= PORT_MAX else port
    return f"{ident} {host}:{port}@{bus} myself,master - 0 0 1 connected 0-{SLOTS - 1}\n"


def _shards(protocol: int, host: str, port: int, ident: str, *, tls: bool) -> ReplyElement:
    node = _fields(
        protocol,
        id=bulk(ident.encode()),
        **{"tls-port" if tls else "port": number(port)},
        ip=bulk(host.encode()),
        endpoint=bulk(host.encode()),
        role=bulk(b"master"),
        **{"replication-offset": number(0)},
        health=bulk(b"online"),
    )
    slots = array([number(0), number(SLOTS - 1)])
    return array([_fields(protocol, slots=slots, nodes=array([node]))])


def _fields(protocol: int, **fields: ReplyElement) -> ReplyElement:
    parts = [each for name, value in fields.items() for each in (bulk(name.encode()), value)]
    return ReplyElement(b"%" if protocol == 3 else b"*", list(parts))


def _wrong(command: bytes) -> bytes:
    return b"-ERR wrong number of arguments for '%b' command\r\n" % command.lower()
