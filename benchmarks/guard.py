"""Which guard of a follower is faster: a transaction under WATCH, or a script that looks first.

`python -m benchmarks.guard` prints keys a second of both on each server, in turn, and their ratio
(docs/decisions/0020-guard-by-transaction.md).
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from exodus.copy.guard import Guard, GuardedLeg
from exodus.net.leg import Leg
from exodus.plan.vocabulary import Side
from exodus.resp.encode import Arg, encode_many
from exodus.stack.home import free_port
from exodus.stack.servers import Server, ServerKind, start_server, wait_server

_KEYS, _BATCH, _ROUNDS, _VALUE_BYTES = 60_000, 256, 7, 100
_GUARD = ((b"guard", b"1"), (b"lane", b"7"))
_SCRIPT = """
for i = 1, #KEYS do if redis.call('GET', KEYS[i]) ~= ARGV[i] then return 'ended' end end
local n, refused = #KEYS, {}
redis.call('SELECT', ARGV[n + 1])
for i = n + 2, #ARGV, 3 do
  local said = redis.pcall('RESTORE', ARGV[i], ARGV[i + 1], ARGV[i + 2], 'REPLACE', 'ABSTTL')
  if said.err then refused[#refused + 1] = {(i - n - 2) / 3, said.err} end
end
return #refused == 0 and 0 or refused
"""


@dataclass
class _Figures:
    """Of one guard, a row a round."""

    keys_per_s: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        rate, server, client = map(
            statistics.median, (self.keys_per_s, self.server_us, self.client_us)
        )
        return f"{rate:,.0f} keys/s, {server:.1f} µs server and {client:.1f} µs client a key"


def _cpu_s(server: Server) -> float:
    fields = Path(f"/proc/{server.started.process.pid}/stat").read_text().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


async def _measure(server: Server, figures: _Figures, work: Callable[[], Awaitable[None]]) -> None:
    server_s, client_s, began = _cpu_s(server), time.process_time(), time.perf_counter()
    await work()
    figures.keys_per_s.append(_KEYS / (time.perf_counter() - began))
    figures.server_us.append((_cpu_s(server) - server_s) / _KEYS * 1e6)
    figures.client_us.append((time.process_time() - client_s) / _KEYS * 1e6)


async def _compare(server: Server) -> tuple[_Figures, _Figures]:
    address = server.address()
    async with (
        await Leg.connect(address, Side.TARGET) as leg,
        await Leg.connect(address, Side.TARGET) as scripts,
        await Leg.connect(address, Side.TARGET) as plain,
    ):
        draw = random.Random(1)  # noqa: S311 - reproducible, not secret
        await leg.call("SET", "value", draw.randbytes(_VALUE_BYTES))
        payload = await leg.call("DUMP", "value")
        keys = [b"key:%d" % number for number in range(_KEYS)]
        parts = [keys[at : at + _BATCH] for at in range(0, _KEYS, _BATCH)]
        guarded, sha = GuardedLeg(plain, Guard(_GUARD)), await leg.call("SCRIPT", "LOAD", _SCRIPT)

        async def by_transaction() -> None:
            for part in parts:
                body = encode_many([("RESTORE", k, 0, payload, "REPLACE", "ABSTTL") for k in part])
                assert await guarded.run(0, body, len(part)) == [b"OK"] * len(part)

        async def by_script() -> None:
            for part in parts:
                args: list[Arg] = [*(key for key, _ in _GUARD), *(value for _, value in _GUARD), 0]
                for key in part:
                    args += (key, 0, payload)
                assert await scripts.call("EVALSHA", sha, len(_GUARD), *args) == 0

        found = _Figures(), _Figures()
        for _ in range(_ROUNDS):
            for figures, work in zip(found, (by_transaction, by_script), strict=True):
                await leg.pipeline([("FLUSHALL",), *(("SET", *pair) for pair in _GUARD)])
                await _measure(server, figures, work)
        return found


def main() -> None:
    """Measure on each server."""
    for kind in (ServerKind.REDIS_62, ServerKind.REDIS_82, ServerKind.VALKEY_91):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            server = start_server(
                kind, name="guard", port=free_port(), folder=home, log=home / "log"
            )
            try:
                wait_server(server)
                transaction, script = uvloop.run(_compare(server))
            finally:
                server.started.process.kill()
                server.started.process.wait()
        ratio = statistics.median(script.keys_per_s) / statistics.median(transaction.keys_per_s)
        print(f"{kind}: transaction {transaction.text}; script {script.text}; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
