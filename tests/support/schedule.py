"""Which worker of pytest-xdist runs which file.

A whole migration uses all cores, and tests of faults mostly wait: their process computes for a
sixth of the time. So at most two workers run whole migrations, and the others run files of faults
beside them. Without a limit all of them would run migrations at a time, and bounds of the product
that suffice in production would end before its processes ran.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

MIGRATIONS_AT_ONCE = 2
_MIGRATIONS = "tests/e2e/"


class FewMigrations(LoadFileScheduling):
    """Hands out whole files, of whole migrations to two workers at most."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(self._file_for(node), last=False)
        super()._assign_work_unit(node)

    def _file_for(self, node: WorkerController) -> str:
        busy = {
            other
            for other, files in self.assigned_work.items()
            if any(
                name.startswith(_MIGRATIONS) and not all(tests.values())
                for name, tests in files.items()
            )
        }
        may = node in busy or len(busy) < MIGRATIONS_AT_ONCE
        return next(
            (name for name in self.workqueue if name.startswith(_MIGRATIONS) == may),
            next(iter(self.workqueue)),  # nothing else is left
        )
