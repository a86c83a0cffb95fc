"""Whether the history of one key, as its clients saw it, is linearizable.

The model. An operation has a call and, where it was answered, a return, in the order of one clock.
A history is linearizable if every answered operation can be given one moment between its call and
its return, such that the operations in the order of these moments do what a single register or
counter would:

    register   set(v): the value is v now        get → v: the value is v counter    incr → n: n is
    one more than before, and the value now        get → n: the value is n (None where it never was
    incremented)

An operation without an answer may have its moment at any time after its call, or never. A read
without an answer says nothing.

The check walks through calls and returns in order and keeps every state in which the key may be,
together with which of the open operations have had their moment. At a return the operation must
have had it, so whatever could not is dropped; no state left means no such order exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

State = bytes | None


@dataclass(frozen=True)
class Operation:
    """What one client did to the key."""

    kind: Literal["set", "get", "incr"]
    called: int
    returned: int | None  # None: no answer
    argument: bytes = b""
    result: bytes | None = None

    def after(self, state: State) -> tuple[bool, State]:
        """Return whether it can have its moment in `state`, and the state after it."""
        if self.kind == "set":
            return True, self.argument
        if self.kind == "get":
            return self.result == state, state
        value = b"%d" % (int(state or b"0") + 1)
        return self.returned is None or self.result == value, value


Configuration = tuple[State, frozenset[int]]


def _with_moment(
    configuration: Configuration, wanted: int, open_: dict[int, Operation]
) -> set[Configuration]:
    """Return all configurations that can follow, in which the operation `wanted` has had its
    moment.
    """
    found: set[Configuration] = set()
    seen: set[Configuration] = set()
    left = [configuration]
    while left:
        state, had = left.pop()
        if (state, had) in seen:
            continue
        seen.add((state, had))
        if wanted in had:
            found.add((state, had - {wanted}))
            continue
        for number, operation in open_.items():
            if number not in had:
                possible, after = operation.after(state)
                if possible:
                    left.append((after, had | {number}))
    return found


def first_violation(history: Iterable[Operation], initial: State = None) -> Operation | None:
    """Return the first answered operation that no order explains; None if the history is
    linearizable.
    """
    operations = [
        operation
        for operation in history
        if operation.returned is not None or operation.kind != "get"
    ]
    events = [(operation.called, 0, number) for number, operation in enumerate(operations)]
    events += [
        (operation.returned, 1, number)
        for number, operation in enumerate(operations)
        if operation.returned is not None
    ]
    open_: dict[int, Operation] = {}
    configurations: set[Configuration] = {(initial, frozenset())}
    for _, returns, number in sorted(events):
        if not returns:
            open_[number] = operations[number]
            continue
        configurations = {
            after for before in configurations for after in _with_moment(before, number, open_)
        }
        if not configurations:
            return operations[number]
        del open_[number]
    return None
