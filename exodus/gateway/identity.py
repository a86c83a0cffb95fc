"""Which instance of a gateway id this is: the one whose state folder this is.

An id names a registration, and a switch takes its heartbeat for all that runs under it. Two processes with
one id would answer for each other. So the id belongs to the instance, named by a token that lies in its
state folder: a restart in the same folder is the same instance, a second folder is another one.

The folder also tells what it cannot hold: the intent log and the spool survive the end of the process, not
that of the host. After a restart of the host (another boot id) without an orderly end before it, they may
be older than what was written.
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
    """The instance, and how the process before this one ended."""

    token: str
    ended: bool = True  # in order, or there was none
    host_restarted: bool = False  # its host went down under it


def identify(folder: Path) -> Identity:
    """Read or make the identity of a state folder, and note there that a process runs; `note_end` takes that back."""
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
    """Note that the process ended in order: everything that its files had is in the journal."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    _write(folder / _FILE, identity.token, boot, ended=True)


def _write(path: Path, token: str, boot: str, *, ended: bool) -> None:
    try:
        write_private(path, orjson.dumps({"token": token, "boot": boot, "ended": ended}))
    except OSError as exc:
        log.error("%s cannot be written: the next process of this folder counts as another instance: %s", path, exc)
