"""What a single server's clients see of a cluster of one node, in its place among the replies."""

from __future__ import annotations

import pytest

from exodus.commands.key_slots import SLOTS
from exodus.commands.table import Command, CommandTable
from exodus.gateway.facade import answer, answers, node_id
from exodus.gateway.orders import Orders
from exodus.gateway.session import Dialect, Session
from exodus.resp.encode import encode
from exodus.resp.tree import parse
from exodus.telemetry.counters import NoKeyStatistics, Telemetry
from tests.support.script import Recorder, Script, replayed

IDENT = node_id("shop")
PING, PONG = encode("PING"), b"+PONG\r\n"
GET = encode("GET", "k")


def said(*args: str, protocol: int = 2, tls: bool = False) -> bytes:
    words = [each.encode() for each in args]
    assert answers(words)
    return answer(words, protocol, host="10.0.0.9", port=7000, ident=IDENT, tls=tls)


def test_one_node_has_all_slots() -> None:
    row = parse(said("CLUSTER", "SLOTS")).parts[0].parts
    assert [row[0].text, row[1].text] == ["0", str(SLOTS - 1)]
    assert [each.text for each in row[2].parts] == ["10.0.0.9", "7000", IDENT]
    line = parse(said("cluster", "nodes")).text
    assert line == f"{IDENT} 10.0.0.9:7000@17000 myself,master - 0 0 1 connected 0-16383\n"
    assert parse(said("CLUSTER", "NODES", protocol=3)).text == "txt:" + line
    assert "cluster_state:ok\r\n" in parse(said("CLUSTER", "INFO")).text
    assert parse(said("CLUSTER", "MYID")).text == IDENT
    assert len(IDENT) == 40


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("tls", [False, True])
def test_the_one_shard_names_the_port_that_clients_use(protocol: int, tls: bool) -> None:
    found = parse(said("CLUSTER", "SHARDS", protocol=protocol, tls=tls)).parts[0]
    assert found.kind == (b"%" if protocol == 3 else b"*")
    node = found.parts[3].parts[0].parts
    fields = {key.text: value.text for key, value in zip(node[::2], node[1::2], strict=True)}
    assert fields["tls-port" if tls else "port"] == "7000"
    assert fields["role"] == "master"


def test_slots_of_keys_are_told_and_keys_of_slots_are_not() -> None:
    assert said("CLUSTER", "KEYSLOT", "{foo}bar") == b":12182\r\n"
    for words in (("COUNTKEYSINSLOT", "1"), ("GETKEYSINSLOT", "1", "10")):
        assert said("CLUSTER", *words).startswith(b"-ERR the server behind this gateway is no")
    assert said("CLUSTER", "COUNTKEYSINSLOT", "16384") == b"-ERR Invalid slot\r\n"
    assert said("CLUSTER", "GETKEYSINSLOT", "-1", "1").startswith(b"-ERR Invalid slot or")


def test_requests_that_cannot_be_are_errors() -> None:
    assert said("CLUSTER", "KEYSLOT").startswith(b"-ERR wrong number of arguments")
    assert said("READONLY", "x").startswith(b"-ERR wrong number of arguments")
    assert said("CLUSTER", "REPLICAS", "other") == b"-ERR Unknown node other\r\n"
    assert said("CLUSTER", "REPLICAS", IDENT) == b"*0\r\n"
    assert not answers([b"CLUSTER", b"FAILOVER"])
    assert not answers([b"CLUSTER"])
    assert not answers([b"GET", b"CLUSTER"])


def made(out: Recorder) -> Session:
    reads = (
        b"GET",
        b"PING",
        b"CLUSTER",
        b"READONLY",
        b"ASKING",
        b"MULTI",
        b"EXEC",
        b"INFO",
        b"HELLO",
    )
    table = CommandTable([Command(name, write=False) for name in reads])
    session = Session(out, Orders(table, Telemetry(NoKeyStatistics())))
    session.log_in(None, 0.0, Dialect.FACADE)
    return session


@pytest.mark.parametrize("words", [("CLUSTER", "SLOTS"), ("READONLY",), ("ASKING",)])
def test_the_answer_comes_in_its_place(words: tuple[str, ...]) -> None:
    asked = encode(*words)
    told = b"+" + b" ".join(word.encode() for word in words) + b" of 2\r\n"
    (
        Script(made)
        >> ("from_client", GET + asked + GET)
        << ("to_server", GET + PING + GET)
        >> ("from_server", b"$1\r\n1\r\n" + PONG + b"$-1\r\n")
        << ("to_client", b"$1\r\n1\r\n" + told + b"$-1\r\n")
    ).play_at_every_split()


def test_a_client_that_has_not_logged_in_is_told_nothing() -> None:
    refused = b"-NOAUTH Authentication required.\r\n"
    (
        Script(made)
        >> ("from_client", encode("CLUSTER", "SLOTS"))
        << ("to_server", PING)
        >> ("from_server", refused)
        << ("to_client", refused)
    ).play_at_every_split()


def test_a_client_that_may_not_ping_is_answered() -> None:
    (
        Script(made)
        >> ("from_client", encode("CLUSTER", "MYID"))
        << ("to_server", PING)
        >> ("from_server", b"-NOPERM this user has no permissions to run the 'ping' command\r\n")
        << ("to_client", b"+CLUSTER MYID of 2\r\n")
    ).play_at_every_split()


@pytest.mark.parametrize("kind", [b"$", b"="])
def test_the_server_says_that_it_is_part_of_a_cluster(kind: bytes) -> None:
    def info(mode: bytes, enabled: int) -> bytes:
        text = b"# Server\r\nredis_mode:%b\r\nos:x\r\ncluster_enabled:%d\r\n" % (mode, enabled)
        text = b"txt:" + text if kind == b"=" else text
        return b"%b%d\r\n%b\r\n" % (kind, len(text), text)

    def hello(mode: bytes) -> bytes:
        head = b"%3" if kind == b"=" else b"*6"
        return head + (
            b"\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:2\r\n$4\r\nmode\r\n$%d\r\n%b\r\n"
        ) % (len(mode), mode)

    asked = encode("INFO") + encode("HELLO") + GET
    (
        Script(made)
        >> ("from_client", asked)
        << ("to_server", asked)
        >> ("from_server", info(b"standalone", 0) + hello(b"standalone") + b"$-1\r\n")
        << ("to_client", info(b"cluster", 1) + hello(b"cluster") + b"$-1\r\n")
    ).play_at_every_split()


def test_a_transaction_is_the_servers() -> None:
    sent = encode("MULTI") + encode("CLUSTER", "SLOTS") + encode("EXEC")
    replies = b"+OK\r\n+QUEUED\r\n*1\r\n-ERR This instance has cluster support disabled\r\n"
    (
        Script(made)
        >> ("from_client", sent)
        << ("to_server", sent)
        >> ("from_server", replies)
        << ("to_client", replies)
    ).play_at_every_split()


def test_readonly_goes_with_the_session_to_a_cluster() -> None:
    session = made(Recorder())
    session.from_client(encode("READONLY"), 0.0)
    session.from_server(PONG, 0.0)
    assert replayed(session) == (encode("READONLY"), 1, frozenset({0}))
