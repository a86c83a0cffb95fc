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

from exodus.private import private_folder, write_private

log = logging.getLogger(__name__)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """The instance, and whether its host went down under it."""

    token: str
    host_restarted: bool = False


def identify(folder: Path, *, ended: bool) -> Identity:
    """Read or make the identity of a state folder; `ended` is whether the process before this one ended in order."""
    path = folder / "instance.json"
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    try:
        kept = orjson.loads(path.read_bytes())
        token, before = str(kept["token"]), str(kept["boot"])
    except FileNotFoundError:
        token, before = secrets.token_hex(8), boot
    except (OSError, ValueError, KeyError) as exc:
        log.error("%s cannot be read: this instance gets another name: %s", path, exc)
        token, before = secrets.token_hex(8), boot
    private_folder(folder)
    try:
        write_private(path, orjson.dumps({"token": token, "boot": boot}))
    except OSError as exc:
        log.error("%s cannot be written: the next process of this folder counts as another instance: %s", path, exc)
    return Identity(token, host_restarted=before != boot and not ended)
