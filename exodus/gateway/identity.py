"""Identity: the instance of a gateway id that a process is, as its state folder tells.

An id names a registration, and a switch takes its heartbeat for everything that runs under that
id. Two processes with one id would answer for each other. So an id belongs to one instance, named
by a token in the state folder. A restart in the same folder is the same instance; another folder
is another instance.

The folder also tells what it may lack. The intent log and the spool survive the end of the
process, but not that of the host. If the host was restarted (its boot id changed) and the process
had not ended in order before, they may be older than the last writes.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

import orjson

from exodus.private_files import private_folder, write_private

log = logging.getLogger(__name__)
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_FILE = "instance.json"


@dataclass(frozen=True)
class Identity:
    """The instance, and the end of the process before this one."""

    token: str
    ended: bool = True  # the process before ended in order, or there was none
    host_restarted: bool = False  # the host ended before that process did


def identify(folder: Path) -> Identity:
    """Return the identity of a state folder, and note there that a process runs.

    A folder without an identity gets one. `note_end` takes the note back.
    """
    path = folder / _FILE
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    try:
        kept = orjson.loads(path.read_bytes())
        token, before, ended = str(kept["token"]), str(kept["boot"]), bool(kept.get("ended", False))
    except FileNotFoundError:
        token, before, ended = secrets.token_hex(8), boot, True
    except (OSError, ValueError, KeyError) as exc:
        log.error("%s cannot be read: this instance gets another name: %s", path, exc)
        token, before, ended = secrets.token_hex(8), boot, False
    private_folder(folder)
    _write(path, token, boot, ended=False)
    return Identity(token, ended, host_restarted=before != boot and not ended)


def note_end(folder: Path, identity: Identity) -> None:
    """Note that the process ended in order: all that its files held is in the journal."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    _write(folder / _FILE, identity.token, boot, ended=True)


def _write(path: Path, token: str, boot: str, *, ended: bool) -> None:
    try:
        write_private(path, orjson.dumps({"token": token, "boot": boot, "ended": ended}))
    except OSError as exc:
        log.error(
            "%s cannot be written: the next process of this folder counts as another instance: %s",
            path,
            exc,
        )
