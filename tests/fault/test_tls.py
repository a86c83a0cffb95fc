"""TLS on either leg. The servers from PyPI have no TLS, so this test terminates TLS in front of
real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio as redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.exceptions import RedisClusterException

from exodus.acceptance import logins
from exodus.acceptance.logins import check_logins
from exodus.acceptance.read_only import ReadOnlyCluster, open_read_only
from exodus.acceptance.rows import Checked
from exodus.cancellation import end_all
from exodus.errors import OperatorError
from exodus.net.client import make_client
from exodus.plan.address import Address, Cluster
from exodus.plan.vocabulary import Side
from exodus.rehearsal.rehearse import rehearse
from exodus.resp.encode import encode
from exodus.stack.servers import ServerKind
from exodus.topology.endpoint import Endpoint
from tests.support.clusters import ClusterBox
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault


class Authority:
    """A certificate authority of one test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "exodus test")])
        self.file = folder / "ca.pem"
        self.file.write_bytes(
            self._sign(self.name, self.key, authority=True).public_bytes(serialization.Encoding.PEM)
        )

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if authority:
            usage = x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        else:
            host = subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(str(host))]), critical=False
            )
        return builder.sign(self.key, hashes.SHA256())

    def certificate(self, host: str, name: str) -> tuple[Path, Path]:
        """A certificate for a host, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]), key, authority=False
        )
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return files


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def client_tls(authority: Authority, *, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if own is not None:
        context.load_cert_chain(*own)
    return context


async def set_through(port: int, context: ssl.SSLContext, host: str) -> tuple[bytes, str]:
    """Return the answer to a SET, and the name in the certificate that was shown."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=host
    )
    writer.write(encode("SET", "k", "v"))
    answer = await asyncio.wait_for(reader.readexactly(5), 5)
    shown = writer.get_extra_info("peercert")["subject"][0][0][1]
    writer.close()
    return answer, shown


async def test_tls_on_the_applications_side_and_its_certificates_read_again(
    local: LocalMigration, authority: Authority
) -> None:
    cert, key = authority.certificate("first.test", "gateway")
    gateway = await local.gateway(cert_file=cert, key_file=key)
    context = client_tls(authority)
    assert await set_through(local.port, context, "first.test") == (b"+OK\r\n", "first.test")
    authority.certificate("second.test", "gateway")  # over the same files
    gateway.tls_contexts.reload()
    assert await set_through(local.port, context, "second.test") == (b"+OK\r\n", "second.test")
    cert.write_text("not a certificate")
    gateway.tls_contexts.reload()
    assert gateway.tls_contexts.reload_failures == 1
    assert await set_through(local.port, context, "second.test") == (b"+OK\r\n", "second.test"), (
        "the old one stays in force"
    )
    assert local.servers[Side.SOURCE].client().get("k") == b"v"


async def test_applications_without_a_certificate_are_refused_where_one_is_asked_for(
    local: LocalMigration, authority: Authority
) -> None:
    cert, key = authority.certificate("gateway.test", "gateway")
    await local.gateway(cert_file=cert, key_file=key, client_ca_file=authority.file)
    own = authority.certificate("application.test", "application")
    assert (await set_through(local.port, client_tls(authority, own=own), "gateway.test"))[
        0
    ] == b"+OK\r\n"
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await set_through(local.port, client_tls(authority), "gateway.test")


async def test_exodus_itself_goes_through_a_gateway_that_serves_tls(
    local: LocalMigration, authority: Authority
) -> None:
    cert, key = authority.certificate("gateway.test", "gateway")
    own_cert, own_key = authority.certificate("exodus.test", "exodus")
    await local.gateway(cert_file=cert, key_file=key, client_ca_file=authority.file)
    with pytest.raises(
        OperatorError, match=f"gateway: nothing answers at redis://127.0.0.1:{local.port}"
    ):
        await rehearse(local.store, local.reached())
    with pytest.raises(
        OperatorError, match=r"TLS files of rediss://.* cannot be used: ca_file /nowhere"
    ):
        await rehearse(local.store, local.reached(tls=True, ca_file=Path("/nowhere")))
    plan = local.reached(
        tls=True,
        ca_file=authority.file,
        cert_file=own_cert,
        key_file=own_key,
        server_name="gateway.test",
    )
    found = await rehearse(local.store, plan)
    assert (found["lost_writes"], found["error_count"]) == (0, 0), found["errors"]
    assert found["acknowledged_writes"] > 0


async def test_exodus_logs_in_where_the_source_asks_everybody_to(local: LocalMigration) -> None:
    """A rehearsal's sessions are handed over to the target, so the login has to work there too."""
    secret, user = local.plan.source.secret("source"), local.plan.source.username
    with (
        local.servers[Side.SOURCE].client() as source,
        local.servers[Side.TARGET].client() as target,
    ):
        target.execute_command("ACL", "SETUSER", user, f">{secret}")
        for client in (source, target):
            client.execute_command("ACL", "SETUSER", "default", "off")
        try:
            await local.gateway()
            found = await rehearse(local.store, local.reached())
        finally:
            target.execute_command("ACL", "SETUSER", user, f"<{secret}")
    assert (found["lost_writes"], found["error_count"]) == (0, 0), found["errors"]
    assert found["acknowledged_writes"] > 0


