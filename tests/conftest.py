"""Fixtures of all tests."""

from tests.support.plant import modern, plant
from tests.support.servers import (
    _control,
    _redis62,
    _redis82,
    _valkey81,
    _valkey91,
    control_server,
    make_server,
    redis62,
    redis82,
    valkey81,
    valkey91,
)

__all__ = [
    "_control",
    "_redis62",
    "_redis82",
    "_valkey81",
    "_valkey91",
    "control_server",
    "make_server",
    "modern",
    "plant",
    "redis62",
    "redis82",
    "valkey81",
    "valkey91",
]
