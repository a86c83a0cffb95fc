"""ioredis, which the long forms of tests install. It needs node and npm."""

from __future__ import annotations

import asyncio
from pathlib import Path

from exodus.stack.prefect import project_root

_VERSION = "ioredis@6.0.0"


async def installed_ioredis(program: str) -> tuple[Path, Path]:
    """Install ioredis; return a program of tests/support/clients, and the folder of the library."""
    folder = project_root() / "build" / "clients"
    folder.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *("npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), _VERSION),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(120):
        assert await process.wait() == 0
    return project_root() / "tests" / "support" / "clients" / program, folder
