"""By what a side can be made to refuse writes, strongest first, and what each leaves open.

| method         | needs                         | refuses writes of    | does not stop           |
| -------------- | ----------------------------- | -------------------- | ----------------------- |
| `acl`          | ACL, a user of Exodus's own   | everybody but Exodus | blocked pops (6.2, 7.0) |
| `min-replicas` | CONFIG SET, a server from 7.0 | everybody            |                         |
| `replica`      | REPLICAOF, no replicas, feed  | everybody            | who may run REPLICAOF   |
|                | `gateway`                     |                      |                         |
| `provider`     | a person                      | nobody by itself     | what the person forgot  |

`min-replicas` is not offered on 6.2, where scripts write all the same.

Expiry and eviction go on under each. The second and the third refuse Exodus's own writes too:
changes cannot flow back while they are up, the journal keeps their keys, and a switch back lets
Exodus in before it begins. Checked on Redis 6.2 and 8.2, Valkey 8.1 and 9.1.

Commands of `up` and `down` run in one transaction under the fence's guard (`fence.py`), and may
come again when they were done already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar, cast

from exodus.commands.slots import is_redirect
from exodus.errors import OperatorError
from exodus.net.info import info_of, is_sentinel
from exodus.net.leg import Leg, ReplyError
from exodus.plan.address import Address
from exodus.plan.own_keys import RESERVED_PREFIX
from exodus.plan.plan import Plan
from exodus.plan.vocabulary import Feed, FenceKind, Side

Command = tuple[Any, ...]
Call = Callable[..., Awaitable[list[Any]]]  # commands → replies, errors as values
Kept = dict[str, Any]  # what must be known to undo a fence; no secret is in it

PROBE = RESERVED_PREFIX + b"fence}:probe"
_SCRIPT = "return redis.call('SET', KEYS[1], '1', 'PX', 1)"
_NEVER_MET = 1_000_000  # replicas
# Where no server listens: a replica of it keeps what it has and takes no writes
_NOBODY = (
    "127.0.0.1",
    1,
)
_KEPT_WORDS = ("allkeys", "allchannels", "allcommands", "nocommands", "resetkeys", "resetchannels")
_OURS = "exodus"  # how the names of our connections begin


class DoesNotHold(Exception):
    """A fence that is up lets writes pass, or reads not."""


def _write(probe: bytes) -> Command:
    return ("SET", probe, "1", "PX", 1)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _pairs(reply: Any) -> dict[str, Any]:
    return {_text(reply[index]): reply[index + 1] for index in range(0, len(reply), 2)}


def _sure(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise reply
    return replies


async def _info(call: Call) -> dict[str, str]:
    return info_of(_sure(await call(("INFO",)))[0])


class FenceMethod(ABC):
    """One way to fence a side. `call` raises no error replies; what does, raises
    `hiredis.ReplyError`.
    """

    kind: ClassVar[FenceKind]

    @abstractmethod
    async def why_not(self, call: Call) -> str | None:
        """Return why it cannot be used here; None: it can. Changes nothing."""

    async def look(self, call: Call) -> Kept:
        """Return what `down` needs to restore."""
        del call
        return {}

    def recheck(self) -> list[Command]:
        """Return the requests to repeat just before the fence is raised."""
        return []

    def stale(self, replies: list[Any], kept: Kept) -> str | None:
        """Return why the first look does not suffice any more; None where it does."""
        del replies, kept
        return None

    def up(self, kept: Kept) -> list[Command]:
        """Put it up."""
        del kept
        return []

    def down(self, kept: Kept) -> list[Command]:
        """Everything as it was."""
        del kept
        return []

    @abstractmethod
    async def prove(
        self, call: Call, stranger: Leg | None, kept: Kept, probe: bytes = PROBE
    ) -> dict[str, str]:
        """Show that writes are refused; who → how it was shown.

        Args:
            call: asks the server as Exodus.
            stranger: an application that needs no password.
            kept: what `look` found.
            probe: the key to write; on a cluster one that this node has.

        Raises:
            DoesNotHold: they are not.
        """

    async def prove_on_replica(self, call: Call, kept: Kept) -> None:
        """Show that the fence will stand if this replica becomes the master.

        Raises:
            DoesNotHold: it would not.
        """
        await self.prove(call, None, kept)

    async def kill_strays(self, call: Call, kept: Kept) -> int:
        """End connections that are not named like ours, so that they look for the new side. How
        many; 0 where the server does not let us.
        """
        del kept
        listed = (await call(("CLIENT", "LIST", "TYPE", "NORMAL")))[0]
        if isinstance(listed, ReplyError):
            return 0  # they stay, and cannot write
        clients = [
            dict(pair.partition("=")[::2] for pair in line.split())
            for line in _text(listed).splitlines()
        ]
        others = [
            facts["id"]
            for facts in clients
            if not facts.get("name", "").startswith(_OURS)
            and not is_sentinel(facts.get("name", ""))
        ]
        return sum(
            reply == 1
            for reply in await call(*[("CLIENT", "KILL", "ID", number) for number in others])
        )


class AclFence(FenceMethod):
    """Takes `@write` from every user but our own, on open connections, in scripts and in queued
    transactions. `kept`: user → rules before.
    """

    kind = FenceKind.ACL

    def __init__(self, ours: Iterable[str] = (), *, watched: bool = False) -> None:
        """`ours` are the names of further users of Exodus's own; `watched`: by Sentinels, or by the
        other nodes of a cluster, which may be connected as a fenced user.
        """
        self._ours = frozenset(ours)
        self._watched = watched

    async def why_not(self, call: Call) -> str | None:
        """Exodus needs the right to change ACLs, and a user that is not the applications'."""
        own, users = _sure(await call(("ACL", "WHOAMI"), ("ACL", "USERS")))
        if own == b"default" or len(users) < 2:
            return f"Exodus connects as {_text(own)!r}, which the applications may use too"
        # No rule: that changes nothing, and shows whether it may
        _sure(await call(("ACL", "SETUSER", own)))
        return None

    async def look(self, call: Call) -> Kept:
        """Rules and selectors of every other user."""
        own, users = _sure(await call(("ACL", "WHOAMI"), ("ACL", "USERS")))
        names = [name for user in users if (name := _text(user)) not in {_text(own), *self._ours}]
        found: Kept = {}
        for name, reply in zip(
            names, _sure(await call(*[("ACL", "GETUSER", name) for name in names])), strict=True
        ):
            facts = _pairs(reply)
            selectors = [
                " ".join(_text(value) for value in _pairs(selector).values() if _text(value))
                for selector in cast("list[Any]", facts.get("selectors") or [])
            ]
            found[name] = {"commands": _text(facts["commands"]), "selectors": selectors}
        return found

    def recheck(self) -> list[Command]:
        """List the users again."""
        return [("ACL", "USERS"), ("ACL", "WHOAMI")]

    def stale(self, replies: list[Any], kept: Kept) -> str | None:
        """Return a user that appeared since the first look."""
        names, own = replies
        strangers = {_text(name) for name in names} - {_text(own)} - self._ours - set(kept)
        return (
            f"user(s) that appeared meanwhile: {', '.join(sorted(strangers))}"
            if strangers
            else None
        )

    def up(self, kept: Kept) -> list[Command]:
        """No writes; selectors could give them back one by one, so they go."""
        return [
            ("ACL", "SETUSER", user, "-@write", *(["clearselectors"] if rules["selectors"] else []))
            for user, rules in kept.items()
        ]

    def down(self, kept: Kept) -> list[Command]:
        """Return the rules as they were, in their order.

        Raises:
            OperatorError: what is kept is no such rules: somebody else wrote to the control store.
        """
        for user, rules in kept.items():
            words = [(word, "+-") for word in rules["commands"].split()]
            words += [
                (word, "+-~%&") for selector in rules["selectors"] for word in selector.split()
            ]
            for word, signs in words:
                if word[0] not in signs and word not in _KEPT_WORDS:
                    raise OperatorError(
                        f"the rules of {user!r} cannot be given back",
                        why=f"the control store keeps {word[:40]!r} for it, which is no right to "
                        "a command: somebody else wrote there",
                        next_step=f"give {user!r} its rules back by hand (ACL SETUSER), and find "
                        "out who writes to the control store",
                    )
        return [
            (
                "ACL",
                "SETUSER",
                user,
                "nocommands",
                *rules["commands"].split(),
                *(f"({selector})" for selector in rules["selectors"]),
            )
            for user, rules in kept.items()
        ]

    async def prove(
        self, call: Call, stranger: Leg | None, kept: Kept, probe: bytes = PROBE
    ) -> dict[str, str]:
        """Prove the fence by the strongest check of this server: a write as `default`, a dry run,
        or the rules read back.
        """
        asked = [
            command
            for user in kept
            for command in (("ACL", "DRYRUN", user, *_write(probe)), ("ACL", "GETUSER", user))
        ]
        replies = await call(*asked)
        said = _text((await stranger.pipeline([_write(probe)]))[0]) if stranger is not None else ""
        if said == "OK" or is_redirect(said):  # a node looks at rights before it redirects
            raise DoesNotHold("the user 'default' could still write")
        proofs: dict[str, str] = {}
        for user, dry, facts in zip(kept, replies[::2], replies[1::2], strict=True):
            if user == "default" and said.startswith("NOPERM"):
                proofs[user] = "a write of its was refused"
            elif not isinstance(dry, ReplyError):
                if b"no permissions" not in dry and b"NOPERM" not in dry:
                    raise DoesNotHold(f"{user}: {_text(dry)}")
                proofs[user] = "a dry run of a write was refused"
            else:  # Redis 6.2 has no dry run
                rules = _text(_pairs(facts)["commands"]).split()
                if "-@write" not in rules and rules[:1] != ["-@all"]:
                    raise DoesNotHold(f"the rules of {user} still allow writes")
                proofs[user] = "its rules were read back"
        return proofs

    async def kill_strays(self, call: Call, kept: Kept) -> int:
        """Return every connection of fenced users: a pop that blocked before the fence could still
        be served.
        """
        if self._watched:
            return await self._kill_others(call, kept)
        return sum(_sure(await call(*[("CLIENT", "KILL", "USER", user) for user in kept])))

    async def _kill_others(self, call: Call, kept: Kept) -> int:
        """Do the same without Sentinels and replicas: a Sentinel that cannot reach a replica does
        not promote it.
        """
        listed = _text(_sure(await call(("CLIENT", "LIST")))[0])
        clients = [
            dict(pair.partition("=")[::2] for pair in line.split()) for line in listed.splitlines()
        ]
        ids = [
            facts["id"]
            for facts in clients
            if facts.get("user") in kept
            and "S" not in facts.get("flags", "")
            and not is_sentinel(facts.get("name", ""))
        ]
        return sum(
            reply == 1 for reply in await call(*[("CLIENT", "KILL", "ID", each) for each in ids])
        )


