"""Business checks of Test on real servers: the shipped examples, green and red, and refusals."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import redis

from exodus.acceptance.business import REPORT, check_business
from exodus.acceptance.read_only import NotARead, open_read_only
from exodus.acceptance.trial_copy import copy_trial, remove_trial
from exodus.errors import OperatorError
from exodus.plan.vocabulary import Side
from tests.support.business import checked, not_ok, plan_with
from tests.support.local_migration import LocalMigration

pytestmark = pytest.mark.fault
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "checks"


def _fill(source: redis.Redis) -> None:
    pipe = source.pipeline()
    for number in range(50):
        pipe.hset(f"account:{number}", "balance", f"{number}.25")
        pipe.set(f"user:{number}", "u")
        pipe.hset(f"session:{number}", "user", number)
    for name in ("a", "b"):
        pipe.xadd(f"events:{name}", {"f": "v"}, id="1-1")
        pipe.xgroup_create(f"events:{name}", "g", id="0")
    pipe.execute()


async def test_the_shipped_checks_hold_on_a_copy_and_find_what_is_planted(
    local: LocalMigration,
) -> None:
    source = local.servers[Side.SOURCE].client()
    _fill(source)
    plan = plan_with(local, business_folder=_EXAMPLES)
    trial = await copy_trial(plan, local.store)
    rows = await checked(local, plan)
    assert not_ok(rows) == {}
    assert sum(row.judged for row in rows) == 3
    assert rows[0].line.startswith(f"3 business checks of {_EXAMPLES}, digest ")

    with local.servers[Side.TARGET].client(db=trial.database) as target:
        target.hset("account:7", "balance", "8.25")
        target.delete("user:9")
        target.xdel("events:a", "1-1")
        target.xgroup_destroy("events:b", "g")
    source.hset("session:99", "user", "nobody")
    red = not_ok(await checked(local, plan))
    assert set(red) == {"business: balances", "business: sessions", "business: streams"}
    assert "sum_source=1237.5, sum_target=1238.5" in red["business: balances"]
    assert "side=source, session=session:99, user=nobody" in red["business: sessions"]
    assert "side=target, session=session:9, user=9" in red["business: sessions"]
    report = await local.store.report(REPORT)
    assert report is not None
    streams = [row["stream"] for row in report["rows"] if row["check"] == "streams"]
    assert sorted(streams) == ["events:a", "events:b"]
    await remove_trial(plan, local.store)


_EXITS = "import os\ndef check(source, target):\n    os._exit({})\n"
_FRAME = "import pandas as pd\ndef check(source, target):\n    return pd.DataFrame({})\n"
_BAD = {
    "raises": ("def check(source, target):\n    return 1 / 0\n", "ZeroDivisionError"),
    "empty": (
        "import pandas as pd\ndef check(source, target):\n    return pd.DataFrame({'ok': []})\n",
        "it has looked at nothing",
    ),
    "leaves": ("import sys\ndef check(source, target):\n    sys.exit(0)\n", "SystemExit"),
    "text": (_FRAME.format("{'ok': ['False']}"), "1 of 1 rows are not ok"),
    "unknown": (_FRAME.format("{'ok': [None, float('nan'), True]}"), "2 of 3 rows are not ok"),
    "binary": (_FRAME.format("{'ok': [False], 'key': [b'\\xff']}"), r"key=\xff"),
    "unexpected": (
        _FRAME.format("{'n': [1]}") + "def expectations():\n    return []\n",
        "nothing was judged",
    ),
    "none": ("def check(source, target):\n    return None\n", "not a pandas.DataFrame"),
    "unjudged": (
        "import pandas as pd\ndef check(source, target):\n    return pd.DataFrame({'n': [1]})\n",
        "no column 'ok'",
    ),
    "writes": ("def check(source, target):\n    target.set('k', 1)\n", "SET is not a read"),
    "scripts": (
        "def check(source, target):\n    source.eval(\"redis.call('SET', 'k', 1)\", 0)\n",
        "EVAL is not a read",
    ),
    "syntax": ("def check(:\n", "SyntaxError"),
    "nothing": ("x = 1\n", "AttributeError"),
    "prints": (
        "import pandas as pd\nprint('hello')\n"
        "def check(source, target):\n    print('again')\n"
        "    return pd.DataFrame({'ok': [target.ping(), source.dbsize() >= 0]})\n",
        None,
    ),
}


def _folder(local: LocalMigration, text: str) -> Path:
    folder = local.folder / "checks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    (folder / "one.py").write_text(text)
    (folder / "one.py").chmod(0o600)
    return folder


async def test_a_check_that_fails_in_any_way_is_red(local: LocalMigration) -> None:
    for status in (0, 3):
        folder = _folder(local, _EXITS.format(status))
        red = not_ok(await checked(local, plan_with(local, business_folder=folder)))
        assert list(red) == ["business: checks of the folder"]
    (folder / "one.py").unlink()
    for name, (text, _) in _BAD.items():
        (folder / f"{name}.py").write_text(text)
        (folder / f"{name}.py").chmod(0o600)
    red = not_ok(await checked(local, plan_with(local, business_folder=folder)))
    for name, (_, why) in _BAD.items():
        said = red.pop(f"business: {name}", None)
        assert (said is None) is (why is None), name
        assert why is None or why in str(said), name
    assert red == {}
    for box in local.servers.values():
        assert box.client().keys("*") == []


async def test_a_check_that_does_not_end_is_ended(local: LocalMigration) -> None:
    folder = _folder(local, "def check(source, target):\n    while True: pass\n")
    plan = plan_with(local, business_folder=folder, business_seconds_max=3.0)
    assert "longer than 3 s" in not_ok(await checked(local, plan))["business: checks of the folder"]


async def test_code_runs_only_where_nobody_else_can_put_it(local: LocalMigration) -> None:
    code = "import pandas as pd\ndef check(s, t): return pd.DataFrame({'ok': [1]})"
    folder = _folder(local, code)
    plan = plan_with(local, business_folder=folder)
    assert not_ok(await checked(local, plan)) == {}
    # Another client wrote this folder into the control store
    with pytest.raises(OperatorError, match="not run") as caught:
        await check_business(plan, local.plan, local.store)
    assert "only where both agree" in caught.value.why
    hook = plan_with(local, business_webhook="http://127.0.0.1:1/")
    with pytest.raises(OperatorError, match="not run"):
        await check_business(hook, local.plan, local.store)
    (folder / "one.py").chmod(0o666)
    with pytest.raises(OperatorError, match="not run") as caught:
        await checked(local, plan)
    assert "others than this worker's user may change" in caught.value.why
    (folder / "one.py").unlink()
    with pytest.raises(OperatorError, match="not run"):
        await checked(local, plan)


async def test_the_digest_changes_with_the_code(local: LocalMigration) -> None:
    lines = []
    for text in ("1", "2"):
        code = f"import pandas as pd\ndef check(s, t): return pd.DataFrame({{'ok': [{text}]}})"
        rows = await checked(local, plan_with(local, business_folder=_folder(local, code)))
        lines.append(rows[0].detail)
    assert lines[0] != lines[1]


def test_a_read_only_client_reads_and_refuses_the_rest(local: LocalMigration) -> None:
    address = local.servers[Side.SOURCE].address()
    local.servers[Side.SOURCE].client().set("k", "v")
    with open_read_only(address, "source", db=0, timeout_s=5) as client:
        assert client.get("k") == b"v"
        assert list(client.scan_iter()) == [b"k"]
        assert client.pipeline().get("k").exists("k").execute() == [b"v", 1]
        for refused in (
            lambda: client.set("k", 1),
            client.flushall,
            lambda: client.config_set("maxmemory", 1),
            lambda: client.pipeline().delete("k"),
            lambda: client.execute_command("ACL SETUSER", "x"),
            lambda: client.getdel("k"),
            client.register_script("return 1"),
        ):
            with pytest.raises(NotARead):
                refused()
        assert client.get("k") == b"v"


class Service:
    """A webhook with the answer that the test gives it."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.status, self.answer = "200 OK", b"{}"
        self.url = ""

    async def __aenter__(self) -> Service:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/judge?token=hidden"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.asked.append(json.loads(await reader.readexactly(length)))
        writer.write(
            f"HTTP/1.1 {self.status}\r\nContent-Length: {len(self.answer)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + self.answer
        )
        await writer.drain()
        writer.close()


