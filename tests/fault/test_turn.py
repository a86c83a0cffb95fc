"""One process runs a phase at a time. A run continues on another worker with the same answers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from blocks import Migration
from blocks.endpoint import RedisEndpoint
from exodus.closing import bundle, bundle_store
from exodus.control import steps, turn
from exodus.control.phases import PhaseState, PhaseStatus
from exodus.control.turn import Holder
from exodus.errors import DecisionRefused, OperatorError
from exodus.plan.bounds import TURN_MS
from exodus.plan.vocabulary import Phase, Side
from exodus.stack.prefect import project_root
from tasks import ledger as phase_ledger
from tasks.context import Opened, plan_of
from tasks.turn import check_worker
from tests.support.local_migration import LocalMigration
from tests.support.servers import DatabaseServer
from tests.support.wait import until

pytestmark = pytest.mark.fault
ONE, OTHER = (Holder(run=run, worker="host:1", instance=run) for run in ("one", "other"))


async def test_one_of_two_has_the_turn_until_it_gives_it_back_or_dies(
    local: LocalMigration,
) -> None:
    found = await asyncio.gather(*(turn.take(local.store, "test", who) for who in (ONE, OTHER)))
    assert sorted(each is None for each in found) == [False, True]
    first, second = (ONE, OTHER) if found[0] is None else (OTHER, ONE)
    assert not await turn.renew(local.store, "test", second)
    assert await turn.renew(local.store, "test", first)
    await turn.give_back(local.store, "test", second)
    held = await turn.take(local.store, "test", second)
    assert held is not None
    assert held.holder == first
    assert 0 < held.left_ms <= TURN_MS
    await turn.give_back(local.store, "test", first)
    assert await turn.take(local.store, "test", second) is None
    # It is not renewed, so it expires.
    await local.store.client.pexpire(local.store.keys.turn("test"), 50)

    async def free() -> bool:
        return await turn.take(local.store, "test", first) is None

    await until(free, within_s=5, otherwise="a turn that nobody renews never ended")


async def test_two_phases_that_begin_at_once_cannot_both(
    local: LocalMigration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each looks for others before either has registered itself."""
    looked = asyncio.Barrier(2)
    loop = asyncio.get_running_loop()

    def is_open(state: PhaseState) -> bool:
        return state.state == "running"

    monkeypatch.setattr(phase_ledger, "is_open", is_open)
    opened = Opened(local.plan, local.store, local.plan)
    read, first = local.store.phases, {"one", "two"}

    async def phases() -> dict:
        found = await read()
        name = asyncio.current_task().get_name()  # type: ignore[union-attr]
        if name in first:
            first.discard(name)
            await looked.wait()
        return found

    monkeypatch.setattr(local.store, "phases", phases)

    async def claim(run: str, phase: Phase) -> None:
        state = PhaseState(state=PhaseStatus.RUNNING, flow_run_id=run)
        await phase_ledger._claim(opened, phase, run, state)

    tasks = [
        loop.create_task(claim("run-1", Phase.ANALYZE), name="one"),
        loop.create_task(claim("run-2", Phase.COMPARE), name="two"),
    ]
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [each for each in ended if isinstance(each, DecisionRefused)]
    assert len(refused) == 1, ended
    assert len([state for state in (await read()).values() if state.state == "running"]) == 1


async def test_the_first_answer_of_a_step_is_the_one_that_counts(local: LocalMigration) -> None:
    assert await steps.kept(local.store, "run", "step") is None
    assert await steps.keep(local.store, "run", "step", b"1") == b"1"
    assert await steps.keep(local.store, "run", "step", b"2") == b"1"
    await steps.end(local.store, "run")
    assert await local.store.client.pttl(local.store.keys.steps("run")) > 0
    await steps.begin(local.store, "run")
    assert await local.store.client.pttl(local.store.keys.steps("run")) == -1


async def test_the_newest_bundles_are_fetched_on_any_machine(
    local: LocalMigration, tmp_path: Path
) -> None:
    for number in range(bundle_store.BUNDLES_KEPT + 2):
        documents = {"ledger": {"entries": []}, "plan": {}, "number": {"is": number}}
        files, head = bundle.make(documents)
        assert await bundle_store.keep(local.store, f"test-{number}", files) == ""
    kept = await bundle_store.names(local.store)
    assert kept == [f"test-{number}" for number in range(bundle_store.BUNDLES_KEPT + 1, 1, -1)]
    assert not await local.store.client.exists(local.store.keys.bundle("test-0"))
    name, files = await bundle_store.files_of(local.store)
    bundle.put(tmp_path / name, files)
    assert bundle.check(tmp_path / name, head=head).problems == []
    with pytest.raises(OperatorError, match="keeps no bundle test-0"):
        await bundle_store.files_of(local.store, "test-0")
    with pytest.raises(OperatorError, match="is not the name of"):
        bundle.put(tmp_path / "bad", {"../out": b""})
    big = {"large.json": os.urandom(bundle_store.BUNDLE_BYTES_MAX + 1)}
    assert "keeps" in await bundle_store.keep(local.store, "big", big)


def test_a_worker_without_a_password_file_is_refused_with_the_remedy(local: LocalMigration) -> None:
    address = local.plan.source.model_copy(update={"password_file": Path("/nowhere/secret")})
    plan = local.plan.model_copy(update={"source": address})
    with pytest.raises(OperatorError, match="this worker cannot run phases") as caught:
        check_worker(plan, local.control.address())
    assert "each worker of the pool needs it" in caught.value.next_step
    check_worker(local.plan, local.control.address())