class _SideWideFence(FenceMethod):
    """Refuses everybody's writes, Exodus's too, so that our own stands for them all."""

    code: ClassVar[str]  # of the error that a write then gets

    async def prove(
        self, call: Call, stranger: Leg | None, kept: Kept, probe: bytes = PROBE
    ) -> dict[str, str]:
        """Prove that a write and a script's write are refused, and a read is not."""
        del stranger, kept
        script_write = ("EVAL", _SCRIPT, 1, probe)
        write, script, read = await call(_write(probe), script_write, ("GET", probe))
        if not _text(write).startswith(self.code):
            raise DoesNotHold(f"a write was answered with {_text(write)!r}, not with {self.code}")
        if not isinstance(script, ReplyError):
            raise DoesNotHold("a script could still write")
        if isinstance(read, ReplyError):
            raise DoesNotHold(f"reads are refused too: {_text(read)}")
        return {"everybody": "a write and a script's write of Exodus's own were refused"}


class MinReplicasFence(_SideWideFence):
    """Asks for more replicas than there ever are. `kept`: the two settings before."""

    kind = FenceKind.MIN_REPLICAS
    code = "NOREPLICAS"

    _WANTED, _LAG = "min-replicas-to-write", "min-replicas-max-lag"

    async def why_not(self, call: Call) -> str | None:
        """Needs CONFIG SET, and a server whose scripts obey it."""
        version = (await _info(call))["redis_version"]
        if int(version.split(".")[0]) < 7:
            return f"on {version} scripts write all the same"
        kept = await self.look(call)
        # What it is: changes nothing, and shows whether it may
        _sure(await call(("CONFIG", "SET", self._WANTED, kept[self._WANTED])))
        return None

    async def look(self, call: Call) -> Kept:
        """Both settings."""
        names = (self._WANTED, self._LAG)
        return {
            name: _text(reply[1])
            for name, reply in zip(
                names, _sure(await call(*[("CONFIG", "GET", name) for name in names])), strict=True
            )
        }

    async def prove_on_replica(self, call: Call, kept: Kept) -> None:
        """Read the setting back: every write is refused there anyway."""
        del kept
        (found,) = _sure(await call(("CONFIG", "GET", self._WANTED)))
        if _text(found[1]) != str(_NEVER_MET):
            raise DoesNotHold(f"{self._WANTED} is {_text(found[1])}")

    def up(self, kept: Kept) -> list[Command]:
        """Require replicas that never exist. A lag of 0 would switch the check off."""
        lag = kept[self._LAG]
        return [
            ("CONFIG", "SET", self._LAG, "10" if lag == "0" else lag),
            ("CONFIG", "SET", self._WANTED, _NEVER_MET),
        ]

    def down(self, kept: Kept) -> list[Command]:
        """Return the settings from before the fence. Others that the store names are ignored."""
        return [("CONFIG", "SET", name, int(kept[name])) for name in (self._WANTED, self._LAG)]


