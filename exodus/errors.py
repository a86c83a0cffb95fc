"""Every error an operator can meet, split by whose move it is.

`OperatorError`: the input or the configuration is wrong (exit status 2). `SourceError`,
`TargetError`, `ControlStoreError`: a server did not do its part; `retryable` says whether trying
again can help. `DecisionRefused`: a precondition does not hold and nothing was changed. `Bug`: an
invariant of ours broke; the job stops, the relay never. Exceptions of libraries are translated
where they arise, `from exc`. Each `code` is a heading in docs/operating/errors.md.
"""

from __future__ import annotations

from typing import Any, ClassVar

from exodus.safe_text import masked


class ExodusError(Exception):
    """Something a person can act on: what happened, why, and what to do next."""

    code: ClassVar[str] = "exodus"
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, why: str, next_step: str) -> None:
        """Keep the three lines apart, so that the command line, the UI and a log can each show them
        their way. None shows a secret.
        """
        super().__init__(masked(what))
        self.what = masked(what)
        self.why = masked(why)
        self.next_step = masked(next_step)

    def __str__(self) -> str:
        return f"{self.what} [{self.code}]\n  why:  {self.why}\n  next: {self.next_step}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The default one calls the subclass with `args` alone, which fails in the *reading* process
        # and so hides the real error behind a process pool.
        return _revive, (type(self), self.args, vars(self))


def _revive(kind: type[ExodusError], args: tuple[Any, ...], facts: dict[str, Any]) -> ExodusError:
    error = kind.__new__(kind, *args)
    vars(error).update(facts)
    return error


class OperatorError(ExodusError):
    """The command, file or form says something that cannot be; nothing was changed."""

    code = "wrong-input"
    exit_status = 2


class SourceError(ExodusError):
    """The source did not do its part."""

    code = "source"
    retryable = True


class TargetError(ExodusError):
    """The target did not do its part."""

    code = "target"
    retryable = True


class ControlStoreError(ExodusError):
    """The control store did not do its part; applications are not affected."""

    code = "control-store"
    retryable = True


class NoRoom(ExodusError):
    """The follower takes no writes now: no memory, read-only, loading, no permission. What was
    under way is done again when it does.
    """

    code = "no-room"
    retryable = True


class OrchestratorError(ExodusError):
    """The Prefect server did not do its part; applications are not affected."""

    code = "prefect"
    retryable = True


class StackError(ExodusError):
    """A process of the local stack did not start or did not stay up."""

    code = "stack"


class DecisionRefused(ExodusError):
    """A precondition of a phase or step does not hold; nothing was changed."""

    code = "refused"


class EpochEnded(ExodusError):
    """The right to write to the follower ended with the route's epoch; the caller must stop at
    once.
    """

    code = "epoch-ended"


class LeaseEnded(EpochEnded):
    """The right to one partition ended with its lease, not that of the epoch; the caller begins
    anew.
    """

    code = "lease-ended"


class CutoverAborted(ExodusError):
    """A switch was given up before the authority changed; writes were released on the old side."""

    code = "cutover-aborted"


class SwitchUnknown(ExodusError):
    """The control store went away while the authority was being changed; the gateways settle it
    when it is back.
    """

    code = "switch-unknown"


class EvidenceFailed(ExodusError):
    """A gate over the phase's evidence failed; the phase cannot be put before a person as it is."""

    code = "evidence-failed"


class Bug(ExodusError):
    """An invariant of Exodus broke. The job stops; no relay does."""

    code = "bug"
    exit_status = 70
