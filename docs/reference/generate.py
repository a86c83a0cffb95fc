"""Write the pages of docs/reference/ from the code: `make docs`.

`pages()` returns the text of each page, and tests/unit/test_docs.py compares it with the files. The
command line comes from typer, the migration file from pydantic's models, the errors from their
classes. Metrics are read from the source text, because a process yields most of them only while
something happens.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperGroup

from exodus import errors
from exodus.cli.app import app
from exodus.live.lanes import LaneCounts
from exodus.live.syncer import COUNTED
from exodus.plan.migration_file import MigrationFile

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
_HEAD = "<!-- Written by `make docs` from the code. Do not edit. -->\n\n"
_BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {
        "cli.md": _HEAD + _cli(),
        "migration-file.md": _HEAD + _migration_file(),
        "metrics.md": _HEAD + _metrics(),
        "errors.md": _HEAD + _errors(),
    }


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return (
            "| "
            + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
            + " |\n"
        )

    return line(head) + line(("---",) * len(head)) + "".join(map(line, rows)) + "\n"


# The command line.


def _cli() -> str:
    text = (
        "# Command line\n\n"
        "Data goes to standard output, messages to standard error. Exit status: 0 success, 1 "
        "refused or failed, 2 wrong\n"
        "use, 70 a bug. `NO_COLOR` is honoured. `exodus COMMAND --help` shows the same texts.\n\n"
    )
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return text + "".join(
        _command(words, command) for words, command in _commands(group, ("exodus",))
    )


def _commands(group: TyperGroup, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, TyperGroup):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), command


def _command(words: tuple[str, ...], command: Any) -> str:
    usage = " ".join(
        [
            *words,
            *(_names(each) for each in command.params if isinstance(each, TyperArgument)),
            "[OPTIONS]",
        ]
    )
    what, _, example = (
        " ".join((command.help or "").split())
        .replace(" Examples: ", " Example: ")
        .partition(" Example: ")
    )
    text = f"## {' '.join(words[1:])}\n\n{what}\n\n```\n{usage}\n```\n\n"
    if example:
        text += "Example:\n\n```\n" + example.replace("; exodus ", "\nexodus ") + "\n```\n\n"
    rows = [(f"`{_names(each)}`", each.help or "", _shown_default(each)) for each in command.params]
    return text + (_table(("option", "meaning", "default"), rows) if rows else "")


def _names(parameter: Any) -> str:
    if isinstance(parameter, TyperArgument):
        name = parameter.name.upper().replace("_", "-")
        return name if parameter.required else f"[{name}]"
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {_value(parameter)}"


def _value(parameter: Any) -> str:
    """What an option takes: a bounded number, one of some words, or text."""
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "|".join(kind)
    name = {int: "N", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")
    least, most = (
        "" if bound is None else f"{bound:g}" for bound in (parameter.min, parameter.max)
    )
    return f"{name} ({least}..{most})" if least or most else name


def _shown_default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value is False or callable(value) or value in ("", (), []):
        return ""
    return f"`{value}`"


# The migration file.


def _migration_file() -> str:
    text = (
        "# Fields of migration.yaml\n\n"
        "[An example and what each group is for](../operating/migration-file.md). Fields without "
        "a default are required.\n"
        "`source`, `target` and `control_store` also take `url: redis://user@host:port` "
        "(`rediss://` for TLS) in place of\n"
        "`host`, `port`, `username` and `tls`.\n"
        "[Behind Sentinel](../operating/sentinel.md) `source` and `target` name `sentinels` and "
        "`service`.\n"
        "[A cluster](../operating/cluster.md) is named by `cluster`, a list of nodes.\n\n"
    )
    models: list[type[BaseModel]] = []
    plan = MigrationFile.model_fields["plan"].annotation
    assert isinstance(plan, type)
    assert issubclass(plan, BaseModel)
    first = ("name", "source", "target")
    fields = {name: plan.model_fields[name] for name in first}
    fields |= {"control_store": MigrationFile.model_fields["control_store"], **plan.model_fields}
    text += _table(
        ("field", "type", "default", "meaning"),
        [_field(name, each, models) for name, each in fields.items()],
    )
    done: set[type[BaseModel]] = set()
    while models:
        model = models.pop(0)
        if model in done:
            continue
        done.add(model)
        rows = [
            _field(name, each, models)
            for name, each in model.model_fields.items()
            if not each.exclude
        ]
        doc = (inspect.getdoc(model) or "").split("\n\n")[0]
        text += f"## {model.__name__}\n\n{doc}\n\n" + _table(
            ("field", "type", "default", "meaning"), rows
        )
    return text


def _field(name: str, field: FieldInfo, models: list[type[BaseModel]]) -> tuple[str, str, str, str]:
    kind = _type(field.annotation, models)
    unit = "entries" if get_origin(field.annotation) is tuple else "characters"
    bounds = ", ".join(_bound(each, unit) for each in field.metadata if _bound(each, unit))
    return (
        f"`{name}`",
        kind + (f", {bounds}" if bounds else ""),
        _default(field),
        field.description or "",
    )


def _bound(constraint: object, unit: str) -> str:
    for kind, (sign, attribute) in _BOUNDS.items():
        if isinstance(constraint, kind):
            return f"{sign} {getattr(constraint, attribute):,}"
    if isinstance(constraint, MinLen) and constraint.min_length > 1:
        return f"at least {constraint.min_length} {unit}"
    if isinstance(constraint, MaxLen):
        return f"at most {constraint.max_length:,} {unit}"
    pattern = getattr(constraint, "pattern", None)
    return f"`{pattern}`" if pattern else ""


def _type(annotation: Any, models: list[type[BaseModel]]) -> str:
    if get_origin(annotation) is dict:
        return " → ".join(_type(each, models) for each in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of {_type(get_args(annotation)[0], models)}"
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return " or ".join(_type(each, models) for each in get_args(annotation))
    if get_args(annotation):  # a Literal
        return (
            ", ".join(f"`{each}`" for each in get_args(annotation) if isinstance(each, str))
            or "date with time zone"
        )
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        models.append(annotation)
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return ", ".join(f"`{each}`" for each in annotation)
    plain = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true, false",
        Path: "file",
        SecretStr: "text",
    }
    return plain.get(annotation, "date with time zone")


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return ""
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else "" if value == "" else f"`{value}`"


# Metrics.


def _metrics() -> str:
    text = (
        "# Metrics\n\n"
        "At `/metrics` of each process, for Prometheus. Names are `exodus_<part>_<what>_<unit>`. "
        "`_total` is a counter\n"
        "since the start of the process; all others are gauges. "
        "[Alarms](../operating/production.md#what-to-watch).\n\n"
    )
    found = metrics()
    for part in sorted({name.split("_")[1] for name, _, _ in found}):
        rows = [
            (f"`{name}`", ", ".join(f"`{each}`" for each in labels), meaning)
            for name, labels, meaning in found
            if name.split("_")[1] == part
        ]
        text += f"## {part}\n\n" + _table(("metric", "labels", "meaning"), rows)
    return text


def metrics() -> list[tuple[str, tuple[str, ...], str]]:
    """Return name, labels and meaning of every sample, in the order of the source."""
    found: list[tuple[str, tuple[str, ...], str]] = []
    for path in sorted((ROOT / "exodus").rglob("*.py")):
        text = path.read_text()
        if "exodus_" not in text:
            continue
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef) and function.name.endswith(
                ("metrics", "samples")
            ):
                found += _samples(function)
    return found


def _samples(function: ast.FunctionDef) -> Iterator[tuple[str, tuple[str, ...], str]]:
    labels: tuple[str, ...] = ()
    for node in sorted(ast.walk(function), key=lambda each: getattr(each, "lineno", 0)):
        if (
            not isinstance(node, ast.Yield)
            or not isinstance(node.value, ast.Tuple)
            or len(node.value.elts) != 4
        ):
            continue
        name, meaning, given, _ = node.value.elts
        labels = _labels(given, function)
        if isinstance(meaning, ast.Name):  # of a table `figures`, a row a metric
            for row in _figures(function):
                yield (
                    _text(name, str(ast.literal_eval(row.elts[0]))),
                    labels,
                    _text(row.elts[1], None),
                )
            continue
        for word in (None,) if isinstance(name, ast.Constant) else LaneCounts().counts:
            said = (
                COUNTED[str(word)] if isinstance(meaning, ast.Subscript) else _text(meaning, word)
            )
            yield _text(name, word), labels, said


def _figures(function: ast.FunctionDef) -> list[ast.Tuple]:
    """The rows of the table `figures` of a function."""
    tables = [
        each.value
        for each in ast.walk(function)
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.List)
    ]
    return [row for table in tables for row in table.elts if isinstance(row, ast.Tuple)]


def _text(node: ast.expr, word: str | None) -> str:
    """A literal, or an f-string whose only field is one of the syncer's counters."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr), ast.dump(node)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else str(word) for part in node.values
    )