class Terminator:
    """TLS in front of a server that has none."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.target, self.context = port, context
        self.names: list[str | None] = []
        self.server: asyncio.Server
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Terminator:
        self.context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await end_all(self._serving)

    @property
    def port(self) -> int:
        return int(self.server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            except (ConnectionError, ssl.SSLError):
                pass  # the other side went first, or its certificate is refused
            sink.close()

        try:
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))
        finally:
            for each in (writer, inner_writer):
                each.transport.abort()
            self._serving.discard(task)


async def test_tls_on_the_servers_side_with_a_name_and_a_certificate_of_our_own(
    local: LocalMigration, authority: Authority
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    context.load_cert_chain(*authority.certificate("redis.test", "server"))
    context.verify_mode = ssl.CERT_REQUIRED
    cert, key = authority.certificate("gateway.test", "own")
    source = local.servers[Side.SOURCE]
    async with Terminator(source.port, context) as front:
        address = source.address().model_copy(
            update={
                "port": front.port,
                "tls": True,
                "ca_file": authority.file,
                "cert_file": cert,
                "key_file": key,
                "server_name": "redis.test",
            }
        )
        control = make_client(address, field="source")
        assert await control.ping()
        await control.aclose()
        plain = local.plan
        gateway = await local.gateway()
        gateway.plan = gateway.tls_contexts.plan = plain.model_copy(update={"source": address})
        gateway.tls_contexts.reload()
        app: redis.Redis = local.app()
        await app.set("k", "over tls")
        assert source.client().get("k") == b"over tls"
        assert set(front.names) == {"redis.test"}
        wrong = address.model_copy(update={"server_name": "another.test"})
        gateway.plan = gateway.tls_contexts.plan = plain.model_copy(update={"source": wrong})
        gateway.tls_contexts.reload()
        with pytest.raises(redis.ConnectionError):
            await local.app(retry=None).ping()
        await app.aclose()


async def test_test_looks_at_the_certificate_of_the_target(
    local: LocalMigration, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate that ends soon is red, and so is a target that speaks no TLS where the source
    does.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.certificate("redis.test", "server"))  # for an hour

    async def seen(**sides: Address) -> Checked:
        plan = local.plan.model_copy(update=sides)
        (row,) = [row for row in await check_logins(plan, local.store) if row.check == "TLS"]
        return row

    assert (await seen()).ok
    async with contextlib.AsyncExitStack() as opened:
        behind = {}
        for side in Side:
            box = local.servers[side]
            front = await opened.enter_async_context(Terminator(box.port, context))
            behind[side] = box.address().model_copy(
                update={
                    "port": front.port,
                    "tls": True,
                    "ca_file": authority.file,
                    "server_name": "redis.test",
                }
            )
        soon = await seen(target=behind[Side.TARGET])
        assert (soon.ok, "valid for 0 days" in soon.detail) == (False, True), soon
        none = await seen(source=behind[Side.SOURCE])
        assert (none.ok, "the source speaks TLS" in none.detail) == (False, True), none
        monkeypatch.setattr(logins, "CERTIFICATE_DAYS_MIN", 0)
        assert (await seen(target=behind[Side.TARGET])).ok


async def test_tls_to_every_node_of_a_cluster(
    make_cluster: Callable[..., ClusterBox], authority: Authority
) -> None:
    """Each node is behind TLS at another port than it announces."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    context.load_cert_chain(*authority.certificate("redis.test", "server"))
    context.verify_mode = ssl.CERT_REQUIRED
    cert, key = authority.certificate("exodus.test", "own")
    box = make_cluster(ServerKind.REDIS_62)
    with box.client() as client:
        client.mset_nonatomic({f"k{number}": number for number in range(100)})
    async with contextlib.AsyncExitStack() as opened:
        fronts = [
            await opened.enter_async_context(Terminator(node.port, context)) for node in box.nodes
        ]
        places = [f"127.0.0.1:{front.port}" for front in fronts]
        announced = [f"127.0.0.1:{node.port}" for node in box.nodes]
        address = box.address().model_copy(
            update={
                "cluster": tuple(places[:1]),
                "address_map": dict(zip(announced, places, strict=True)),
                "tls": True,
                "ca_file": authority.file,
                "cert_file": cert,
                "key_file": key,
                "server_name": "redis.test",
            }
        )
        endpoint = Endpoint(Side.SOURCE, address)
        assert (await endpoint.facts()).databases == {0: 100}
        async with await endpoint.connect(name="test") as leg:
            keys = [b"k%d" % number for number in range(100)]
            assert await leg.pipeline([("GET", each) for each in keys]) == [
                b"%d" % number for number in range(100)
            ]
        # The client of business checks is redis-py's
        for wrong in ({"server_name": "another.test"}, {"cert_file": None, "key_file": None}):
            with pytest.raises(RedisClusterException):
                await asyncio.to_thread(_read, address.model_copy(update=wrong))
        assert await asyncio.to_thread(_read, address) == {b"%d" % number for number in range(100)}
        # The fronts share one context, so the last one hears the names that all are asked for.
        assert {name for front in fronts for name in front.names} == {"redis.test", "another.test"}


def _read(cluster: Cluster) -> set[object]:
    with open_read_only(cluster, "source", db=0, timeout_s=5) as client:
        assert isinstance(client, ReadOnlyCluster)
        return set(client.mget_nonatomic([f"k{number}" for number in range(100)]))
