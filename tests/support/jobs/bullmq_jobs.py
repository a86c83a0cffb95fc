"""BullMQ: everything it does is a script, and the scripts compute most of the keys that they
write.
"""

from __future__ import annotations

import asyncio

from bullmq import Queue, Worker
from truth import FOLDER, PER_S, PORT, note, stopped, wait_drained

CONNECTION = {"host": "127.0.0.1", "port": PORT}


async def do(job, token) -> str:  # type: ignore[no-untyped-def]
    await asyncio.sleep(0.02)
    note("done", job.data["number"])
    return "done"


async def main() -> None:
    queue = Queue("jobs", {"connection": CONNECTION})
    workers = [Worker("jobs", do, {"connection": CONNECTION, "concurrency": 3}) for _ in range(2)]
    number = 0
    while not stopped():
        number += 1
        delayed = {"delay": 300} if number % 5 == 0 else {}
        await queue.add("job", {"number": number}, {"removeOnComplete": number % 2 == 0, **delayed})
        note("made", number)
        await asyncio.sleep(1 / PER_S)
    await asyncio.to_thread(wait_drained)
    for worker in workers:
        await worker.close(True)
    await queue.close()
    (FOLDER / "ended").touch()


asyncio.run(main())
