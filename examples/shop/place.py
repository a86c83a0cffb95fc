"""Where the shop's database is: an address that may change while the shop runs.

As an application that reads its configuration again, the shop moves between two requests of a
connection. No request is under way then, so none is lost or done twice.
"""

from __future__ import annotations

import time
from pathlib import Path

_LOOK_S = 0.2


class Place:
    """An address, or a file that holds the address."""

    def __init__(self, url: str, file: Path | None = None) -> None:
        self._url = url
        self._file = file
        self._looked = 0.0

    @property
    def url(self) -> str:
        """Return the address to use now."""
        now = time.monotonic()
        if self._file is not None and now - self._looked > _LOOK_S:
            self._looked = now
            self._url = self._file.read_text().strip() or self._url
        return self._url
