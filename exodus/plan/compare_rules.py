"""Rules of a migration file by which Compare judges replies. No I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exodus.plan.bounds import COMPARE_EXPIRY_MS


class ReplyRule(StrEnum):
    """How two replies to one request are compared."""

    EXACT = "exact"  # byte for byte, over both protocol versions
    MULTISET = "multiset"  # the same elements, in any order
    MAP = "map"  # the same fields with the same values, in any order
    SCORED = "members with scores as numbers"  # in order; scores as numbers
    TIES = "ordered with ties"  # scores in order; members of one score in any order
    NUMERIC = "numeric tolerance"  # as numbers, with `relative` and `absolute`
    MEMBERS = "members with numbers"  # in order, members exactly; their numbers as above
    APPROXIMATE = "approximate"  # one number, within the share `relative`
    EXPIRY = "expiry tolerance"  # as expiries, `expiry_ms` apart at most
    DRAWN = "drawn by lot"  # as many elements, whichever they are
    ERROR_CODE = "error code"  # both succeed, or both fail with the same first word
    PYTHON = "python"  # as the function of an entry point says
    NEVER = "never"  # not compared


_TOLERANT = {ReplyRule.NUMERIC, ReplyRule.MEMBERS, ReplyRule.APPROXIMATE}


class CompareRule(BaseModel):
    """A rule for some commands, in place of Exodus's own. The first that fits counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commands: tuple[str, ...] = Field(min_length=1, description="names of commands")
    rule: ReplyRule = Field(description="how their replies are compared")
    pattern: str | None = Field(
        default=None, description="only keys of this pattern, as in KEYS; null: all"
    )
    relative: float = Field(default=0.0, ge=0, lt=1, description="share by which numbers differ")
    absolute: float = Field(default=0.0, ge=0, description="amount by which numbers differ")
    expiry_ms: int = Field(
        default=COMPARE_EXPIRY_MS, ge=0, description="milliseconds by which expiries differ"
    )
    function: str | None = Field(
        default=None, description="with rule: python: name in the entry points exodus.reply_rules"
    )

    @field_validator("commands")
    @classmethod
    def _upper(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.upper() for name in value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.relative or self.absolute) and self.rule not in _TOLERANT:
            raise ValueError(
                f"relative and absolute are tolerances of numbers; rule {self.rule} has none: "
                "leave them away, or set rule: numeric tolerance"
            )
        if self.rule is ReplyRule.APPROXIMATE and not self.relative:
            raise ValueError("rule: approximate needs relative, the share by which numbers differ")
        if "expiry_ms" in self.model_fields_set and self.rule is not ReplyRule.EXPIRY:
            raise ValueError("expiry_ms belongs to rule: expiry tolerance")
        if (self.function is None) == (self.rule is ReplyRule.PYTHON):
            raise ValueError("rule: python needs function, and no other rule has one")
        return self
