"""Folders and files that only the process's user may read: they hold passwords, logins, or
application data.

The mode of an existing folder is corrected. A folder of another user is refused, since its owner
could replace the files.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from exodus.errors import OperatorError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
OTHERS = 0o077  # the rights of everybody else
_EVIDENCE = "EXODUS_EVIDENCE_DIR"


def evidence_folder(default: Path | None = None) -> Path:
    """Return the folder of this machine that keeps evidence, as an absolute path.

    Never in the working directory: a worker runs each flow in a temporary one and removes it.

    Args:
        default: used where `$EXODUS_EVIDENCE_DIR` names none; None: a folder in the user's home.
    """
    named = os.environ.get(_EVIDENCE)
    return (Path(named) if named else default or Path.home() / "exodus-evidence").absolute()


def private_folder(folder: Path) -> Path:
    """Make a folder with mode 0700, or correct the mode of one that exists; returns the folder.

    Raises:
        OperatorError: it belongs to another user, or is no folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    except FileExistsError as exc:
        raise OperatorError(
            f"{folder} is not a folder",
            why="a file has its name",
            next_step="remove the file, or name another folder",
        ) from exc
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise OperatorError(
            f"{folder} belongs to user {found.st_uid}",
            why=f"this process runs as user {os.geteuid()}; the owner could replace what is "
            "written there",
            next_step=f"chown {os.geteuid()} {folder}, or name another folder",
        )
    if found.st_mode & OTHERS:
        folder.chmod(FOLDER_MODE)
    return folder


def write_private(path: Path, data: bytes | str) -> None:
    """Replace a file, in one step, by one with mode 0600."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)  # of a process with the same id that died
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(handle, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
    scratch.replace(path)


def close_to_others(path: Path) -> bool:
    """Take their rights to a file from all other users; return whether none has any now."""
    if open_to_others(path):
        with contextlib.suppress(PermissionError):  # another user's file
            path.chmod(path.stat().st_mode & ~OTHERS)
    return not open_to_others(path)


def open_to_others(path: Path) -> bool:
    """Return whether other users of the machine may read or change a file or folder that exists."""
    return path.exists() and bool(path.stat().st_mode & OTHERS)
