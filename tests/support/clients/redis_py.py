"""redis-py, as applications use it: a pool in threads, pipelines, transactions, scripts, scans,
locks, streams, pub/sub, blocking pops.

python -m tests.support.clients.redis_py URL PROTOCOL
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import redis


def told(what: str, value: object) -> None:
    """Print one line."""
    print(f"{what}: {value!r}", flush=True)


def basics(client: redis.Redis) -> None:
    """A little of everything, and errors."""
    told("set", client.set("s", "one", px=100_000))
    told("get", client.get("s"))
    told("ttl", 0 < client.pttl("s") <= 100_000)
    told("hash", (client.hset("h", mapping={"a": 1, "b": 2.5}), client.hgetall("h")))
    told("list", (client.rpush("l", *range(20)), client.lrange("l", 5, 8), client.lpop("l", 2)))
    told("set of", (client.sadd("m", "x", "y"), sorted(client.smembers("m"))))
    told(
        "sorted", (client.zadd("z", {"a": 1.5, "b": 2}), client.zrange("z", 0, -1, withscores=True))
    )
    told("large", (client.set("big", b"\0\r\n" * 500_000), len(client.get("big"))))
    told("missing", client.get("nothing"))
    for command in (("LPUSH", "s", "x"), ("NOSUCH",), ("SET", "s")):
        try:
            told("?", client.execute_command(*command))
        except redis.ResponseError as exc:
            told("error", str(exc))


def together(client: redis.Redis) -> None:
    """Pipelines, transactions with WATCH, scripts, locks, cursors."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(500):
            pipe.set(f"p:{number}", number)
        told("pipeline", sum(pipe.execute()))
    client.set("balance", 0)

    def add(pipe: redis.client.Pipeline) -> None:
        now = int(pipe.get("balance"))
        pipe.multi()
        pipe.set("balance", now + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.transaction(add, "balance"), range(80)))
        told("optimistic", client.get("balance"))
        list(pool.map(lambda _: client.incr("counter"), range(400)))
    told("counter", client.get("counter"))
    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    told("script", [script(keys=["scripted"], args=[step]) for step in (1, 2, 3)])
    with client.lock("lock", timeout=10):
        told("locked", client.lock("lock", timeout=1).acquire(blocking=False))
    told("scan", len(set(client.scan_iter("p:*", count=50))))
    told("zscan", sorted(client.zscan_iter("z")))


def passing(client: redis.Redis) -> None:
    """Streams with a group, blocking pops from another thread, pub/sub."""
    told("group", client.xgroup_create("x", "g", id="0", mkstream=True))
    for number in range(5):
        client.xadd("x", {"n": number}, id=f"{number + 1}-0")
    read = client.xreadgroup("g", "c", {"x": ">"}, count=3)
    told("read", read if isinstance(read, dict) else dict(read))
    told("ack", (client.xack("x", "g", "1-0"), client.xpending("x", "g")["pending"]))
    popped: list[object] = []
    waiting = threading.Thread(target=lambda: popped.append(client.blpop("jobs", timeout=10)))
    waiting.start()
    while not client.info("clients")["blocked_clients"]:
        pass
    client.rpush("jobs", "job")
    waiting.join()
    told("popped", popped)
    told("popped nothing", client.blpop("jobs", timeout=0.05))
    listener = client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe("news")
    listener.psubscribe("w*")
    while client.publish("news", "first") < 1 or client.pubsub_numpat() < 1:
        pass
    client.publish("weather", "rain")
    client.publish("news", "last")
    heard: list[tuple[object, object]] = []
    while not heard or heard[-1][1] != b"last":
        message = listener.get_message(timeout=5)
        if message is not None:
            heard.append((message["channel"], message["data"]))
    told("heard", [one for one, following in pairwise([*heard, None]) if one != following])
    listener.close()


def main() -> None:
    """Everything, once."""
    client = redis.Redis.from_url(sys.argv[1], protocol=int(sys.argv[2]))
    for part in (basics, together, passing):
        part(client)
    client.close()
    other = redis.Redis.from_url(sys.argv[1] + "/3", protocol=int(sys.argv[2]), client_name="other")
    told("other", (other.set("here", 1), other.dbsize(), other.client_getname()))
    other.close()


if __name__ == "__main__":
    main()
