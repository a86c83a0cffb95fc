"""Pre-test capture by MONITOR: what the source executes, in order, without touching the applications.

MONITOR's lines are simple strings on the wire, so the reply scanner frames them; their quoted arguments use the escapes of inline
requests. It shows no replies, no CONFIG and no refused commands, and it costs the source a good part of its throughput while it runs
(more than half of it by Redis' own documentation), so it runs for a stated time.
"""

from __future__ import annotations

import asyncio

from exodus.commands.table import CommandTable
from exodus.errors import SourceError
from exodus.net.tls import ssl_context
from exodus.observe.profile import Profile
from exodus.plan.address import Address
from exodus.plan.bounds import CONNECT_TIMEOUT_S
from exodus.plan.vocabulary import Side
from exodus.resp.encode import encode
from exodus.resp.inline import split_line
from exodus.resp.scanner import ReplyScanner

_READ_BYTES = 256 * 1024


def parse_line(line: bytes) -> tuple[float, int, str, list[bytes]] | None:
    """One line of MONITOR as (time in s, database, client, arguments), or None where it is none.

    `1339518083.107412 [0 127.0.0.1:60866] "keys" "*"`; the client is `lua` for what a script executes.
    """
    stamp, _, rest = line.partition(b" [")
    where, closed, quoted = rest.partition(b'] "')
    if not closed:
        return None
    db, _, client = where.partition(b" ")
    args = split_line(b'"' + quoted)
    try:
        return (float(stamp), int(db), client.decode("ascii", "replace"), args) if args else None
    except ValueError:
        return None


class MonitorReader:
    """MONITOR's bytes in, a profile out; no I/O."""

    def __init__(self, table: CommandTable) -> None:
        self.profile = Profile()
        self.last_stamp = 0.0
        self._table = table
        self._scanner = ReplyScanner()
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        buffered = self._tail + data
        at = 0
        for reply in self._scanner.feed(data):
            at += reply.size
            if reply.head == b"OK":
                continue
            parsed = parse_line(reply.head) if reply.kind == 0x2B else None
            if parsed is None:
                self.profile.unreadable += 1
                continue
            self.last_stamp, db, client, args = parsed
            if client == "lua":
                self.profile.from_scripts += 1
                continue
            self.profile.add(self._table, args, db, client)
        self._tail = buffered[at:]


async def capture(address: Address, table: CommandTable, *, seconds: float) -> Profile:
    """Watch the source for `seconds`.

    Raises:
        SourceError: it refuses the credentials or MONITOR.
    """
    loop = asyncio.get_running_loop()
    context = ssl_context(address)
    try:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(
                address.host,
                address.port,
                ssl=context,
                server_hostname=(address.server_name or address.host) if context else None,
            ),
            CONNECT_TIMEOUT_S,
        )
    except (OSError, TimeoutError) as exc:
        raise SourceError(
            f"{address.url} does not answer",
            why=str(exc),
            next_step="check source in the migration file",
        ) from exc
    watcher = MonitorReader(table)
    began = loop.time()
    try:
        secret = address.secret(Side.SOURCE)
        hello = (
            encode("AUTH", *([address.username] if address.username else []), secret)
            if secret
            else b""
        )
        writer.write(hello + encode("MONITOR"))
        for _ in range(2 if secret else 1):
            line = await asyncio.wait_for(reader.readline(), CONNECT_TIMEOUT_S)
            if not line.startswith(b"+OK"):
                raise SourceError(
                    "the source does not let us MONITOR",
                    why=line.decode("utf-8", "replace").strip()[:200],
                    next_step="grant +monitor to Exodus's user, or skip the capture: analyze learns the same once apps use the gateway",
                )
        began = loop.time()
        deadline = began + seconds
        while (left := deadline - loop.time()) > 0:
            try:
                data = await asyncio.wait_for(reader.read(_READ_BYTES), left)
            except TimeoutError:
                break
            if not data:
                raise SourceError(
                    "the source ended the capture",
                    why="the connection was closed",
                    next_step="look at its log",
                )
            watcher.feed(data)
    finally:
        writer.close()
    watcher.profile.seconds = loop.time() - began
    return watcher.profile
