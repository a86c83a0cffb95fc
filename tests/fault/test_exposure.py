"""A gateway lends no client what belongs to Exodus. It takes no server and no password file from
the control store that its own file does not name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from exodus.cutover import switch
from exodus.cutover.fence import Fence, Record
from exodus.errors import OperatorError
from exodus.gateway.exposure import check_address, check_certificates, check_pinned, is_local
from exodus.plan.address import Credentials
from exodus.plan.bounds import STATUS_CLIENTS_MAX
from exodus.plan.in_place import OURS, in_place
from exodus.plan.plan import Plan
from exodus.plan.settings import RoleUser, Users
from exodus.plan.vocabulary import FenceKind, Side
from exodus.resp.encode import encode
from exodus.stack.home import free_port
from exodus.telemetry.http import StatusServer
from tests.fault.test_tls import Authority, Terminator, client_tls, set_through
from tests.support.local_migration import LocalMigration
from tests.support.process import GatewayProcess, migration_file
from tests.support.wait import until, wait_until

pytestmark = pytest.mark.fault


def _ends(local: LocalMigration, name: str, *arguments: str) -> str:
    """Return the message of a gateway that does not start."""
    gateway = GatewayProcess(local, *arguments, name=name)
    try:
        assert gateway.started.process.wait(30) == 2
    finally:
        gateway.kill()
    return gateway.log.read_text()


# ---------------------------------------------------------------------- certificates and addresses


async def test_a_source_that_asks_for_certificates_is_not_opened_to_clients_without_one(
    local: LocalMigration, tmp_path: Path
) -> None:
    """TLS from the client to the source: with the certificate that Exodus would lend, and with the
    client's own.
    """
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.file))
    context.load_cert_chain(*authority.certificate("redis.test", "server"))
    context.verify_mode = ssl.CERT_REQUIRED
    own_cert, own_key = authority.certificate("exodus.test", "own")
    cert, key = authority.certificate("gateway.test", "gateway")
    application = authority.certificate("application.test", "application")
    source = local.servers[Side.SOURCE]
    async with Terminator(source.port, context) as front:
        more = {
            "port": front.port,
            "tls": True,
            "ca_file": authority.file,
            "cert_file": own_cert,
            "key_file": own_key,
            "server_name": "redis.test",
        }
        local.plan = local.plan.model_copy(
            update={"source": source.address().model_copy(update=more)}
        )
        await local.store.save_plan(local.plan)
        (tmp_path / "own").mkdir()
        file = local.file(tmp_path / "own")
        document = yaml.safe_load(file.read_text())
        document["source"] |= {
            name: str(value) for name, value in more.items() if name not in ("port", "tls")
        }
        document["source"]["url"] = f"rediss://{source.address().username}@127.0.0.1:{front.port}"
        file.write_text(yaml.safe_dump(document))
        tls = [
            "--file",
            str(file),
            "--listen",
            f"127.0.0.1:{local.port}",
            "--cert-file",
            str(cert),
            "--key-file",
            str(key),
        ]
        for number, workers in enumerate(([], ["--workers", "2"])):
            said = await asyncio.to_thread(_ends, local, f"none-{number}", *tls, *workers)
            assert "Exodus's own certificate for every client" in said
            assert "--client-ca-file" in said
        asking = GatewayProcess(local, *tls, "--client-ca-file", str(authority.file), name="asking")
        try:
            await asyncio.to_thread(asking.wait_said, "listens on")
            assert (
                await set_through(
                    local.port, client_tls(authority, own=application), "gateway.test"
                )
            )[0] == b"+OK\r\n"
            with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
                await set_through(local.port, client_tls(authority), "gateway.test")
        finally:
            await asyncio.to_thread(asking.end)
        lending = GatewayProcess(local, *tls, "--lend-own-certificate", name="lending")
        try:
            await asyncio.to_thread(lending.wait_said, "listens on")
            assert (await set_through(local.port, client_tls(authority), "gateway.test"))[
                0
            ] == b"+OK\r\n"
        finally:
            await asyncio.to_thread(lending.end)
    assert source.client().get("k") == b"v"


async def test_a_server_that_trusts_its_own_machine_is_not_opened_to_the_network(
    local: LocalMigration,
) -> None:
    """The servers of the tests ask no client on loopback for a password."""
    with pytest.raises(OperatorError, match="open the source to the network") as caught:
        await check_address(local.plan, "0.0.0.0", lend=False)
    assert "--lend-own-address" in caught.value.next_step
    await check_address(local.plan, "0.0.0.0", lend=True)
    for host in ("127.0.0.1", "::1", "localhost", "unix:/run/exodus.sock"):
        assert is_local(host)
        await check_address(local.plan, host, lend=False)
    for box in local.servers.values():
        box.client().execute_command("ACL", "SETUSER", "default", "off")
    try:
        await check_address(local.plan, "0.0.0.0", lend=False)
    finally:
        for box in local.servers.values():
            box.client().execute_command("ACL", "SETUSER", "default", "on")
    said = await asyncio.to_thread(_ends, local, "open", "--listen", f"0.0.0.0:{local.port}")
    assert "open the source to the network" in said


def test_which_plans_need_the_clients_certificates(plant_plan: Plan) -> None:
    check_certificates(plant_plan, None, lend=False)
    asks = plant_plan.model_copy(
        update={
            "target": plant_plan.target.model_copy(
                update={"tls": True, "cert_file": Path("own.pem")}
            )
        }
    )
    with pytest.raises(OperatorError, match="the target Exodus's own certificate"):
        check_certificates(asks, None, lend=False)
    check_certificates(asks, Path("ca.pem"), lend=False)
    check_certificates(asks, None, lend=True)


@pytest.fixture
def plant_plan() -> Plan:
    side = {"host": "h", "port": 1, "username": "exodus", "password_file": "/run/secret"}
    return Plan.model_validate({"name": "a", "source": side, "target": {**side, "host": "t"}})


# ---------------------------------------------------------------------- the control store


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source": {"host": "evil.test"}}, "source.host"),
        ({"target": {"port": 2}}, "target.port"),
        ({"target": {"password_file": "/etc/shadow"}}, "target.password_file"),
        (
            {"source": {"password_env": "AWS_SECRET_ACCESS_KEY", "password_file": None}},
            "source.password_env",
        ),
        ({"source": {"tls": True, "ca_file": "/tmp/theirs.pem"}}, "source.ca_file"),
        (
            {
                "logins": [
                    {"user": "shop", "password_file": "/a", "target_password_file": "/etc/shadow"}
                ]
            },
            "logins",
        ),
        (
            {"users": {"switch": {"source": {"username": "x", "password_file": "/etc/shadow"}}}},
            "users.switch.source",
        ),
    ],
)
def test_the_store_names_no_other_server_or_secret(
    plant_plan: Plan, change: dict[str, dict[str, object]], named: str
) -> None:
    """Its plan could send a file of this machine to any host."""
    check_pinned(plant_plan, plant_plan)
    check_pinned(plant_plan, plant_plan.model_copy(update={"sample": 0.5}))
    document = plant_plan.model_dump(mode="json")
    for field, value in change.items():
        document[field] = {**document[field], **value} if isinstance(value, dict) else value
    with pytest.raises(OperatorError, match=named.replace("[", r"\[")):
        check_pinned(plant_plan, Plan.model_validate(document))


async def test_a_gateway_and_a_syncer_refuse_a_plan_with_another_host(
    local: LocalMigration,
) -> None:
    migration_file(local)
    listener = socket.create_server(("127.0.0.1", 0))
    elsewhere = local.plan.source.model_copy(update={"port": listener.getsockname()[1]})
    await local.store.save_plan(local.plan.model_copy(update={"source": elsewhere}))
    said = await asyncio.to_thread(_ends, local, "told")
    assert "is not that of the migration file: source.port" in said
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


@pytest.mark.parametrize(
    "change",
    [
        {"users": {"switch": {"source": {"username": "x", "password_file": "/etc/shadow"}}}},
        {
            "logins": [
                {"user": "shop", "password_file": "/a", "target_password_file": "/etc/shadow"}
            ]
        },
        {"compare_user": {"username": "x", "password_file": "/etc/shadow"}},
        {"candidates": [{"host": "evil.test", "port": 1, "password_file": "/etc/shadow"}]},
        {"capture_folder": "/home", "capture_hours_max": 0.01},
        {"workers": {"kind": "dask", "dask_scheduler": "tcp://evil.test:8786"}},
        {"source": {"password_file": "/etc/shadow"}},
        {"target": {"tls": False, "ca_file": "/tmp/theirs.pem"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_store_names_no_login_file_or_worker_of_a_flow(
    plant_plan: Plan, change: dict[str, object]
) -> None:
    """It could have a worker send a file away, delete captures in any folder, or take what it runs
    from a scheduler that answers with code.
    """
    document = plant_plan.model_dump(mode="json") | {"sample": 0.5}
    for field, value in change.items():
        document[field] = {**(document[field] or {}), **value} if isinstance(value, dict) else value
    told = Plan.model_validate(document)
    assert told != plant_plan.model_copy(update={"sample": 0.5})
    found = in_place(told, plant_plan, named="the Migration block")
    assert found == plant_plan.model_copy(update={"sample": 0.5})


def test_every_path_and_secret_of_a_plan_is_one_s_own(plant_plan: Plan) -> None:
    """A field that names a file or a login is the reader's own, or one that says why it may be
    told.
    """
    told = {
        "gateway",  # a gateway's own options name its files
        "test_checks",  # held against the block where they are used: exodus/acceptance/business.py
    }
    schema = Plan.model_json_schema()

    def named(part: object, seen: frozenset[str] = frozenset()) -> bool:
        if isinstance(part, list):
            return any(named(each, seen) for each in part)
        if not isinstance(part, dict):
            return False
        ref = str(part.get("$ref", "")).rpartition("/")[2]
        inside = ref not in ("", *seen) and named(schema["$defs"][ref], seen | {ref})
        is_one = part.get("format") in ("path", "password") or "password" in part.get(
            "properties", ()
        )
        return inside or is_one or any(named(each, seen) for each in part.values())

    found = {name for name, part in schema["properties"].items() if named(part)}
    assert {"source", "target", "users", "logins", "capture_folder"} <= found
    assert found <= {*OURS, "source", "target", *told}


async def test_a_command_reads_no_file_that_the_store_names(
    local: LocalMigration, tmp_path: Path
) -> None:
    """Whoever writes to the store could have `exodus verify` send a file of the operator's machine
    to a host of theirs.
    """
    file = local.file(tmp_path)
    (tmp_path / "private").write_text("a-private-key")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    theirs = {"port": listener.getsockname()[1], "password_file": tmp_path / "private"}
    evil = local.plan.source.model_copy(update=theirs)
    await local.store.save_plan(local.plan.model_copy(update={"source": evil}))
    for command in ("verify", "dry-run", "repair"):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "exodus.cli.app", command, "--file", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "names another source than the registered plan" in done.stderr
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


async def test_a_fences_record_gives_no_more_than_rights_to_commands(local: LocalMigration) -> None:
    """A writer of the store could otherwise set a user's password, or open the user, when a gateway
    lifts a fence.
    """
    source = local.servers[Side.SOURCE].client()
    before = source.acl_list()
    async with Fence(local.store, Side.SOURCE, local.plan) as fence:
        source.set(fence._guard, "s1")
        for words in ("+@all >theirs", "+@all nopass", "+@all on ~*", "reset +@all"):
            record = Record(
                "s1", str(FenceKind.ACL), {"default": {"commands": words, "selectors": []}}
            )
            with pytest.raises(OperatorError, match="cannot be given back"):
                await fence.lower(record)
        settings = Record(
            "s1",
            str(FenceKind.MIN_REPLICAS),
            {"dir": "/tmp", "min-replicas-to-write": "0", "min-replicas-max-lag": "10"},
        )
        await fence.open(settings)
    assert source.acl_list() == before
    assert source.config_get("dir")["dir"] != "/tmp"


# ---------------------------------------------------------------------- status pages


async def test_status_pages_are_on_an_address_of_their_own(local: LocalMigration) -> None:
    """Applications reach the gateway by any address of the machine. The pages are on loopback
    unless the operator says otherwise.
    """
    gateway = GatewayProcess(local, "--listen", f"0.0.0.0:{local.port}", "--lend-own-address")
    try:
        port = int(
            (await asyncio.to_thread(gateway.wait_said, r"/metrics on port (\d+) of 127.0.0.1"))[0]
        )
        with socket.create_server(("127.0.0.2", port)):
            pass  # free on every other address
        assert (await asyncio.to_thread(gateway.health))[0] == 200
    finally:
        await asyncio.to_thread(gateway.end)
    elsewhere = GatewayProcess(
        local, "--status-listen", "127.0.0.3", "--status-port", str(free_port()), name="elsewhere"
    )
    try:
        await asyncio.to_thread(elsewhere.wait_said, r"/metrics on port (\d+) of 127.0.0.3")
    finally:
        await asyncio.to_thread(elsewhere.end)


def test_slow_readers_hold_no_more_than_a_few_threads() -> None:
    """300 clients never end their request, or never read the answer. The supervisor still gets its
    answers.
    """
    served = StatusServer(
        "127.0.0.1",
        0,
        lambda: [("exodus_test_size", "x" * 500_000, {}, 1.0)],
        lambda: (True, "well"),
    )
    before = threading.active_count()
    slow: list[socket.socket] = []
    most = 0
    try:
        for number in range(300):
            sock = socket.create_connection(("127.0.0.1", served.port), timeout=10)
            sock.sendall(b"GET /metrics HTTP/1.0\r\n" + (b"\r\n" if number % 10 == 0 else b"x"))
            slow.append(sock)
            most = max(most, threading.active_count() - before)
        assert most <= 3 * STATUS_CLIENTS_MAX, "clients do not make room for newer ones"
        wait_until(
            lambda: threading.active_count() - before <= 20,
            within_s=10,
            otherwise="more threads than clients that may be served",
        )
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as sock:
            sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert sock.recv(64).startswith(b"HTTP/1.0 200")
        wait_until(
            lambda: threading.active_count() <= before,
            within_s=20,
            otherwise="clients that never end are never cut off",
        )
    finally:
        for sock in slow:
            sock.close()
        served.close()


# ---------------------------------------------------------------------- what is refused costs the
# control store nothing


async def _entries(local: LocalMigration) -> dict[bytes, int]:
    """Return the length of each stream of the control store."""
    client = local.store.client
    return {
        key: await client.xlen(key)
        for key in await client.keys("*")
        if await client.type(key) == b"stream"
    }


async def test_refused_writes_leave_nothing_in_the_control_store(local: LocalMigration) -> None:
    """400 SETs with keys of 16 kB, which the source refuses while every write is journalled.

    Before, they would have taken 6 MB of the store. More take long: strangers share a small part of
    the gateway's time.
    """
    source = local.servers[Side.SOURCE].client()
    source.execute_command("ACL", "SETUSER", "default", "off")
    try:
        gateway = await local.gateway()
        await local.change(journal="all")
        entries: dict[bytes, int] = {}

        async def settled() -> bool:  # what the change itself journals is there
            nonlocal entries
            entries = await _entries(local)
            await asyncio.sleep(0.5)
            return entries == await _entries(local)

        await until(settled, within_s=20, otherwise="somebody writes the journal")
        before = (await local.store.client.info("memory"))["used_memory"]
        reader, writer = await asyncio.open_connection("127.0.0.1", local.port)
        for number in range(400):
            writer.write(encode("SET", f"{number}:" + "k" * 16_000, "v"))
            assert (await reader.readline()).startswith(b"-NOAUTH")
        writer.close()

        async def flushed() -> bool:
            return not gateway.unflushed

        await until(flushed, within_s=10, otherwise="refused writes count as unflushed")
        after = (await local.store.client.info("memory"))["used_memory"]
        assert await _entries(local) == entries
        assert after - before < 2_000_000
        assert gateway.journaler.gaps == {}
    finally:
        source.execute_command("ACL", "SETUSER", "default", "on")


def test_roles_need_users_of_their_own() -> None:
    with pytest.raises(ValueError, match="default"):
        Users(switch=RoleUser(source=Credentials(username="default", password_file=Path("x"))))


async def test_it_is_known_at_the_switch_that_the_new_authority_asks_for_a_login(
    local: LocalMigration,
) -> None:
    """Before, until the next probe, each stranger whose connection ended without an answer opened a
    gap, which blocked the way back.
    """
    for box in local.servers.values():
        box.client().execute_command("ACL", "SETUSER", "default", "resetpass", ">secret")
    try:
        gateway = await local.gateway()
        await local.syncer()
        await local.start_live_sync()
        await local.backfill()
        for to in (Side.TARGET, Side.SOURCE):
            assert (await switch.apply(local.store, local.plan, to)).switched
            assert gateway.groups.main.orders.login_needed
    finally:
        for box in local.servers.values():
            box.client().execute_command("ACL", "SETUSER", "default", "nopass")