async def test_a_service_judges_and_its_rows_are_shown(local: LocalMigration) -> None:
    async with Service() as service:
        plan = plan_with(local, business_webhook=service.url)
        service.answer = b'{"ok": true, "rows": []}'
        assert not_ok(await checked(local, plan)) == {}
        asked = service.asked[0]
        assert (asked["migration"], asked["source"]["url"]) == (plan.name, plan.source.url)
        assert "password" not in json.dumps(asked)
        service.answer = b'{"ok": false, "why": "too few", "rows": [{"shop": "north", "n": 3}]}'
        red = not_ok(await checked(local, plan))
        assert red == {"business: webhook": "too few: shop=north, n=3"}
        for status, answer in (
            ("500 Broken", b"{}"),
            ("200 OK", b"no JSON"),
            ("200 OK", b'{"rows": []}'),
            ("200 OK", b'{"ok": true, "rows": 3}'),
            ("302 Found", b"{}"),
        ):
            service.status, service.answer = status, answer
            red = not_ok(await checked(local, plan))
            assert list(red) == ["business: webhook"], (status, answer)
            assert "hidden" not in str(red)
    assert "did not answer" in str(not_ok(await checked(local, plan)))


async def test_without_any_nothing_is_judged(local: LocalMigration) -> None:
    assert [row.judged for row in await checked(local, local.plan)] == [False]
