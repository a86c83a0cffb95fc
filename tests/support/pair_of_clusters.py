"""Two clusters that tests share: what a test changes, it puts back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from exodus.plan.address import Credentials, Place
from exodus.plan.settings import RoleUser, Users
from exodus.plan.vocabulary import Side, UserRole
from exodus.stack.servers import USER, ServerKind
from exodus.topology.rights import UsedFeatures, rule_of, server_of
from tests.support.clusters import ClusterBox
from tests.support.roles import ADMINISTRATOR, administrator, take_over
from tests.support.servers import DatabaseServer


class Pair(NamedTuple):
    """Source and target."""

    source: ClusterBox
    target: ClusterBox

    def empty(self) -> None:
        """Remove all keys."""
        for node in (*self.source.masters(), *self.target.masters()):
            with node.client() as client:
                client.flushall()


@contextmanager
def pair_of_clusters(folder: Path) -> Iterator[Pair]:
    """Three masters of Valkey 8.1, and two of Valkey 9.1 with a replica each."""
    source = ClusterBox(ServerKind.VALKEY_81, folder / "source", masters=3)
    try:
        target = ClusterBox(ServerKind.VALKEY_91, folder / "target", masters=2, replicas=1)
    except BaseException:
        source.close()
        raise
    try:
        yield Pair(source, target)
    finally:
        source.close()
        target.close()


@contextmanager
def setting(node: DatabaseServer, name: str, value: str) -> Iterator[None]:
    """Give one node another setting meanwhile."""
    with node.client(decode_responses=True) as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, before)


@contextmanager
def role_users(pair: Pair, folder: Path) -> Iterator[tuple[dict[str, Place], Users]]:
    """Users with exactly the rights that `exodus users --cluster` prints, on every node, in place
    of the one that may do everything. Yields the plan's sides, and its users.
    """
    made: dict[UserRole, dict[str, Credentials]] = {role: {} for role in UserRole}
    sides: dict[str, Place] = {}
    for side, box in zip(Side, pair, strict=True):
        passwords = {role: secrets.token_hex(8) for role in UserRole}
        rules = {
            role: rule_of([role], side, *server_of(str(box.kind)), UsedFeatures(cluster=True))
            for role in UserRole
        }
        for role, password in passwords.items():
            file = folder / f"{side}-{role}"
            file.write_text(password)
            made[role][str(side)] = Credentials(username=f"exodus-{role}", password_file=file)
        sides[str(side)] = made[UserRole.SYNCER][str(side)].at(box.address())
        for node in box.nodes:
            take_over(node)
            with administrator(node) as client:
                for role, password in passwords.items():
                    words = ("reset", "on", f">{password}", *rules[role].split())
                    client.execute_command("ACL", "SETUSER", f"exodus-{role}", *words)
                client.execute_command("ACL", "LOG", "RESET")
    more = {str(role): RoleUser(**given) for role, given in made.items()}
    del more[str(UserRole.SYNCER)]
    try:
        yield sides, Users(**more)
    finally:
        for box in pair:
            password = box.address().secret("test")
            for node in box.nodes:
                with administrator(node) as client:
                    rights = ("on", f">{password}", "~*", "&*", "+@all")
                    client.execute_command("ACL", "SETUSER", USER, *rights)
                    for role in UserRole:
                        client.execute_command("ACL", "DELUSER", f"exodus-{role}")
                with node.client() as client:
                    client.execute_command("ACL", "DELUSER", ADMINISTRATOR)


@pytest.fixture(scope="session")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair_of_clusters(tmp_path_factory.mktemp("pair")) as found:
        yield found


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """Return the two clusters, without keys."""
    _pair.empty()
    return _pair