def _labels(node: ast.expr, function: ast.FunctionDef) -> tuple[str, ...]:
    """The keys of a dict, or of the dict that was last assigned to a name above the yield."""
    if isinstance(node, ast.Dict):
        names: list[str] = []
        for key, value in zip(node.keys, node.values, strict=True):
            names += _labels(value, function) if key is None else [str(ast.literal_eval(key))]
        return tuple(names)
    assert isinstance(node, ast.Name), ast.dump(node)
    above = [
        each.value
        for each in ast.walk(function)
        if isinstance(each, ast.Assign)
        and isinstance(each.targets[0], ast.Name)
        and each.targets[0].id == node.id
        and each.lineno < node.lineno
    ]
    return _labels(max(above, key=lambda value: value.lineno), function)


# Errors.


def _errors() -> str:
    text = (
        "# Error codes and exit statuses\n\n"
        "Each error names its code in brackets: `error: cutover refused [refused]`. [What to "
        "do](../operating/errors.md).\n\n"
    )
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ExodusError)
    ]
    rows = [
        (
            f"[`{kind.code}`](../operating/errors.md#{kind.code})",
            str(kind.exit_status),
            "yes" if kind.retryable else "no",
            " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()),
        )
        for kind in kinds
    ]
    return text + _table(("code", "exit status", "trying again can help", "meaning"), rows)


if __name__ == "__main__":
    for file, page in pages().items():
        (FOLDER / file).write_text(page)
