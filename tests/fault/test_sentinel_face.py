"""The Sentinel face of a gateway: Sentinel clients of real libraries, and hostile ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio.sentinel
from coredis import Sentinel as CoredisSentinel
from coredis.connection import TCPLocation

from exodus.control.route import Redirect, Route
from exodus.errors import ExodusError, OperatorError
from exodus.gateway import sentinel_face
from exodus.gateway.faces import open_face, services_of
from exodus.gateway.hub import Gateway
from exodus.gateway.options import GatewayOptions
from exodus.gateway.sentinel_face import SentinelFace
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side
from exodus.stack.home import free_port
from tests.fault.test_tls import Authority
from tests.support.full import FULL
from tests.support.ioredis import installed_ioredis
from tests.support.local_migration import LocalMigration
from tests.support.sentinels import ServiceBox
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
SERVICE = "orders"
Open = Callable[[int], "asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]"]


async def faced(local: LocalMigration) -> SentinelFace:
    gateway = await gateway_of(local)
    assert gateway.face is not None
    return gateway.face


async def gateway_of(local: LocalMigration) -> Gateway:
    return await local.gateway(
        sentinel_listen=f"127.0.0.1:{free_port()}", sentinel_services=(SERVICE,)
    )


async def asked(face: SentinelFace, *requests: bytes) -> bytes:
    """All that one client is answered before the face or the test ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"".join(requests) + b"QUIT\r\n")
    found = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return found


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py_needs_the_addresses_only(local: LocalMigration, protocol: int) -> None:
    """Master and replica clients; a password that a Sentinel asked for may stay."""
    face = await faced(local)
    sentinels = redis.asyncio.sentinel.Sentinel(
        [("127.0.0.1", face.port)],
        sentinel_kwargs={"password": "as before", "protocol": protocol},
        protocol=protocol,
    )
    assert await sentinels.discover_master(SERVICE) == ("127.0.0.1", local.port)
    assert await sentinels.discover_slaves(SERVICE) == []
    master, replica = sentinels.master_for(SERVICE), sentinels.slave_for(SERVICE)
    assert await master.set("k", "through the gateway")
    assert await replica.get("k") == b"through the gateway"
    with pytest.raises(redis.asyncio.sentinel.MasterNotFoundError):
        await sentinels.discover_master("nobody")
    await master.aclose()
    await replica.aclose()
    for each in sentinels.sentinels:
        await each.aclose()
    with local.servers[Side.SOURCE].client() as client:
        assert client.get("k") == b"through the gateway"


async def test_it_speaks_tls_where_it_is_told_to(local: LocalMigration, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.certificate("gw.test", "gateway")
    where: dict[str, Any] = {
        "sentinel_listen": f"127.0.0.1:{free_port()}",
        "sentinel_services": (SERVICE,),
    }
    options = GatewayOptions("bare", tmp_path, "127.0.0.1", local.port, sentinel_tls=True, **where)
    with pytest.raises(OperatorError, match="there is no certificate"):
        await open_face(local.plan, options, local.port, None, Route)
    gateway = await local.gateway(**where, sentinel_tls=True, cert_file=cert, key_file=key)
    assert gateway.face is not None
    tls: dict[str, Any] = {
        "ssl": True,
        "ssl_ca_certs": str(authority.file),
        "ssl_check_hostname": False,
    }
    sentinels = redis.asyncio.sentinel.Sentinel(
        [("127.0.0.1", gateway.face.port)], sentinel_kwargs=tls, **tls
    )
    async with sentinels.master_for(SERVICE) as master:
        assert await master.set("k", "v")
    with pytest.raises(redis.ConnectionError):
        await redis.asyncio.Redis(port=gateway.face.port).ping()
    for each in sentinels.sentinels:
        await each.aclose()


async def test_so_does_coredis(local: LocalMigration) -> None:
    face = await faced(local)
    async with CoredisSentinel([TCPLocation("127.0.0.1", face.port)]) as sentinels:
        assert await sentinels.discover_primary(SERVICE) == ("127.0.0.1", local.port)
        async with sentinels.primary_for(SERVICE) as client:
            assert await client.set("k", "v")
            assert await client.get("k") == b"v"


if FULL:

    async def test_and_ioredis(local: LocalMigration) -> None:
        face = await faced(local)
        _, folder = await installed_ioredis("ioredis.mjs")
        script = (
            "const { createRequire } = require('node:module');"
            f"const Redis = createRequire('{folder}/')('ioredis');"
            f"const client = new Redis({{ sentinels: [{{ host: '127.0.0.1', port: {face.port} }}],"
            f"  name: '{SERVICE}', failoverDetector: true }});"
            "client.set('k', 'v').then(() => client.get('k')).then((found) => {"
            "  console.log(found); client.disconnect(); });"
        )
        process = await asyncio.create_subprocess_exec(
            "node", "-e", script, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
        assert out == b"v\n"


async def test_it_answers_in_the_form_of_a_sentinel(
    local: LocalMigration, source_service: ServiceBox
) -> None:
    """Each reply has the type and the field names of a real one's."""
    face = await faced(local)
    real = source_service.sentinels[0].port

    def form(port: int, name: str) -> list[object]:
        with redis.Redis(port=port, protocol=2) as client:
            found: list[object] = []
            for words in (
                ("PING",),
                ("ROLE",),
                ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name),
                ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "nobody"),
                ("SENTINEL", "MASTER", name),
                ("SENTINEL", "MASTERS"),
                ("SENTINEL", "CKQUORUM", name),
                ("SENTINEL", "MASTER", "nobody"),
                ("SENTINEL", "REPLICAS", "nobody"),
                ("SENTINEL", "MASTER"),
                ("SENTINEL", "MYID"),
                ("NOSUCH",),
            ):
                client.response_callbacks.clear()
                try:
                    reply = client.execute_command(*words)
                except redis.ResponseError as exc:
                    found.append((words[:2], str(exc).lower().split(" ")[:2]))
                    continue
                found.append((words[:2], shape(reply)))
            with client.pubsub() as pubsub:
                pubsub.subscribe("+switch-master")
                pubsub.psubscribe("*")
                found += [
                    {**said, "data": said["data"]}
                    for _ in range(2)
                    if (said := pubsub.get_message(timeout=5)) is not None
                ]
            return found

    def shape(reply: object) -> object:
        if isinstance(reply, list) and reply and reply[0] == b"name":
            names = set(reply[::2]) - {b"failover-timeout"}
            return sorted(names)
        if isinstance(reply, list):
            return [shape(each) for each in reply]
        return type(reply).__name__

    ours = await asyncio.to_thread(form, face.port, SERVICE)
    theirs = await asyncio.to_thread(form, real, source_service.name)
    assert ours == theirs


