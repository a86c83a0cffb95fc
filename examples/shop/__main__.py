"""`python -m examples.shop`: preload, then write until told to stop. `python -m examples.shop
check`: hold a server against the model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path

import uvloop

from examples.shop.check import check
from examples.shop.model import Model
from examples.shop.place import Place, connect
from examples.shop.preload import preload
from examples.shop.workload import Writer, WriterTally, consume_jobs, produce_jobs

_WRITERS = 6
_JOBS_PER_S = 20.0


async def run(args: argparse.Namespace) -> int:
    """Return the application."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    model = Model(seed=args.seed, keys=args.keys, began_ms=int(time.time() * 1000))
    tally = WriterTally(rides_failovers=args.ride_failovers)
    place = Place(args.url, args.url_file)
    client = connect(place.url)
    await preload(client, model)
    await client.aclose()
    if args.ready_file:
        args.ready_file.touch()
    writers = [
        Writer(number, place, model, tally, writers=_WRITERS, pipelined=args.pipelined)
        for number in range(_WRITERS)
    ]
    tasks = [asyncio.create_task(writer.run(stop, args.writes / _WRITERS)) for writer in writers]
    tasks.append(asyncio.create_task(produce_jobs(place, model, tally, stop, _JOBS_PER_S)))
    tasks.append(asyncio.create_task(consume_jobs(place, model, tally, stop)))
    deadline = time.monotonic() + args.seconds_max
    while not stop.is_set():
        if args.stop_file.exists() or time.monotonic() > deadline:
            stop.set()
        for task in tasks:
            if task.done():
                task.result()
        await asyncio.sleep(0.1)
    await asyncio.gather(*tasks)
    path = args.report.with_suffix(".model")
    model.save(path)
    scratch = args.report.with_suffix(".part")
    scratch.write_text(
        json.dumps(
            {
                "acknowledged_writes": tally.acknowledged,
                "unknown_writes": tally.unknown,
                "app_errors": tally.errors,
                "lost_connections": tally.lost_connections,
                "errors": tally.texts,
                "max_write_stall_ms": round(tally.stall_ms_max, 1),
                "jobs_consumed": len(model.jobs_consumed),
                "model": str(path),
            }
        )
    )
    scratch.replace(args.report)  # whoever waits for the report finds it whole
    return 0


def main() -> int:
    """Parse and run."""
    if sys.argv[1:2] == ["check"]:
        parser = argparse.ArgumentParser(prog="python -m examples.shop check")
        parser.add_argument("--model", type=Path, required=True)
        parser.add_argument("--url", required=True)
        parser.add_argument("--json", action="store_true")
        args = parser.parse_args(sys.argv[2:])
        found = uvloop.run(check(Model.load(args.model), args.url))
        print(
            json.dumps(found)
            if args.json
            else "\n".join(f"{name}: {value}" for name, value in found.items())
        )
        return int(bool(found["lost_writes"] or found["duplicated"] or found["resurrected_keys"]))
    parser = argparse.ArgumentParser(prog="python -m examples.shop")
    parser.add_argument("--url", required=True)
    parser.add_argument(
        "--url-file", type=Path, help="a file that holds the address; read again while it runs"
    )
    parser.add_argument("--keys", type=int, default=200_000)
    parser.add_argument(
        "--writes", type=int, default=2_000, help="a second, of all writers together"
    )
    parser.add_argument(
        "--pipelined",
        type=int,
        default=0,
        help="of the writes, so many are now and then sent together",
    )
    parser.add_argument(
        "--ride-failovers",
        action="store_true",
        help="a lost connection is no error: connect again, and read what became of the write",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stop-file", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--ready-file", type=Path)
    parser.add_argument("--seconds-max", type=float, default=3_600)
    return uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