async def _save(
    local: LocalMigration, *, target: Side = Side.TARGET, **options: object
) -> Migration:
    """Save a block as a person does in the UI."""

    def server(box: DatabaseServer) -> RedisEndpoint:
        address = box.address()
        return RedisEndpoint(url=address.url, password_file=str(address.password_file))

    block = Migration(
        migration=local.plan.name,
        options={"gateway": {"port": local.port}, **options},
        source=server(local.servers[Side.SOURCE]),
        target=server(local.servers[target]),
        control_store=server(local.control),
    )
    await asyncio.to_thread(block.save, local.plan.name, overwrite=True)
    return block


@flow
def opening(migration: str, phase: str) -> dict:
    """What each phase does first."""
    return phase_ledger.open_phase(migration, phase)


@pytest.mark.filterwarnings("default")  # Great Expectations, whose import a phase begins with
async def test_a_block_that_was_saved_in_the_ui_is_checked_and_registered_by_the_next_phase(
    local: LocalMigration, prefect_server: None
) -> None:
    await local.store.client.delete(local.store.keys.plan)
    block = await _save(local)
    await asyncio.to_thread(opening, local.plan.name, "pre-test")
    assert await local.store.plan() == block.plan()
    decided = phase_ledger.LedgerEntry(
        at_ms=await local.store.now_ms(), phase=Phase.PRE_TEST, event="decided", verdict="approve"
    )
    await phase_ledger.ledger.record(local.store, decided)
    # What is saved during a phase counts from the next phase on.
    changed = await _save(local, observe_seconds=3.0, filters={"exclude": [{"pattern": "tmp:*"}]})
    assert await asyncio.to_thread(plan_of, local.plan.name) == block.plan()
    began = await asyncio.to_thread(opening, local.plan.name, "analyze")
    assert began["plan"]["observe_seconds"] == 3.0
    assert await local.store.plan() == changed.plan()
    (applied,) = [
        entry for entry in await phase_ledger.ledger.read(local.store) if entry.event == "applied"
    ]
    assert "filters" in str(applied.facts["fields"])
    assert "compare" in str(applied.facts["voids"])
    # The checks are those of exodus apply, and what does not pass them is not registered.
    await _save(local, target=Side.SOURCE)
    with pytest.raises(OperatorError, match="target is the source"):
        await asyncio.to_thread(opening, local.plan.name, "analyze")
    assert await local.store.plan() == changed.plan()
    with pytest.raises(OperatorError, match="names another target than the registered plan"):
        await asyncio.to_thread(plan_of, local.plan.name)
    with pytest.raises(OperatorError, match="there is no Migration block"):
        await asyncio.to_thread(plan_of, "nothing")


_FLOW = """
import os
from exodus.plan.vocabulary import Phase
from flows.phase import phase_flow
from tasks.context import opened, run
from tasks.decision import ask, phase_form
from tasks.kept import kept_task

@kept_task("look at the evidence")
def look(migration: str) -> list:
    async def work():
        async with opened(migration) as it:
            return [int(await it.store.client.incr("looked")), os.environ["WORKER"]]
    return run(work())

@phase_flow(Phase.TEST)
def phase(migration: str) -> None:
    seen = look(migration)
    decision = ask(
        phase_form(), migration=migration, phase=Phase.TEST, gate="execute", question="Well?",
        summary=[f"seen {seen[0]} on {seen[1]}", os.environ["WORKER"]], evidence="evidence.test",
    )
    print("DECIDED", seen, decision["evidence_digest"])
"""


async def test_a_run_goes_on_elsewhere_with_what_the_person_saw(
    local: LocalMigration, prefect_server: None, tmp_path: Path
) -> None:
    """It is suspended on one worker and resumed on another that shares no folder with the first."""
    await _save(local)
    script = tmp_path / "a_phase.py"
    script.write_text(_FLOW)
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
        flow_id = client.create_flow_from_name("test")
        deployment = client.create_deployment(
            flow_id, name="here", entrypoint="a_phase.phase", pull_steps=[]
        )
        parameters = {"migration": local.plan.name}
        made = client.create_flow_run_from_deployment(deployment, parameters=parameters)

    def worker(name: str) -> str:
        home = tmp_path / name
        home.mkdir()
        env = {
            **os.environ,
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home),
            "WORKER": name,
            "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
            "PREFECT__FLOW_RUN_ID": str(made.id),
            "PYTHONPATH": f"{project_root()}:{tmp_path}",
        }
        command = [sys.executable, "-m", "prefect.engine"]
        done = subprocess.run(
            command, env=env, cwd=home, capture_output=True, text=True, timeout=120, check=False
        )
        left = [path for path in home.rglob("*") if path.is_file() and "storage" in path.parts]
        assert left == [], "nothing of a run is kept on a worker"
        return done.stdout + done.stderr

    said = await asyncio.to_thread(worker, "a")
    shown = await local.store.report("shown.test.execute")
    assert shown is not None, said
    assert shown["summary"] == ["seen 1 on a", "a"]
    answer = {"decision": "approve", "decided_by": "a person", "why": "seen"}
    with get_client(sync_client=True) as client:
        client.resume_flow_run(made.id, run_input=answer)
    said = await asyncio.to_thread(worker, "b")
    assert "DECIDED [1, 'a']" in said, said
    entries = await phase_ledger.ledger.read(local.store)
    (decided,) = [entry for entry in entries if entry.event == "decided"]
    assert decided.evidence_digest == phase_ledger.ledger.digest(shown)
    assert await local.store.report("shown.test.execute") == shown
    assert await local.store.client.get("looked") == b"1", "a step was done again"
    assert not await local.store.client.exists(local.store.keys.turn("test")), (
        "the turn is given back"
    )
