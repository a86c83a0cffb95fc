"""Where secrets go: into blocks only on request, into files of their own, and to no server but
their own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blocks import Migration, RedisEndpoint
from blocks.register import _block
from exodus.cli.context import of_block
from exodus.cli.prefect_api import PrefectApi
from exodus.errors import OperatorError
from exodus.plan.address import Address
from exodus.plan.plan import Options, Plan
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
    assert (block.password, block.password_file, block.password_env) == (
        None,
        None,
        "ORDERS_SOURCE",
    )
    assert block.address("source").secret("source") == _SECRET


def test_a_password_in_the_migration_file_is_not_put_into_a_block_unasked() -> None:
    address = Address.parse(f"redis://exodus:{_ENCODED}@h:1", field="source")
    with pytest.raises(OperatorError, match="the migration file contains the password") as caught:
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


def test_the_stack_s_login_is_sent_to_the_stack_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "stack")
    home.make()
    home.prefect_env.write_text(
        f"PREFECT_API_URL=http://127.0.0.1:1/api\nPREFECT_API_AUTH_STRING={home.prefect_login()}\n"
    )
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    assert PrefectApi.find(home).login == home.prefect_login()
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere.invalid/api")
    assert PrefectApi.find(home).login == ""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "someone:else")
    assert PrefectApi.find(home).login == "someone:else"


def test_the_blocks_have_every_field_of_the_migration_file() -> None:
    """A field that the block lacks would be lost in Prefect: what runs would differ from what was
    applied.
    """
    in_url = {"host", "port", "username", "tls"}
    assert set(Address.model_fields) - in_url <= set(RedisEndpoint.model_fields)
    given = set(Plan.model_fields) - {"name", "source", "target"}
    assert given == set(Options.model_fields)
    schema = Migration.model_json_schema()
    assert given == set(schema["definitions"]["Options"]["properties"]), (
        "the form of the UI shows each"
    )


def test_a_plan_is_the_same_after_its_way_through_the_blocks(tmp_path: Path) -> None:
    """Every field of the file has a value that is not its default."""
    files = {name: tmp_path / name for name in ("password", "ca", "cert", "key")}
    for file in files.values():
        file.write_text("secret\n")
    tls = {
        "ca_file": files["ca"],
        "cert_file": files["cert"],
        "key_file": files["key"],
        "server_name": "db.internal",
    }
    source = Address.parse(
        "rediss://exodus@h:1", field="source", password_file=files["password"], **tls
    )
    target = Address.parse("redis://exodus@h:2", field="target", password_file=files["password"])
    user = {"username": "other", "password_file": str(files["password"])}
    sides = {"source": user, "target": user}
    plan = Plan(
        name="orders",
        source=source,
        target=target,
        gateway={"host": "10.0.0.1", "port": 7000, "tls": True, "server_name": "gw"},
        partitions=4,
        slices=16,
        strategy="keys",
        workers={"kind": "processes", "count": 3},
        feed="replication",
        budget={"cpu_share_max": 0.5},
        verified_share_min=0.5,
        sample=0.1,
        observe_seconds=3.0,
        rehearsal_prefix="r:",
        rehearsal_hours_max=1.0,
        allow_nonempty=True,
        cutover="own",
        filters={"exclude": [{"pattern": "tmp:*"}]},
        keep_usage=True,
        renames=[{"prefix": "a:", "to_prefix": "b:"}],
        logins=[{"user": "app", "password_env": "A", "target_password_env": "B"}],
        users={"gateway": sides, "comparer": sides, "switch": sides, "verifier": sides},
        compare_user={**user, "username": "app"},
        test_checks={"load": "off", "business_folder": "/checks", "rehearsal_rounds": 7},
        fence={"source": "acl"},
        canary={"steps": [5]},
        hold_seconds_max=2.0,
        evidence_hours_max=3.0,
        decision_days_max=4.0,
        observation_hours_min=1.0,
        verification_hours_max=2.0,
        two_people=True,
        approvers=["x"],
        advance="auto",
    )
    servers = {
        field: _block(address, field, with_secrets=False)
        for field, address in (("source", source), ("target", target))
    }
    options = Options.model_validate(plan.model_dump(include=set(Options.model_fields)))
    block = Migration(
        migration=plan.name, options=options, control_store=servers["source"], **servers
    )
    stored = json.loads(block.model_dump_json())["options"]
    found = Migration(
        migration=plan.name, options=stored, control_store=servers["source"], **servers
    ).plan()
    assert {field: getattr(found, field) for field in Plan.model_fields} == {
        field: getattr(plan, field) for field in Plan.model_fields
    }


@pytest.mark.parametrize(
    "source",
    [
        {"url": "rediss://exodus@h:1", "password_file": "/p"},
        {"sentinels": ["h:1", "h:2"], "service": "orders", "tls": True, "username": "exodus"},
    ],
)
def test_the_command_line_reads_a_block_back(source: dict[str, object]) -> None:
    """A block has the fields of a URL and of Sentinels, and most of them are empty."""
    given = {"target": {"url": "redis://h:2"}, "control_store": {"url": "redis://h:3"}}
    block = Migration(
        migration="orders",
        source=RedisEndpoint(**source),  # type: ignore[arg-type]
        **{name: RedisEndpoint(**fields) for name, fields in given.items()},
    )
    sides = {
        name: getattr(block, name).model_dump(mode="json", exclude={"block_type_slug"})
        for name in ("source", *given)
    }
    data = {"migration": "orders", "options": {}, **sides}
    read = of_block({"name": "orders", "data": data}).plan
    assert read.source == block.source.place("source")
    assert read.target == block.target.place("target")
