"""Causes: why a confirmed divergence came about, from what was found of its key. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from exodus.plan.compare_rules import CompareRule, ReplyRule
from exodus.shadow.rules import Rules, error_code


class Cause(StrEnum):
    """The causes that Compare tells apart."""

    EXPIRED = "expired in flight"
    EVICTED = "evicted on the follower"
    EVICTED_AUTHORITY = "evicted on the authority"
    NON_DETERMINISTIC = "non-deterministic command"
    PAST_GATEWAY = "wrote past the gateway"
    UNDECLARED = "undeclared script keys"
    RESURRECTED = "resurrected delete"
    STALE = "stale restore"
    FOLLOWER_WRITTEN = "written on the follower"
    VERSION = "encoding or version"
    PRECISION = "precision"
    PERMISSION = "permission"
    CONFIGURATION = "configuration"
    UNKNOWN = "unknown"


COPY = "exodus repair copies the key again"
REMEDIES = {
    Cause.EXPIRED: COPY,
    Cause.EVICTED: "raise maxmemory of the target, then: " + COPY,
    Cause.EVICTED_AUTHORITY: COPY + "; the source evicts keys, which no journal tells",
    Cause.NON_DETERMINISTIC: "accept it, or set rule: never for the command in compare_rules",
    Cause.PAST_GATEWAY: "connect every writer to the gateway, or choose a feed that sees all "
    "writes; " + COPY,
    Cause.UNDECLARED: "choose a feed that sees what scripts write (docs/operating/feeds.md); "
    + COPY,
    Cause.RESURRECTED: COPY + ", which removes it",
    Cause.STALE: COPY,
    Cause.FOLLOWER_WRITTEN: "find who writes to the target, and stop it; " + COPY,
    Cause.VERSION: "see that the target has the command and the format, or accept it",
    Cause.PRECISION: COPY + "; accept it if the application tolerates it",
    Cause.PERMISSION: "grant the application's user the right on the target",
    Cause.CONFIGURATION: "carry the script or function to the target: exodus carry",
    Cause.UNKNOWN: COPY,
}
# What copying the key again cannot heal: a person changes the target, or accepts the row.
NOT_BY_COPYING = frozenset(
    {Cause.NON_DETERMINISTIC, Cause.VERSION, Cause.PERMISSION, Cause.CONFIGURATION}
)
_NEAR = CompareRule(commands=("(NEAR)",), rule=ReplyRule.NUMERIC, relative=1e-9)
_NEAR_RULES = Rules([_NEAR])
# Of a request that the authority took, none of these depends on the key's state.
_NO_SUCH_COMMAND = (
    "unknown command",
    "unknown subcommand",
    "wrong number of arguments",
    "syntax error",
)
_NOT_LOADED = ("NOSCRIPT", "Function not found")


@dataclass(frozen=True)
class KeyEvidence:
    """What was found of one key whose states differ. None: it could not be told."""

    kind: str  # as `Divergence.kind`: missing, extra, type, value, expiry, group
    authority_moved: bool | None = None  # since it was copied, although no journal names it
    follower_moved: bool | None = None
    follower_as_before: bool = False  # it is what an earlier copy made, before the last one
    copied_absent: bool = False  # the last copy removed it
    expired: bool = False  # the expiry that was copied is over
    evicted_follower: bool = False  # the follower evicted keys since the sampling began
    evicted_authority: bool = False
    scripts_ran: bool = False  # scripts that may write ran since then


def cause_of_refusal(said: str) -> Cause:
    """Return the cause of an error that only the follower answered."""
    code = said.split(" ", 1)[0]
    if code in ("NOPERM", "NOAUTH", "WRONGPASS") or "ACL failure in script" in said:
        return Cause.PERMISSION
    if any(text in said for text in _NOT_LOADED):
        return Cause.CONFIGURATION
    if any(text in said for text in _NO_SUCH_COMMAND):
        return Cause.VERSION
    return Cause.CONFIGURATION if "DB index" in said else Cause.UNKNOWN


def cause_of_setup(check: str) -> Cause:
    """Return the cause that a check of Test stands for, which does not hold of the target."""
    if "module" in check:
        return Cause.VERSION
    return Cause.PERMISSION if check.startswith("login of user ") else Cause.CONFIGURATION


def near(here: object, there: object) -> bool:
    """Return whether two replies differ only in the last digits of numbers."""
    if error_code(here) is not None or error_code(there) is not None:
        return False
    return _NEAR_RULES.equivalent(b"(NEAR)", here, there)


def cause_of_state(found: KeyEvidence) -> Cause:
    """Return the cause of a key's difference."""
    if found.kind == "missing":
        return _of_missing(found)
    if found.kind == "extra":
        return _of_extra(found)
    if found.authority_moved:
        return _of_unseen_write(found)
    if found.follower_moved:
        return Cause.STALE if found.follower_as_before else Cause.FOLLOWER_WRITTEN
    if found.kind == "expiry":
        # No checksum has the expiry: the authority's is as it was copied.
        return Cause.FOLLOWER_WRITTEN if found.authority_moved is False else Cause.UNKNOWN
    return Cause.VERSION if found.follower_moved is False else Cause.UNKNOWN


def _of_missing(found: KeyEvidence) -> Cause:
    if found.authority_moved:
        return _of_unseen_write(found)
    if found.expired:
        return Cause.EXPIRED
    if found.evicted_follower:
        return Cause.EVICTED
    return Cause.FOLLOWER_WRITTEN if found.follower_moved else Cause.UNKNOWN


def _of_extra(found: KeyEvidence) -> Cause:
    if found.copied_absent:
        return Cause.RESURRECTED
    if found.expired:
        return Cause.EXPIRED
    if found.evicted_authority:
        return Cause.EVICTED_AUTHORITY
    return _of_unseen_write(found) if found.authority_moved else Cause.UNKNOWN


def _of_unseen_write(found: KeyEvidence) -> Cause:
    return Cause.UNDECLARED if found.scripts_ran else Cause.PAST_GATEWAY
