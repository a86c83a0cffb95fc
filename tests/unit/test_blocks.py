"""Where secrets go: into blocks only where asked for, into files of their own, and to no server but their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks.register import _block
from exodus.cli.prefect_api import PrefectApi
from exodus.config import Address
from exodus.errors import OperatorError
from exodus.stack.home import Home
from exodus.stack.up import _given

_SECRET = "QXZJ/of#the@source"
_ENCODED = "QXZJ%2Fof%23the%40source"


def test_a_block_names_the_file_of_a_password_unless_asked_for_it(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(_SECRET + "\n")
    address = Address.parse("redis://exodus@h:1", field="source", password_file=file)
    block = _block(address, "source", with_secrets=False)
    assert (block.password, block.password_file, block.password_env) == (None, str(file), None)
    assert block.address("source").secret("source") == _SECRET
    block = _block(address, "source", with_secrets=True)
    assert block.password is not None
    assert (block.password.get_secret_value(), block.password_file) == (_SECRET, None)
    assert block.address("source").secret("source") == _SECRET


def test_a_block_names_the_variable_of_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_SOURCE", _SECRET)
    address = Address.parse("redis://exodus@h:1", field="source", password_env="ORDERS_SOURCE")
    block = _block(address, "source", with_secrets=False)
    assert (block.password, block.password_file, block.password_env) == (None, None, "ORDERS_SOURCE")
    assert block.address("source").secret("source") == _SECRET


def test_a_password_in_the_migration_file_is_not_put_into_a_block_unasked() -> None:
    address = Address.parse(f"redis://exodus:{_ENCODED}@h:1", field="source")
    with pytest.raises(OperatorError, match="the password stands in the migration file") as caught:
        _block(address, "source", with_secrets=False)
    assert "QXZJ" not in str(caught.value)
    block = _block(address, "source", with_secrets=True)
    assert block.address("source").secret("source") == _SECRET


def test_a_password_in_a_url_that_up_is_given_goes_into_a_private_file(tmp_path: Path) -> None:
    home = Home(tmp_path / "stack")
    home.make()
    given = _given(home, "source", f"redis://exodus:{_ENCODED}@h:1", None)
    assert given["url"] == "redis://exodus@h:1"
    file = Path(given["password_file"])
    assert (file.read_text(), file.stat().st_mode & 0o777) == (_SECRET + "\n", 0o600)
    assert file in home.private_files()


def test_the_stack_s_login_is_sent_to_the_stack_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "stack")
    home.make()
    home.prefect_env.write_text(f"PREFECT_API_URL=http://127.0.0.1:1/api\nPREFECT_API_AUTH_STRING={home.prefect_login()}\n")
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    assert PrefectApi.find(home).login == home.prefect_login()
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere.invalid/api")
    assert PrefectApi.find(home).login == ""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "someone:else")
    assert PrefectApi.find(home).login == "someone:else"
