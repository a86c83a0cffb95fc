"""RQ: lists, hashes and sorted sets, in transactions and a few scripts; workers block in BLMOVE or
BLPOP.
"""

from __future__ import annotations

import threading
import time

import redis
from rq import Queue
from rq.timeouts import TimerDeathPenalty
from rq.worker import SimpleWorker
from truth import PORT, make, note


def do(number: int) -> None:
    time.sleep(0.005)  # the job's work
    note("done", number)


class Quiet(SimpleWorker):
    """A worker in a thread, where signals cannot be handled."""

    death_penalty_class = TimerDeathPenalty

    def _install_signal_handlers(self) -> None:
        pass


def work() -> None:
    connection = redis.Redis(port=PORT)
    Quiet([Queue("jobs", connection=connection)], connection=connection).work(
        logging_level="WARNING"
    )


def main() -> None:
    queue = Queue("jobs", connection=redis.Redis(port=PORT))
    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    make(lambda number: queue.enqueue("rq_jobs.do", number))


if __name__ == "__main__":
    main()