class ReplicaFence(_SideWideFence):
    """Makes the server a replica of nobody, which keeps what it has."""

    kind = FenceKind.REPLICA
    code = "READONLY"
    _NEEDED: ClassVar = {"replica-read-only": "yes", "replica-serve-stale-data": "yes"}

    def __init__(self, feed: Feed) -> None:
        """`feed` is the one in force."""
        self._feed = feed

    async def why_not(self, call: Call) -> str | None:
        """Needs REPLICAOF, a master without replicas, and reads that go on."""
        if self._feed is not Feed.GATEWAY:
            return f"the change feed ({self._feed}) reads what this side tells as a master"
        facts = await _info(call)
        if facts.get("role") != "master" or facts.get("cluster_enabled") == "1":
            return (
                "the server is a "
                f"{facts.get('role')}"
                f"{' of a cluster' if facts.get('cluster_enabled') == '1' else ''}"
            )
        if facts.get("connected_slaves", "0") != "0":
            return f"it has {facts['connected_slaves']} replica(s), which would begin anew"
        command, *found = _sure(
            await call(
                ("COMMAND", "INFO", "REPLICAOF"),
                *[("CONFIG", "GET", name) for name in self._NEEDED],
            )
        )
        if not command or command[0] is None:
            return "the server has no command REPLICAOF"
        wrong = [
            f"{name} is not {wanted}"
            for (name, wanted), reply in zip(self._NEEDED.items(), found, strict=True)
            if _text(reply[1]) != wanted
        ]
        return "; ".join(wrong) or None

    def up(self, kept: Kept) -> list[Command]:
        """Make the server a replica of nobody."""
        del kept
        return [("REPLICAOF", *_NOBODY)]

    def down(self, kept: Kept) -> list[Command]:
        """Make the server a master again."""
        del kept
        return [("REPLICAOF", "NO", "ONE")]


