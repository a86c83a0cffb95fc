"""Slots of a cluster: which shard has which slots. No I/O. `key_slots.py` tells a key's slot.

A *shard* is a master with its slots and its replicas.

`View` is one node's word about the whole cluster, from its answer to CLUSTER SLOTS. Every version
answers that, and a server behind TLS names its TLS ports there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from exodus.commands.key_slots import SLOTS, groups_by_owner, places_by_owner, tags_by_slot

NO_SHARD = -1
_NAME = re.compile(r"slots (\d+)-\d+(?: and \d+ more)? \((\w+)\)")


@lru_cache(maxsize=64)
def _tags(prefix: bytes) -> list[bytes]:
    """Return a hash tag for each slot: the prefix, a dot, and the smallest number that fits."""
    return tags_by_slot(prefix)


def tag_of(prefix: bytes, slot: int) -> bytes:
    """Return the hash tag that begins with `prefix` and is in `slot`; the same one each time."""
    return _tags(prefix)[slot]


@dataclass(frozen=True)
class Shard:
    """A master with its slots. Addresses are host:port, as announced."""

    master: str
    node_id: str  # the master's; it stays through a restart, and a failover brings another one
    ranges: tuple[tuple[int, int], ...]  # first and last slot of each
    replicas: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Return its slots in words."""
        first, last = self.ranges[0]
        more = f" and {len(self.ranges) - 1} more" if len(self.ranges) > 1 else ""
        return f"slots {first}-{last}{more}"

    @property
    def name(self) -> str:
        """Return the shard's name in checkpoints: its slots, and its master. See `shard_named`."""
        return f"{self.text} ({self.node_id[:8]})"

    def has(self, slot: int) -> bool:
        """Return whether a slot is its."""
        return any(first <= slot <= last for first, last in self.ranges)

    def meets(self, other: Shard) -> bool:
        """Return whether a slot is of both, as it may be with shards of two clusters."""
        return any(
            first <= behind and start <= last
            for first, last in self.ranges
            for start, behind in other.ranges
        )

    def multiples(self, step: int) -> list[int]:
        """Return its slots whose number is a multiple of `step`."""
        return list(self._multiples(step))

    def multiple(self, step: int, *, but: Collection[int] = ()) -> int | None:
        """Return the first of these slots that is not in `but`; None where there is none."""
        return next((slot for slot in self._multiples(step) if slot not in but), None)

    def _multiples(self, step: int) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(-(-first // step) * step, last + 1, step)

    @property
    def slot_count(self) -> int:
        """Return how many slots it has."""
        return sum(last - first + 1 for first, last in self.ranges)


def shard_named(shards: Sequence[Shard], name: str) -> Shard | None:
    """Return the shard that was named so. That is the one of the same master, whatever slots it has
    by now. After a failover, it is the one that has the first of these slots.

    Raises:
        ValueError: the name is not one of `Shard.name`.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is no name of a shard")
    slot, node_id = int(found[1]), found[2]
    same = (shard for shard in shards if shard.node_id.startswith(node_id))
    return next(same, None) or next((shard for shard in shards if shard.has(slot)), None)


@dataclass(frozen=True)
class View:
    """Which shard has which slots, as one node says, and how new that is."""

    shards: tuple[Shard, ...]
    epoch: int  # the node's `cluster_current_epoch`: it grows with each failover and reshard
    by: str = ""  # the node that says so

    @cached_property
    def _owners(self) -> list[int]:
        """The shard of each slot, with what MOVED said since."""
        owners = [NO_SHARD] * SLOTS
        for number, shard in enumerate(self.shards):
            for first, last in shard.ranges:
                owners[first : last + 1] = [number] * (last - first + 1)
        return owners

    def owner(self, slot: int) -> Shard | None:
        """Return the shard that has a slot; None where none has."""
        number = self._owners[slot]
        return None if number == NO_SHARD else self.shards[number]

    def by_owner(self, keys: Sequence[bytes]) -> dict[int, list[int]]:
        """Return the shard's number in `shards` → places of its keys; `NO_SHARD` → places of the
        keys whose slot no shard has.
        """
        return places_by_owner(list(keys), self._owners)

    def groups_by_owner(self, keys: Sequence[bytes]) -> dict[int, list[list[int]]]:
        """Return the same, with the places of each slot together."""
        return groups_by_owner(list(keys), self._owners)

    def move(self, slot: int, announced: str) -> bool:
        """Note a MOVED; return whether the node is one of this view."""
        number = next(
            (at for at, shard in enumerate(self.shards) if shard.master == announced), NO_SHARD
        )
        if number == NO_SHARD:
            return False
        self._owners[slot] = number
        return True

    @property
    def masters(self) -> tuple[str, ...]:
        """Return the masters' addresses, in the order of their slots."""
        return tuple(shard.master for shard in self.shards)

    @property
    def uncovered(self) -> int:
        """Return how many slots no shard has."""
        return SLOTS - sum(shard.slot_count for shard in self.shards)

    @property
    def text(self) -> str:
        """Return the shards in words."""
        return ", ".join(f"{shard.text} {shard.master}" for shard in self.shards)


def view_of(reply: Sequence[Any], epoch: int, asked: str, place: Callable[[str, int], str]) -> View:
    """Read a reply to CLUSTER SLOTS.

    Args:
        reply: rows of first slot, last slot, master, replicas.
        epoch: the node's `cluster_current_epoch`.
        asked: host of the node that answered: what it calls itself where it names no host.
        place: makes one text of host and port.

    Raises:
        ValueError: the reply is none of CLUSTER SLOTS.
    """
    ranges: dict[tuple[str, str], list[tuple[int, int]]] = {}
    replicas: dict[tuple[str, str], dict[str, None]] = {}
    try:
        for first, last, master, *others in reply:
            who = (_announced(master, asked, place), _text(master[2]))
            ranges.setdefault(who, []).append((int(first), int(last)))
            replicas.setdefault(who, {}).update(
                dict.fromkeys(_announced(each, asked, place) for each in others)
            )
    except (TypeError, IndexError) as exc:
        raise ValueError(f"no answer to CLUSTER SLOTS: {exc}") from exc
    shards = [
        Shard(master, node_id, _joined(ranges[master, node_id]), tuple(replicas[master, node_id]))
        for master, node_id in ranges
    ]
    return View(tuple(sorted(shards, key=lambda shard: shard.ranges[0])), epoch, asked)


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and found[-1][1] + 1 == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return tuple(found)


def _announced(node: Sequence[Any], asked: str, place: Callable[[str, int], str]) -> str:
    host = _text(node[0] or b"")
    # An empty host, or ?, is one that the node does not know: the host that was asked.
    return place(asked if host in ("", "?") else host, int(node[1]))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


REDIRECTS = ("MOVED ", "ASK ")
LATER = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN")
# A script's words for a key that this node does not serve now: the slot is another node's, or it is
# on its way, or the cluster is down. docs/decisions/0022-cluster.md
_IN_SCRIPTS = ("non local key", "cluster is down", "hash to the same slot")


def is_redirect(said: str) -> bool:
    """Return whether an error says that another node serves the key, or none does now. Nothing was
    done then.
    """
    return said.startswith((*REDIRECTS, *LATER)) or any(word in said for word in _IN_SCRIPTS)


def redirected_to(said: str, asked: str) -> tuple[int, str] | None:
    """Return slot and host:port of a MOVED or ASK; None where the error is another one. An empty
    host is the one that was asked.
    """
    if not said.startswith(REDIRECTS):
        return None
    _, slot, where = said.split(" ")[:3]
    host, _, port = where.rpartition(":")
    if not host or host == "?":
        host = f"[{asked}]" if ":" in asked else asked
    elif ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return int(slot), f"{host}:{port}"
