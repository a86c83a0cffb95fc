"""Whether the long forms of tests are wanted: FULL=1 in the environment."""

from __future__ import annotations

import os

FULL = os.environ.get("FULL", "") not in ("", "0")
