"""Whether the hot path runs compiled. Cython compiles the same sources at installation, where a
compiler exists (setup.py).

A compiled module lies beside its source, and Python would import it even after the source changed.
So the compiled modules count only while all sources and `.pxd` types have the digest of the build.
Otherwise, or with EXODUS_COMPILED=0, the sources run: slower, and otherwise the same
(tests/property/test_twins.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

HOT = (
    "exodus.plan.share",
    "exodus.resp.encode",
    "exodus.resp.inline",
    "exodus.resp.scanner",
    "exodus.commands.key_slots",
    "exodus.commands.table",
    "exodus.control.changes",
    "exodus.telemetry.histogram",
    "exodus.telemetry.counters",
    "exodus.gateway.orders",
    "exodus.gateway.session.transaction",
    "exodus.gateway.session.pending",
    "exodus.gateway.session.state",
    "exodus.gateway.session.buffers",
    "exodus.gateway.session.leg",
    "exodus.gateway.session.parts",
    "exodus.gateway.session.effects",
    "exodus.gateway.session.admission",
    "exodus.gateway.session.waiting",
    "exodus.gateway.session.matching",
    "exodus.gateway.session.machine",
    "exodus.gateway.intents",
    "exodus.gateway.marks",
    "exodus.gateway.relay",
    "exodus.verify.decode",
)
DIGESTS = "_compiled.json"
_ROOT = Path(__file__).resolve().parent


def source(module: str) -> Path:
    """Return the source file of a hot module."""
    return _ROOT.parent / (module.replace(".", "/") + ".py")


def digest() -> str:
    """Return a digest of all hot sources and their types. A difference means that the compiled form
    is older.
    """
    found = hashlib.sha256()
    for module in HOT:
        for path in (source(module), source(module).with_suffix(".pxd")):
            if path.exists():
                found.update(path.read_bytes())
    return found.hexdigest()


def why_not() -> str | None:
    """Return why the compiled modules are not used, or None."""
    if os.environ.get("EXODUS_COMPILED") == "0":
        return "EXODUS_COMPILED=0"
    try:
        built = json.loads((_ROOT / DIGESTS).read_bytes())
    except (OSError, ValueError):
        return "nothing was compiled at installation"
    if built.get("python") != sys.version.split(maxsplit=1)[0] or built.get("modules") != list(HOT):
        return "it was compiled for another version"
    return (
        None
        if built.get("digest") == digest()
        else "a source was changed since it was compiled; `make install` compiles again"
    )


class SourceFinder:
    """Finds the sources of the hot modules before the import system looks for compiled ones."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a hot source, as `importlib.abc.MetaPathFinder` does."""
        del path, target
        return spec_from_file_location(name, source(name)) if name in HOT else None


def choose() -> None:
    """Called once, before any hot module is imported."""
    if why_not() is not None:
        sys.meta_path.insert(0, SourceFinder())