async def test_a_redirect_leads_sentinel_clients_to_the_authority(local: LocalMigration) -> None:
    """Subscribers are told at once, and back again where the redirect is taken back."""
    face = await faced(local)
    authority = local.servers[Side.SOURCE].port
    client = redis.asyncio.Redis(port=face.port)
    pubsub = client.pubsub()
    await pubsub.subscribe("+switch-master")
    await pubsub.psubscribe("+switch*")
    await until(_subscribed(face), within_s=5, otherwise="nobody subscribed")

    async def told() -> set[bytes]:
        found = []
        async with asyncio.timeout(20):
            while len(found) < 2:
                said = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
                if said is not None:
                    found.append(said["data"])
        return set(found)

    await local.change(redirect=Redirect(per_s=1))
    before, after = f"127.0.0.1 {local.port}", f"127.0.0.1 {authority}"
    assert await told() == {f"{SERVICE} {before} {after}".encode()}
    assert b"$%d\r\n%d\r\n" % (len(str(authority)), authority) in await asked(
        face, b"SENTINEL get-master-addr-by-name orders\r\n"
    )
    await local.change(redirect=None)
    assert await told() == {f"{SERVICE} {after} {before}".encode()}
    await pubsub.aclose()
    await client.aclose()


def _subscribed(face: SentinelFace):  # type: ignore[no-untyped-def]
    async def there() -> bool:
        return any(each._subscribed == 2 for each in face.clients)

    return there


async def test_it_names_the_host_that_a_client_reached(local: LocalMigration) -> None:
    """Or the one that the operator announces."""
    gateway = await local.gateway(
        sentinel_listen=f"0.0.0.0:{free_port()}",
        sentinel_services=(SERVICE,),
    )
    assert gateway.face is not None
    for host in ("127.0.0.1", "127.0.0.2"):
        client = redis.asyncio.Redis(host=host, port=gateway.face.port, decode_responses=True)
        found = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        assert [*map(str, found)] == [host, str(local.port)]
        await client.aclose()
    other = await local.gateway(
        "gw-2",
        free_port(),
        sentinel_listen=f"127.0.0.1:{free_port()}",
        sentinel_services=(SERVICE,),
        sentinel_announce="gw.example.com:6400",
    )
    assert other.face is not None
    assert b"gw.example.com\r\n$4\r\n6400\r\n" in await asked(
        other.face, b"SENTINEL GET-MASTER-ADDR-BY-NAME orders\r\n"
    )


# ---------------------------------------------------------------------- hostile clients

