"""Lua scripts that servers run. Each is a `.lua` file in the folder `lua` of the package that uses
it.
"""

from __future__ import annotations

from importlib.resources import files


def lua(package: str, name: str) -> str:
    """Return the text of a package's script, without the suffix in `name`."""
    return (files(package) / "lua" / f"{name}.lua").read_text()
