"""The types in `.pxd` are those of the classes beside them (exodus/compiled.py).

A field that only the source has would be an error at run time in the compiled form, and one that
only the `.pxd` has would cost memory in every object.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from exodus import compiled

TWINS = [path for path in map(compiled.source, compiled.HOT) if path.with_suffix(".pxd").exists()]
_CLASS = re.compile(r"cdef class (\w+)[^:\n]*(:?)")
_FIELDS = re.compile(r"    cdef [^,()#]*?[\s\]*\"](?P<names>\w+(?:, \w+)*)\s*(?:#.*)?$")


def fields_of_types(text: str) -> dict[str, set[str]]:
    """Return the fields of each class that a `.pxd` describes."""
    found: dict[str, set[str]] = {}
    current: set[str] = set()
    for line in text.splitlines():
        begins = _CLASS.match(line)
        if begins and begins[2]:
            current = found.setdefault(begins[1], set())
        elif fields := _FIELDS.match(line):
            current.update(fields["names"].split(", "))
        elif line and not line.startswith(" "):
            current = set()
    return found


def fields_of_source(text: str) -> dict[str, set[str]]:
    """Return the fields of each class of a source: what it assigns through `self`, and its
    `__slots__`.
    """
    found: dict[str, set[str]] = {}
    slots = slots_of_source(text)
    for kind in ast.walk(ast.parse(text)):
        if isinstance(kind, ast.ClassDef):
            stored = [
                each
                for each in ast.walk(kind)
                if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
            ]
            own = {
                each.attr
                for each in stored
                if isinstance(each.value, ast.Name) and each.value.id == "self"
            }
            found[kind.name] = own | slots.get(kind.name, set())
    return found


def slots_of_source(text: str) -> dict[str, set[str]]:
    """Return the `__slots__` of each class that has them."""
    found: dict[str, set[str]] = {}
    for kind in ast.walk(ast.parse(text)):
        for line in kind.body if isinstance(kind, ast.ClassDef) else ():
            if (
                isinstance(line, ast.Assign)
                and isinstance(line.targets[0], ast.Name)
                and line.targets[0].id == "__slots__"
            ):
                found[kind.name] = set(ast.literal_eval(line.value))
    return found


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_the_fields_of_a_class_are_those_of_its_types(path: Path) -> None:
    types, source = (
        fields_of_types(path.with_suffix(".pxd").read_text()),
        fields_of_source(path.read_text()),
    )
    slots = slots_of_source(path.read_text())
    assert types.keys() <= source.keys()
    assert {name: sorted(fields) for name, fields in types.items()} == {
        name: sorted(source[name]) for name in types
    }
    for name in types.keys() & slots.keys():
        assert sorted(slots[name]) == sorted(types[name]), f"{name}.__slots__"


def test_a_field_that_is_missing_or_extra_is_found() -> None:
    types = """cdef class A:
    cdef public int one, two
    cdef bytes _three  # a remark
    cdef const char* four
    cdef long long[::1] five

    @cython.locals(at=int)
    cdef read(self, int at)
cdef int OTHER
"""
    assert fields_of_types(types) == {"A": {"one", "two", "_three", "four", "five"}}
    source = (
        "class A:\n    __slots__ = ('one',)\n    def read(self, at):\n        self.one, "
        "self.two = 1, 2\n        self.two.other = self.three\n"
    )
    assert fields_of_source(source) == {"A": {"one", "two"}}
    assert slots_of_source(source) == {"A": {"one"}}


def test_every_hot_module_with_classes_has_types() -> None:
    untyped = [path.stem for path in map(compiled.source, compiled.HOT) if path not in TWINS]
    assert untyped == [], "a hot module without a .pxd runs compiled and gains next to nothing"
