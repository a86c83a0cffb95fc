"""One process runs a phase at a time, on a worker that can run all of it.

A worker that lacks something (a password file, a variable, a library, the version with which the
run began) is refused here, before the phase has done anything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.util import find_spec

from prefect.runtime import flow_run
from redis.exceptions import RedisError

from exodus import __version__
from exodus.control import steps, turn
from exodus.control.store import ControlStore
from exodus.control.turn import Holder
from exodus.errors import DecisionRefused, ExodusError, OperatorError
from exodus.net.tls import ssl_context
from exodus.plan.address import Address, Place
from exodus.plan.bounds import TASKS_TURN_LOOK_S, TURN_MS, TURN_RENEW_S
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole, WorkersKind
from tasks.context import connect, load

log = logging.getLogger(__name__)
_VERSION = "version"


def check_worker(plan: Plan, control_store: Address) -> None:
    """Check that this worker has what the migration names.

    Raises:
        OperatorError: a password or a TLS file is missing here, or a library is not installed.
    """
    servers: dict[str, Place] = {
        "source": plan.source,
        "target": plan.target,
        "control_store": control_store,
    }
    for role in UserRole:
        for side in Side:
            user = plan.users.of(role, side)
            if user is not None:
                servers[f"users.{role}.{side}"] = user.at(plan.address(side))
    try:
        for field, address in servers.items():
            address.secret(field)
            ssl_context(address)
        for login in plan.logins:
            login.target_secret()
    except OperatorError as exc:
        raise OperatorError(
            f"this worker cannot run phases of {plan.name}: {exc.what}",
            why=f"{exc.why} ({_worker()})",
            next_step=f"{exc.next_step}; each worker of the pool needs it, under the same name",
        ) from exc
    if plan.workers.kind is WorkersKind.DASK and find_spec("prefect_dask") is None:
        raise OperatorError(
            f"this worker cannot run phases of {plan.name}: prefect-dask is not installed",
            why=f"the plan says workers.kind: dask ({_worker()})",
            next_step="pip install 'exodus[dask]' on each worker, or set workers.kind: processes",
        )


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def phase_turn(migration: str, phase: str) -> Iterator[None]:
    """Hold the turn of a phase, or of `SAMPLING`, while the context is open.

    Raises:
        OperatorError: this worker lacks something that the migration names.
        DecisionRefused: another run has the turn, or the run began with another version of Exodus.
        ControlStoreError: the control store does not answer.
    """
    run_id = flow_run.get_id()
    if run_id is None:  # called as a function, outside Prefect
        yield
        return
    block = load(migration)
    plan, address = block.plan(), block.control_store.address("control_store")
    check_worker(plan, address)
    holder = Holder(run=run_id, worker=_worker(), instance=secrets.token_hex(8))
    keeper = _Keeper(address, plan.name, phase, holder)
    keeper.start()
    try:
        keeper.taken.result()
        yield
    finally:
        keeper.end()


class _Keeper(threading.Thread):
    """Takes the turn, renews it, gives it back.

    It is a thread because the phase's own code blocks.
    """

    def __init__(self, address: Address, migration: str, phase: str, holder: Holder) -> None:
        super().__init__(name=f"turn of {phase}", daemon=True)
        self._address, self._migration = address, migration
        self._phase, self._holder = phase, holder
        self._ending = threading.Event()
        self.taken: Future[None] = Future()

    def run(self) -> None:
        """Work until `end`."""
        try:
            asyncio.run(self._keep())
        except (ExodusError, RedisError, OSError) as exc:
            if not self.taken.done():
                self.taken.set_exception(exc)
            else:
                log.error("the turn of %s is no longer renewed: %s", self._phase, exc)

    def end(self) -> None:
        """Give the turn back."""
        self._ending.set()
        self.join()

    async def _keep(self) -> None:
        async with await connect(self._address, self._migration) as store:
            await self._take(store)
            await steps.begin(store, self._holder.run)
            self.taken.set_result(None)
            failing = False
            while not await asyncio.to_thread(self._ending.wait, TURN_RENEW_S):
                try:
                    if not await turn.renew(store, self._phase, self._holder):
                        log.error("another process has the turn of %s", self._phase)
                        return
                    failing = False
                except (RedisError, OSError) as exc:
                    if not failing:
                        log.warning("the turn of %s could not be renewed: %s", self._phase, exc)
                    failing = True
            try:
                await turn.give_back(store, self._phase, self._holder)
            except (RedisError, OSError) as exc:
                log.warning("the turn of %s ends by itself: %s", self._phase, exc)

    async def _take(self, store: ControlStore) -> None:
        deadline, left_ms, said = time.monotonic() + 2 * TURN_MS / 1000, TURN_MS + 1, False
        while (held := await turn.take(store, self._phase, self._holder)) is not None:
            other = held.holder
            renewed, left_ms = held.left_ms > left_ms, held.left_ms
            if other.run != self._holder.run and (renewed or time.monotonic() > deadline):
                raise DecisionRefused(
                    f"{self._phase} may not begin: it is already running",
                    why=f"run {other.run} has its turn, in process {other.worker}",
                    next_step="wait for its decision, or cancel that run in the Prefect UI",
                )
            if not said:
                # An earlier process of the same run ends, or has died.
                log.info("waiting for the turn of %s, which %s has", self._phase, other.worker)
                said = True
            await asyncio.sleep(TASKS_TURN_LOOK_S)
        await self._check_version(store)

    async def _check_version(self, store: ControlStore) -> None:
        began = (await steps.keep(store, self._holder.run, _VERSION, __version__.encode())).decode()
        if began != __version__:
            await turn.give_back(store, self._phase, self._holder)
            raise DecisionRefused(
                f"{self._phase} cannot continue here: its run began with Exodus {began}",
                why=f"this worker has {__version__}, whose steps may return other results",
                next_step=f"resume it on a worker with {began}, or cancel it, then: exodus "
                f"start {self._phase}",
            )