_HOSTILE = {
    "no protocol": b"\xff\xfe\r\n" * 10 + b"*x\r\n",
    "a huge array": b"*2000000000\r\n",
    "a huge argument": b"*2\r\n$4\r\nPING\r\n$900000000\r\n" + b"x" * 10_000,
    "an endless line": b"x" * 200_000,
    "many arguments": b"*2000\r\n" + b"$1\r\nx\r\n" * 2_000,
    "many subscriptions": b"SUBSCRIBE" + b" x" * 60 + b"\r\n" + b"*x\r\n",
    "a negative length": b"*1\r\n$-5\r\n",
    "a long channel": b"*2\r\n$9\r\nSUBSCRIBE\r\n$20000\r\n" + b"x" * 20_000 + b"\r\n",
}


@pytest.mark.parametrize("what", _HOSTILE)
async def test_hostile_bytes_end_their_connection_only(local: LocalMigration, what: str) -> None:
    face = await faced(local)
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(_HOSTILE[what])
    try:
        await asyncio.wait_for(reader.read(), 10)  # it is ended, without a word from us
    except ConnectionError:
        pass  # reset, with bytes unread
    writer.close()
    assert face.ended == 1
    assert not face.clients
    assert await asked(face, b"PING\r\n") == b"+PONG\r\n+OK\r\n"
    assert await local.app().set("k", 1)


async def test_odd_questions_are_answered_with_errors(local: LocalMigration) -> None:
    face = await faced(local)
    requests = [
        b"SENTINEL\r\n",
        b"SENTINEL FAILOVER orders\r\n",
        b"SENTINEL SET orders quorum 1\r\n",
        b"*2\r\n$8\r\nSENTINEL\r\n$5\r\n\r\n-+:\r\n",
        b"HELLO 9\r\n",
        b"SUBSCRIBE\r\n",
        b"FLUSHALL\r\n",
    ]
    lines = (await asked(face, *requests)).split(b"\r\n")
    assert [line[:1] for line in lines[:7]] == [b"-"] * 7
    assert lines[7:] == [b"+OK", b""]


async def test_too_many_clients_are_refused_and_no_application_notices(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel_face, "SENTINEL_FACE_CLIENTS_MAX", 3)
    face = await faced(local)
    opened = [await asyncio.open_connection("127.0.0.1", face.port) for _ in range(5)]
    for reader, _ in opened[3:]:
        assert b"max number of clients" in await asyncio.wait_for(reader.read(), 10)
    assert (len(face.clients), face.refused) == (3, 2)
    for _, writer in opened:
        writer.close()
    assert await local.app().set("k", 1)


async def test_a_flood_waits_and_the_relay_goes_on(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel_face, "SENTINEL_FACE_PER_S_MAX", 50)
    face = await faced(local)
    reader, writer = await asyncio.open_connection("127.0.0.1", face.port)
    writer.write(b"PING\r\n" * 120)
    app = local.app()
    for number in range(100):
        assert await app.set("k", number)
    found = await asyncio.wait_for(reader.readexactly(len(b"+PONG\r\n") * 120), 20)
    assert found == b"+PONG\r\n" * 120
    assert face.delayed >= 2
    writer.close()


async def test_a_client_that_reads_nothing_is_ended(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel_face, "SENTINEL_FACE_PER_S_MAX", 1_000_000)
    face = await faced(local)
    _, writer = await asyncio.open_connection("127.0.0.1", face.port)

    async def gone() -> bool:
        writer.write(b"SENTINEL MASTERS\r\n" * 2_000)
        return face.ended == 1

    await until(gone, within_s=20, otherwise="it was never ended")
    writer.close()


# ---------------------------------------------------------------------- what cannot be


async def test_a_port_that_is_in_use_is_named(local: LocalMigration) -> None:
    taken = local.servers[Side.SOURCE].port
    with pytest.raises(ExodusError, match=f"like a Sentinel on 127.0.0.1:{taken}"):
        await local.gateway(sentinel_listen=f"127.0.0.1:{taken}", sentinel_services=(SERVICE,))


def test_names_come_from_the_plan_or_must_be_given(
    source_service: ServiceBox, valkey91: DatabaseServer, tmp_path: Path
) -> None:
    options = GatewayOptions("gw", tmp_path, "127.0.0.1", 1)
    plan = Plan(name="t", source=source_service.address(), target=valkey91.address())
    assert services_of(plan, options) == (source_service.name,)
    plan = Plan(name="t", source=valkey91.address(), target=valkey91.address())
    with pytest.raises(OperatorError, match="no service is known"):
        services_of(plan, options)
    options.sentinel_services = (SERVICE,)
    assert services_of(plan, options) == (SERVICE,)
