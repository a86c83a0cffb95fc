"""Celery: kombu's lists and sorted sets, BRPOP, and transactions; results in the same server."""

from __future__ import annotations

import threading
import time

from celery import Celery
from truth import PORT, make, note

app = Celery("jobs", broker=f"redis://127.0.0.1:{PORT}/0", backend=f"redis://127.0.0.1:{PORT}/1")
app.conf.update(
    task_acks_late=True, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True
)


@app.task(name="jobs.do")  # type: ignore[untyped-decorator]
def do(number: int) -> int:
    time.sleep(0.005)  # the job's work
    note("done", number)
    return number


def main() -> None:
    worker = app.Worker(
        pool="threads",
        concurrency=4,
        loglevel="WARNING",
        without_heartbeat=True,
        without_mingle=True,
    )
    threading.Thread(target=worker.start, daemon=True).start()
    make(do.delay)


if __name__ == "__main__":
    main()
