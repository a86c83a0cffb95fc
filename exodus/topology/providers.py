"""Managed services: who runs a server, and what its service refuses (`providers.json`).

A provider is recognised by the server's host name, by the field `os` of its INFO, or by commands
that only it refuses. Its rules
were read in its documentation on the date that each entry has, and not tried by Exodus. What a
server really refuses is probed (`topology/node.py`, `topology/permits.py`); this is for what a
probe cannot show before it is too late.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field

_ADDRESS = re.compile(r"[0-9.]+|[0-9a-f:]+")


class Rule(BaseModel):
    """What a service refuses or does in another way."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commands: tuple[str, ...] = Field(description="that it concerns; none: every workload")
    risk: str
    advice: str


class Provider(BaseModel):
    """A managed service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hosts: tuple[str, ...] = Field(description="how its servers' names end")
    hosts_contain: tuple[str, ...] = Field(default=(), description="what the name has as well")
    info_os: str = Field(default="", description="what INFO of its servers has as `os`")
    info_source: str = Field(default="", description="page that shows such an INFO")
    needs_refused: tuple[str, ...] = Field(
        default=(),
        description="commands that it refuses; for a service whose servers have an IP address only",
    )
    source: str = Field(description="page that has the rules")
    read: str = Field(description="day on which it was read")
    rules: tuple[Rule, ...]

    def runs(self, host: str, refused: frozenset[str], info_os: str = "") -> bool:
        """Return whether a server is of this service."""
        if self.info_os and info_os == self.info_os:
            return True
        if self.hosts:
            return host.endswith(self.hosts) and (
                not self.hosts_contain or any(part in host for part in self.hosts_contain)
            )
        return (
            bool(self.needs_refused)
            and refused.issuperset(self.needs_refused)
            and _ADDRESS.fullmatch(host) is not None
        )


class Risk(NamedTuple):
    """A rule of the provider, and what of the workload it concerns."""

    provider: str
    risk: str
    concerns: tuple[str, ...]  # observed commands; empty: none of them
    advice: str
    source: str
    read: str


@cache
def providers() -> tuple[Provider, ...]:
    """Return all providers that Exodus knows."""
    raw = files("exodus.topology").joinpath("providers.json").read_bytes()
    return tuple(Provider.model_validate(each) for each in orjson.loads(raw))


def recognise(host: str, refused: Iterable[str] = (), info_os: str = "") -> Provider | None:
    """Return who runs a server, by its host name, the field `os` of its INFO, and the commands that
    it refused, or None.
    """
    name, without = host.rstrip(".").lower(), frozenset(refused)
    return next((each for each in providers() if each.runs(name, without, info_os)), None)


def risks(provider: Provider, observed: Iterable[str]) -> list[Risk]:
    """Return the provider's rules, those that concern the observed commands first."""
    seen = set(observed)
    found = [
        Risk(
            provider.name,
            rule.risk,
            tuple(sorted(seen.intersection(rule.commands))),
            rule.advice,
            provider.source,
            provider.read,
        )
        for rule in provider.rules
    ]
    return sorted(found, key=lambda risk: not risk.concerns)
