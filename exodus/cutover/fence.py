"""The fence: after it, nobody but Exodus writes to a side; who tries gets an error and never a lost write.

It takes `@write` from every ACL user but our own, which bites on open connections, in scripts and in queued transactions (checked on
Redis 6.2 to 8.2 and Valkey 8.1, 9.1). What it took is kept in the control store as command rules, which hold no secret. A pop that
blocked before the fence is still served by Redis 6.2 and 7.0, so strays are killed before anything is written behind the fence.
ACLs that were not saved to disk end with a restart of the server, and the fence with them.
"""

from __future__ import annotations

from typing import Any, cast

import orjson
import redis.asyncio as redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from exodus.config import Address, Side
from exodus.control.store import ControlStore, answered, make_client
from exodus.errors import DecisionRefused, SourceError, TargetError

_PROBE = "exodus:{fence}:probe"


def side_error(side: Side) -> type[SourceError] | type[TargetError]:
    """The error of a side."""
    return SourceError if side is Side.SOURCE else TargetError


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _pairs(reply: Any) -> dict[str, Any]:
    if isinstance(reply, dict):
        return {_text(key): value for key, value in reply.items()}
    return {_text(reply[index]): reply[index + 1] for index in range(0, len(reply), 2)}


class Fence:
    """The fence of one side."""

    def __init__(self, store: ControlStore, side: Side, address: Address) -> None:
        self._store = store
        self._side = side
        self._address = address

    def _client(self) -> redis.Redis:
        client = make_client(self._address, field=self._side)
        client.response_callbacks.pop("ACL GETUSER", None)
        return client

    async def up(self) -> bool:
        """Whether a fence is recorded for this side."""
        return bool(await answered(self._store.client.exists(self._store.keys.fence(self._side))))

    async def check_possible(self) -> None:
        """Raise where this side could not be fenced.

        Raises:
            DecisionRefused: Exodus connects as the user of the applications, or may not change ACLs.
        """
        client = self._client()
        try:
            own = _text(await answered(client.execute_command("ACL", "WHOAMI")))
            users = await self._others(client, own)
        except RedisError as exc:
            raise DecisionRefused(
                f"the {self._side} cannot be fenced",
                why=f"{self._address.url}: {exc}",
                next_step=f"give {self._side} a user with the right to run ACL (see docs/operating/users.md)",
            ) from exc
        finally:
            await client.aclose()
        if own == "default" or not users:
            raise DecisionRefused(
                f"the {self._side} cannot be fenced",
                why="Exodus connects as 'default', which the applications may use too",
                next_step=f"create a user of its own for Exodus and name it in the URL of {self._side} (docs/operating/users.md)",
            )

    async def _others(self, client: redis.Redis, own: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for raw in await answered(client.execute_command("ACL", "USERS")):
            user = _text(raw)
            if user == own:
                continue
            facts = _pairs(await answered(client.execute_command("ACL", "GETUSER", user)))
            selectors = [
                " ".join(_text(value) for value in _pairs(selector).values() if _text(value))
                for selector in cast("list[Any]", facts.get("selectors") or [])
            ]
            found[user] = {"commands": _text(facts["commands"]), "selectors": selectors}
        return found

    async def raise_(self) -> dict[str, str]:
        """Take the right to write from every user but our own; returns user → how it was proved.

        Idempotent: what users could do before is recorded once, by the first call.
        """
        client = self._client()
        try:
            own = _text(await answered(client.execute_command("ACL", "WHOAMI")))
            users = await self._others(client, own)
            await answered(self._store.client.set(self._store.keys.fence(self._side), orjson.dumps(users), nx=True))
            for user, rules in users.items():
                more = ["clearselectors"] if rules["selectors"] else []
                await answered(client.execute_command("ACL", "SETUSER", user, "-@write", *more))
            return {user: await self._prove(client, user) for user in users}
        except RedisError as exc:
            raise side_error(self._side)(
                f"the {self._side} could not be fenced", why=str(exc), next_step="nothing was switched; correct it and retry"
            ) from exc
        finally:
            await client.aclose()

    async def _prove(self, client: redis.Redis, user: str) -> str:
        """Show that a user's write is refused, by the strongest means this server has."""
        if user == "default":
            probe = make_client(
                Address(host=self._address.host, port=self._address.port, tls=self._address.tls, ca_file=self._address.ca_file),
                field=self._side,
            )
            try:
                await answered(probe.set(_PROBE, "1", px=1))
            except NoPermissionError:
                return "a write of its was refused"
            except RedisError:
                pass  # it has a password that we do not know: the next proof is for it
            else:
                raise side_error(self._side)(
                    f"the fence on the {self._side} does not hold",
                    why="the user 'default' could still write",
                    next_step="nothing was switched; look at ACL LIST there",
                )
            finally:
                await probe.aclose()
        try:
            said = _text(await answered(client.execute_command("ACL", "DRYRUN", user, "SET", _PROBE, "1")))
            if "no permissions" not in said and "NOPERM" not in said:
                raise side_error(self._side)(
                    f"the fence on the {self._side} does not hold", why=f"{user}: {said}", next_step="look at ACL LIST there"
                )
            return "a dry run of a write was refused"
        except ResponseError:
            rules = _pairs(await answered(client.execute_command("ACL", "GETUSER", user)))
            if "-@write" not in _text(rules["commands"]).split() and "-@all" not in _text(rules["commands"]).split()[:1]:
                raise side_error(self._side)(
                    f"the fence on the {self._side} does not hold",
                    why=f"the rules of {user} still allow writes",
                    next_step="look at ACL LIST there",
                ) from None
            return "its rules were read back"

    async def kill_strays(self) -> int:
        """End every connection of fenced users on this side: a pop that blocked before the fence could still be served."""
        raw = await answered(self._store.client.get(self._store.keys.fence(self._side)))
        client = self._client()
        try:
            killed = 0
            for user in orjson.loads(raw) if raw else {}:
                killed += int(await answered(client.execute_command("CLIENT", "KILL", "USER", user)))
            return killed
        finally:
            await client.aclose()

    async def lower(self) -> bool:
        """Give back what was taken; False where there was no fence."""
        raw = await answered(self._store.client.get(self._store.keys.fence(self._side)))
        if raw is None:
            return False
        client = self._client()
        try:
            for user, rules in orjson.loads(raw).items():
                selectors = [f"({selector})" for selector in rules["selectors"]]
                await answered(client.execute_command("ACL", "SETUSER", user, "nocommands", *rules["commands"].split(), *selectors))
        except RedisError as exc:
            raise side_error(self._side)(
                f"the fence on the {self._side} could not be lifted",
                why=str(exc),
                next_step=f"give the users their rights back by hand: they stand in {self._store.keys.fence(self._side)}",
            ) from exc
        finally:
            await client.aclose()
        await answered(self._store.client.delete(self._store.keys.fence(self._side)))
        return True
