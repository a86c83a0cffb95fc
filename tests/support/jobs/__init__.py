"""Job queues as applications: each a program that makes and does jobs, and writes down on disk what
was done.

    python -m PROGRAM PORT FOLDER

It makes jobs until `FOLDER/stop` is there, does what is left, and writes `FOLDER/made` and
`FOLDER/done`, a job's number a line. The two files are the truth: they go through no server. The
programs run in an environment of their own (tests/support/jobs/requirements.txt), since their
libraries pin versions that Exodus does not have.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

from exodus.stack.prefect import project_root
from tests.support.wait import until

PROGRAM_NAMES = ("bullmq_jobs", "rq_jobs", "celery_jobs")
PROGRAMS = Path(__file__).parent
PYTHON = project_root() / ".venv" / "applications" / "bin" / "python"


class Jobs:
    """One program that makes and does jobs through a port."""

    def __init__(self, program: str, port: int, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [str(PYTHON), f"{program}.py", str(port), str(folder)],
                cwd=PROGRAMS,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    async def more(self, count: int) -> None:
        """Wait until so many more jobs are done."""
        goal = len(self.read("done")) + count

        async def reached() -> bool:
            assert self._process.poll() is None, (self.folder / "log").read_text()[-2_000:]
            return len(self.read("done")) >= goal

        await until(
            reached,
            within_s=60,
            otherwise=f"{count} jobs more were never done: "
            f"{(self.folder / 'log').read_text()[-1_000:]}",
        )

    async def stop(self) -> None:
        (self.folder / "stop").touch()

        async def ended() -> bool:
            return self._process.poll() is not None or (self.folder / "ended").exists()

        await until(ended, within_s=60, otherwise="the program never ended")
        self._process.kill()
        self._process.wait()

    def lost(self) -> set[str]:
        return set(self.read("made")) - set(self.read("done"))

    def twice(self) -> list[str]:
        return [number for number, count in Counter(self.read("done")).items() if count > 1]
