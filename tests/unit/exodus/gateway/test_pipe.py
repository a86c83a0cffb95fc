"""The journal's connection to the control store."""

from __future__ import annotations

from pathlib import Path

import pytest

from exodus.control.store import ControlStore
from exodus.gateway.pipe import StorePipe
from exodus.net.client import make_client
from exodus.plan.address import Address

_AWAY = Path("/nowhere")


@pytest.mark.parametrize(
    "missing",
    [{"tls": True, "ca_file": _AWAY}, {"password_file": _AWAY}],
    ids=["certificates", "password"],
)
async def test_files_that_are_away_are_a_store_that_is_away(missing: dict) -> None:
    """Then the journal goes to its spool. Any other error would lose the batch."""
    plain = Address(host="127.0.0.1", port=1)
    store = ControlStore(
        make_client(plain, field="control_store"), "pipe", plain.model_copy(update=missing)
    )
    with pytest.raises(OSError, match="/nowhere"):
        await StorePipe(store).transaction([("PING",)])
