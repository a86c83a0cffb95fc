"""Every error that an operator can meet, split by who must act.

`OperatorError`: the input or the configuration is wrong (exit status 2). `SourceError`,
`TargetError`, `ControlStoreError`: a server failed; `retryable` says whether trying
again can help. `DecisionRefused`: a precondition does not hold and nothing was changed. `Bug`: an
invariant of Exodus broke; the job stops, no relay does. Library exceptions are translated where
they arise, `from exc`. Each `code` is a heading in docs/operating/errors.md.
"""

from __future__ import annotations

from typing import Any, ClassVar

from exodus.safe_text import masked


class ExodusError(Exception):
    """An error that a person can act on: what happened, why, and what to do next."""

    code: ClassVar[str] = "exodus"
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, why: str, next_step: str) -> None:
        """Keep the three lines apart, so that each surface can show them its own way.

        Secrets are masked.
        """
        super().__init__(masked(what))
        self.what = masked(what)
        self.why = masked(why)
        self.next_step = masked(next_step)

    def __str__(self) -> str:
        return (
            f"{_below(self.what)} [{self.code}]\n  why:  {_below(self.why)}\n"
            f"  next: {_below(self.next_step)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # The default one calls the subclass with `args` alone, which fails in the *reading* process
        # and so hides the real error behind a process pool.
        return _revive, (type(self), self.args, vars(self))


def _below(text: str) -> str:
    """Return a text whose further lines do not begin as one of Exodus's own: they are indented."""
    return text.replace("\n", "\n        ")


def _revive(kind: type[ExodusError], args: tuple[Any, ...], facts: dict[str, Any]) -> ExodusError:
    error = kind.__new__(kind, *args)
    vars(error).update(facts)
    return error


class OperatorError(ExodusError):
    """A command, file or form has an impossible value. Nothing was changed."""

    code = "wrong-input"
    exit_status = 2


class SourceError(ExodusError):
    """The source failed, refused something, or did not answer."""

    code = "source"
    retryable = True


class TargetError(ExodusError):
    """The target failed, refused something, or did not answer."""

    code = "target"
    retryable = True


class ControlStoreError(ExodusError):
    """The control store failed or did not answer. Applications are not affected."""

    code = "control-store"
    retryable = True


class NoRoom(ExodusError):
    """The follower rejects writes: out of memory, read-only, loading, or no permission.

    The interrupted work is repeated when it accepts writes again.
    """

    code = "no-room"
    retryable = True


class OrchestratorError(ExodusError):
    """The Prefect server failed or did not answer. Applications are not affected."""

    code = "prefect"
    retryable = True


class StackError(ExodusError):
    """A process of the local stack did not start, or ended."""

    code = "stack"


class DecisionRefused(ExodusError):
    """A precondition of a phase or step does not hold. Nothing was changed."""

    code = "refused"


class EpochEnded(ExodusError):
    """The write grant on the follower ended with the route's epoch. The caller stops at once."""

    code = "epoch-ended"


class LeaseEnded(EpochEnded):
    """The write grant for one partition ended with its lease. The caller starts again."""

    code = "lease-ended"


class CutoverAborted(ExodusError):
    """A switch was given up before the authority changed. Writes go on at the old side."""

    code = "cutover-aborted"


class SwitchUnknown(ExodusError):
    """The control store went away while the authority was being changed.

    The gateways settle the switch when it is back.
    """

    code = "switch-unknown"


class EvidenceFailed(ExodusError):
    """A gate over a phase's evidence failed. The phase cannot be decided as it is."""

    code = "evidence-failed"


class Bug(ExodusError):
    """An invariant of Exodus broke. The job stops; no relay does."""

    code = "bug"
    exit_status = 70
