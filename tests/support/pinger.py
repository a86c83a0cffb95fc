"""A client in a process of its own. It pings a server until its input ends, then prints the ms that
each answer took.

`python -m tests.support.pinger PORT USER`; the first line of its input is the password. Beside a
backfill in the test's own process a client would wait for that process, and not for the server.
"""

from __future__ import annotations

import select
import sys
import time

import redis


def main(port: int, user: str) -> None:
    password = sys.stdin.readline().rstrip("\n")
    with redis.Redis(port=port, username=user, password=password) as client:
        waits_ms: list[float] = []
        client.ping()
        while not select.select([sys.stdin], [], [], 0.005)[0]:
            began = time.perf_counter()
            client.ping()
            waits_ms.append((time.perf_counter() - began) * 1000)
        print(*[f"{wait:.3f}" for wait in waits_ms])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
