"""Reading `migration.yaml`, with an error that names the field and the value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exodus.errors import OperatorError
from exodus.plan.address import Address, Cluster, Place, Service
from exodus.plan.gate_checks import GateChecks
from exodus.plan.plan import Plan
from exodus.plan.settings import Budget, CanaryPlan, Fencing, Listen, Login, Workers
from exodus.plan.window import Window

_NAME = re.compile(r"[a-z_]+(?:\.(?:[a-z_]+|\d+))*")


class MigrationFile(BaseModel):
    """`migration.yaml`: the plan's fields, and where the control store is."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    plan: Plan
    control_store: Address = Field(
        description="a small durable Redis or Valkey of its own, with an append-only file"
    )


_SERVERS = ("source", "target", "control_store")
_MODELS = (
    *(Plan, Address, Service, Cluster, Login, Workers, Budget, Listen, Fencing, CanaryPlan, Window),
    GateChecks,
)
_FIELDS = sorted({name for model in _MODELS for name in model.model_fields} | {"url"})


def load_migration(path: Path) -> MigrationFile:
    """Read and check a migration file.

    Raises:
        OperatorError: it is not there, not YAML, or a field of it cannot be; the message names the
            field and the value.
    """
    try:
        raw = _FieldsOnce(path.read_bytes()).get_single_data()
    except OSError as exc:
        raise OperatorError(
            f"{path} cannot be read",
            why=str(exc),
            next_step="name a migration file: exodus apply migration.yaml",
        ) from exc
    except yaml.YAMLError as exc:
        mark = exc.problem_mark if isinstance(exc, yaml.MarkedYAMLError) else None
        what = "a field stands twice" if isinstance(exc, _Twice) else "it cannot be read"
        raise OperatorError(
            f"{path} is not YAML",
            why=what
            if mark is None
            else f"{what} at line {mark.line + 1}, column {mark.column + 1}",
            next_step="correct the file; docs/operating/migration-file.md has an example",
        ) from None  # its text has lines of the file
    if not isinstance(raw, dict):
        raise OperatorError(
            f"{path} holds no fields",
            why="a migration file is a mapping",
            next_step="see docs/operating/migration-file.md",
        )
    return migration_of(raw, str(path))


class _Twice(yaml.MarkedYAMLError):
    """A field stands twice in a mapping."""


class _FieldsOnce(yaml.SafeLoader):
    """Reads YAML, and refuses a field that stands twice, which PyYAML accepts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`."""
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    raise _Twice(problem_mark=key.start_mark)
                names.add(key.value)
        return super().construct_mapping(node, deep)


def migration_of(raw: Mapping[str, Any], where: str) -> MigrationFile:
    """Check the fields of a migration; `where` names what holds them.

    Raises:
        OperatorError: a field cannot be; the message names the field and the value.
    """
    fields = dict(raw)
    servers = {name: _place(name, fields.pop(name, None), where) for name in _SERVERS}
    try:
        plan = Plan.model_validate(
            {**fields, "source": servers["source"], "target": servers["target"]}
        )
    except ValidationError as exc:
        raise _as_operator_error(exc, where, "") from exc
    control_store = servers["control_store"]
    if not isinstance(control_store, Address):
        named = "sentinels" if isinstance(control_store, Service) else "a cluster"
        raise OperatorError(
            f"control_store is one server, and it names {named}",
            why="after a failover the control store could lack the last entries of the journal",
            next_step="name its address in control_store.url (docs/operating/production.md)",
        )
    return MigrationFile(plan=plan, control_store=control_store)


def _place(name: str, server: object, where: str) -> Place:
    """Read one of `_SERVERS`: a URL, or a mapping with a URL, with Sentinels, or with a cluster.

    Raises:
        OperatorError: it is neither, or a field of it cannot be.
    """
    if isinstance(server, str):
        server = {"url": server}
    by_url = isinstance(server, dict) and isinstance(server.get("url"), str)
    by_sentinels = isinstance(server, dict) and ("sentinels" in server or "service" in server)
    by_nodes = isinstance(server, dict) and "cluster" in server
    if not isinstance(server, dict) or not (by_url or by_sentinels or by_nodes):
        raise OperatorError(
            f"{name} is not a server" if server else f"{name} is missing",
            why="each of source, target and control_store needs a url; source and target may have "
            "sentinels and service, or cluster, in its place",
            next_step=f"add to {where}:\n{name}:\n  url: redis://user@host:port\n  "
            "password_env: NAME_OF_A_VARIABLE",
        )
    if "url" in server and by_sentinels:
        raise OperatorError(
            f"{name} has a url and sentinels",
            why="the Sentinels say which server is the master, so a url cannot",
            next_step=f"leave {name}.url away; its user goes into {name}.username, and rediss:// "
            f"becomes {name}.tls: true",
        )
    if by_nodes and ("url" in server or by_sentinels):
        raise OperatorError(
            f"{name} has a cluster and {'sentinels' if by_sentinels else 'a url'}",
            why="the nodes of the cluster say who has which slots",
            next_step=f"leave all but {name}.cluster away; a user goes into {name}.username, and "
            f"rediss:// becomes {name}.tls: true",
        )
    more = {key: value for key, value in server.items() if key != "url"}
    try:
        if by_nodes:
            return Cluster.model_validate(more)
        if by_sentinels:
            return Service.model_validate(more)
        return Address.parse(server["url"], field=name, **more)
    except ValidationError as exc:
        raise _as_operator_error(exc, where, name + ".") from exc


def _as_operator_error(exc: ValidationError, where: str, prefix: str) -> OperatorError:
    first = exc.errors(include_url=False)[0]
    field = prefix + ".".join(str(part) for part in first["loc"])
    # Two fields that do not go together: the message names both, and the value would be the whole
    # file
    if not field:
        what = first["msg"].removeprefix("Value error, ")
        return OperatorError(
            what,
            why=f"{where} was checked and nothing was changed",
            next_step="correct one of the two",
        )
    why = f"{where} was checked and nothing was changed"
    # A misspelt field: its value may be a password, and so may its name
    if first["type"] == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), _FIELDS, n=1)
        number = (
            f" (its value is {first['input']})"
            if isinstance(first["input"], (bool, int, float))
            else ""
        )
        return OperatorError(
            f"{_shown(field)}: there is no such field{number}",
            why=why,
            next_step=f"is it {near[0]}?" if near else "see docs/operating/migration-file.md",
        )
    hidden = (
        prefix or "password" in field or first["loc"][0] == "logins" or first["type"] == "missing"
    )
    # With fields of its own, which may be anything
    whole = isinstance(first["input"], (dict, list))
    value = "" if whole or (hidden and isinstance(first["input"], str)) else f" {first['input']!r}"
    ours = first["msg"].removeprefix("Value error, ")
    said = ours if ours != first["msg"] else ours.lower()
    return OperatorError(f"{field}:{value} {said}", why=why, next_step=f"correct {field}")


def _shown(field: str) -> str:
    """Return an unknown field's name, masked where it may be a secret."""
    return field if _NAME.fullmatch(field) else "a field"
