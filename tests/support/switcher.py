"""`python -m tests.support.switcher FILE TO`: the process that applies a switch, to be killed and
frozen.

Prints each step on a line before it does it. With `--stop-before STEP` it then waits for a line on
standard input. Ends with one JSON line: the outcome.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import uvloop

from exodus.control.store import ControlStore
from exodus.cutover import switch
from exodus.cutover.context import Switch
from exodus.errors import ExodusError
from exodus.plan.migration_file import load_migration
from exodus.plan.vocabulary import Side


def _tell(stop_before: str):
    def tell(_: Switch, step: switch.Step) -> None:
        print(f"step {step.name}", flush=True)
        if step.name == stop_before:
            sys.stdin.readline()

    return tell


async def _work(args: argparse.Namespace) -> dict:
    file = load_migration(args.file)
    try:
        async with await ControlStore.connect(file.control_store, file.plan.name) as store:
            done = await switch.apply(
                store, await store.plan(), Side(args.to), tell=_tell(args.stop_before)
            )
            return {"outcome": "switched", "timeline": done.timeline, "facts": done.facts}
    except ExodusError as exc:
        return {"outcome": exc.code, "what": exc.what, "why": exc.why}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("to")
    parser.add_argument("--stop-before", default="")
    print(json.dumps(uvloop.run(_work(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