class ProviderFence(FenceMethod):
    """A person lets nobody but the gateways and Exodus reach the server, and says so. `kept`: who,
    when, and what.

    No server refuses anything, so gateways must not end a hold by themselves while they cannot read
    the route (`Route.hold_until_told`).
    """

    kind = FenceKind.PROVIDER

    def __init__(self, confirmed: Kept | None) -> None:
        """`confirmed` is None where nobody has said it yet."""
        self._confirmed = confirmed

    async def why_not(self, call: Call) -> str | None:
        """Somebody must have said it."""
        del call
        return (
            None
            if self._confirmed is not None
            else "nobody has confirmed what the plan asks a person to do"
        )

    async def look(self, call: Call) -> Kept:
        """Their word."""
        del call
        return dict(self._confirmed or {})

    async def prove(
        self, call: Call, stranger: Leg | None, kept: Kept, probe: bytes = PROBE
    ) -> dict[str, str]:
        """Their word."""
        del call, stranger, probe
        return {"everybody": f"{kept['by']} confirmed: {kept['instruction']}"}


# Kinds of which Exodus cannot write either
KEEP_US_OUT = frozenset(str(method.kind) for method in (MinReplicasFence, ReplicaFence))


def fence_method_of(
    kind: FenceKind,
    feed: Feed,
    confirmed: Kept | None,
    ours: Iterable[str] = (),
    *,
    watched: bool = False,
) -> FenceMethod:
    """Return the means of a kind that was chosen, where `feed` is in force; `ours` are users that
    no fence touches.
    """
    if kind is FenceKind.ACL:
        return AclFence(ours, watched=watched)
    if kind is FenceKind.MIN_REPLICAS:
        return MinReplicasFence()
    if kind is FenceKind.REPLICA:
        return ReplicaFence(feed)
    return ProviderFence(confirmed)


async def choose_fence_method(
    call: Call, plan: Plan, side: Side, feed: Feed, confirmed: Kept | None
) -> tuple[FenceMethod | None, list[str]]:
    """Return the strongest that this side allows, or the one that the plan names; and why each that
    was tried before cannot be.

    Raises:
        SourceError, TargetError: the side does not answer.
    """
    wanted = plan.fence.of(side)
    # A person's word is never taken unasked.
    kinds: list[FenceKind] = (
        [FenceKind.ACL, FenceKind.MIN_REPLICAS, FenceKind.REPLICA]
        if wanted is FenceKind.AUTO
        else [wanted]
    )
    watched = not isinstance(plan.address(side), Address)
    if watched:  # Sentinel would make it a master again, and a cluster has no REPLICAOF
        kinds = [kind for kind in kinds if kind is not FenceKind.REPLICA]
    reasons: list[str] = []
    for kind in kinds:
        method = fence_method_of(kind, feed, confirmed, plan.own_users(side), watched=watched)
        try:
            why = await method.why_not(call)
        except ReplyError as exc:
            why = str(exc)
        if why is None:
            return method, reasons
        reasons.append(f"{kind}: {why}")
    return None, reasons
