"""`exodus users` prints what a server of that version takes, and why; the plan's users are Exodus's
alone.
"""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from exodus.cli.app import app
from exodus.errors import OperatorError
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Side, UserRole


def _users(*arguments: str) -> dict[str, dict]:
    said = CliRunner().invoke(app, ["users", "--json", *arguments], catch_exceptions=False)
    assert said.exit_code == 0, said.output
    return {user["user"]: user for user in json.loads(said.stdout)["users"]}


def test_a_server_is_given_only_commands_that_it_has() -> None:
    old, new = (
        " ".join(user["rule"] for user in _users("--for", server).values())
        for server in ("redis-6.2", "valkey-9.1")
    )
    for command in (
        "+function|list",
        "+eval_ro",
        "+evalsha_ro",
        "+pexpiretime",
        "+client|no-touch",
        "+acl|dryrun",
        "+hpexpiretime",
    ):
        assert command not in old.split()
        assert command in new.split()
    for command in (
        "+evalsha",
        "+script|load",
        "+time",
        "+replconf",
        "+psync",
        "+client|tracking",
        "+command",
    ):
        assert command in old.split()


def test_an_administrators_right_is_named_and_left_out_with_another_fence() -> None:
    assert {
        name: user["administrator"]
        for name, user in _users("--for", "redis-8.2").items()
        if user["administrator"]
    } == {"exodus-switch": ["acl|setuser"]}
    assert not any(
        user["administrator"]
        for user in _users("--for", "redis-8.2", "--fence", "provider").values()
    )
    (one,) = _users("--for", "redis-8.2", "--fence", "min-replicas", "--together").values()
    assert one["administrator"] == ["config|set"]
    assert one["roles"] == [str(role) for role in UserRole]


@pytest.mark.parametrize("role", ["exodus-gateway", "exodus-verifier"])
def test_who_only_looks_may_write_nothing(role: str) -> None:
    commands = set(_users("--for", "valkey-9.1")[role]["rule"].split())
    assert commands.isdisjoint(
        {"+set", "+restore", "+del", "+unlink", "+hset", "+rename", "+acl|setuser", "+config|set"}
    )


@pytest.mark.parametrize("text", ["redis-5.0", "valkey-7.0", "dragonfly-1.0", "redis"])
def test_a_server_that_is_not_supported_is_refused(text: str) -> None:
    with pytest.raises(OperatorError, match="--for"):
        CliRunner().invoke(app, ["users", "--for", text], catch_exceptions=False)


def test_users_of_roles_are_used_where_the_plan_names_them() -> None:
    side = {"host": "h", "port": 1, "username": "exodus", "password_file": "/own"}
    switch = {"source": {"username": "fencer", "password_file": "/fencer"}}
    plan = Plan.model_validate(
        {"name": "a", "source": side, "target": {**side, "host": "t"}, "users": {"switch": switch}}
    )
    acting = plan.acting(UserRole.SWITCH)
    assert (acting.source.username, str(acting.source.password_file), acting.source.host) == (
        "fencer",
        "/fencer",
        "h",
    )
    assert (acting.target, plan.acting(UserRole.VERIFIER)) == (plan.target, plan)
    assert (plan.own_users(Side.SOURCE), plan.own_users(Side.TARGET)) == (
        {"exodus", "fencer"},
        {"exodus"},
    )
    with pytest.raises(ValueError, match="compare_user"):
        Plan.model_validate(
            {
                **plan.model_dump(mode="json"),
                "compare_user": {"username": "exodus", "password_file": "/x"},
            }
        )


def test_the_user_of_scripts_on_a_cluster_is_nobody_else() -> None:
    """Its rights are to scratch copies alone, so it is no user that does something else."""
    login = {"username": "exodus", "password_file": "/p"}
    fields = {
        "name": "a",
        "source": {**login, "cluster": ["s:1"]},
        "target": {**login, "cluster": ["t:1"]},
        "cutover": "own",
        "compare_scripts": True,
        "compare_user": {"username": "shop", "password_file": "/x"},
        "compare_script_user": {"username": "scripts", "password_file": "/x"},
    }
    assert Plan.model_validate(fields).compare_script_user is not None
    for name in ("shop", "exodus"):
        wrong = {"username": name, "password_file": "/x"}
        with pytest.raises(ValueError, match="something else"):
            Plan.model_validate({**fields, "compare_script_user": wrong})
    for changed in ({"compare_scripts": False}, {"target": {**login, "host": "t", "port": 1}}):
        with pytest.raises(ValueError, match="a target that is a cluster"):
            Plan.model_validate({**fields, **changed})
