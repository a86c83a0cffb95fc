"""The address of one server, of a service behind Sentinel, or of a cluster, its TLS settings, and
where its password is.

A password is a `SecretStr` that no dump contains. The plan names an environment variable or a file
in its place, and whoever connects reads it there.

`Address` is one server. `Service` is a master with its replicas: Sentinels say which server is the
master now (`exodus/net/masters.py`). `Cluster` has several masters, each with slots of its own: its
nodes say who has which (`exodus/net/clusters.py`). `Place` is any of these.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from exodus.errors import Bug, OperatorError
from exodus.safe_text import remember

_OTHER_SCHEMES = (
    "http",
    "https",
    "tcp",
    "tls",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
    "valkey",
    "valkeys",
)
# What follows the + of a scheme → what to write in its place.
_IN_PLACE = {
    "sentinel": "name {field}.sentinels and {field}.service in place of {field}.url",
    "cluster": "name {field}.cluster, a list of host:port, in place of {field}.url",
}
_SPLITS = re.compile(r"[/?#@\s]")
_DATABASE = re.compile(r"/[0-9]{1,3}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")
P = TypeVar("P", bound="ServerLogin")


class Tls(BaseModel):
    """How a connection of Exodus uses TLS."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tls: bool = Field(default=False, description="use TLS")
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authority that signed the server's certificate"
    )
    cert_file: Path | None = Field(
        default=None, description="PEM file of the client certificate, if the server asks for one"
    )
    key_file: Path | None = Field(
        default=None, description="PEM file of the client certificate's key"
    )
    server_name: str | None = Field(
        default=None, description="name in the server's certificate; null: the host"
    )


class ServerLogin(Tls):
    """The login of a server. `password` is never dumped."""

    username: str | None = Field(default=None, description="ACL user; null: the user default")
    password: SecretStr | None = Field(default=None, exclude=True)
    password_env: str | None = Field(
        default=None, description="environment variable that holds the password"
    )
    password_file: Path | None = Field(
        default=None, description="file whose first line is the password"
    )

    def secret(self, field: str) -> str | None:
        """Return the password from the place that the address names.

        Raises:
            OperatorError: the named variable is not set, or the file cannot be read.
        """
        if self.password is not None:
            return remember(self.password.get_secret_value())
        return read_secret(field, self.password_env, self.password_file)


class Address(ServerLogin):
    """The address and login of one server."""

    host: str = Field(min_length=1, description="host name or IP address")
    port: int = Field(ge=1, le=65535, description="TCP port; 6379 if the URL names none")

    @classmethod
    def parse(cls, url: str, *, field: str, **more: object) -> Self:
        """Read `redis://user:password@host:port` or `rediss://…` (TLS).

        Raises:
            OperatorError: the scheme is unknown, the host or port is missing, or a path names a
                database.
        """
        # No message shows a part of the URL: where it is malformed, any part may be one of the
        # password.
        scheme, _, rest = url.partition("://")
        if scheme.lower() not in ("redis", "rediss"):
            raise OperatorError(
                f"{field}: the scheme of the URL is "
                f"{scheme if scheme in _OTHER_SCHEMES else 'not known'}",
                why="Exodus speaks the Redis protocol: redis:// (plain) or rediss:// (TLS)",
                next_step=_IN_PLACE.get(
                    scheme.lower().partition("+")[2], "write {field} as redis://user@host:port"
                ).format(field=field),
            )
        if _SPLITS.search(rest.rpartition("@")[0]):
            raise OperatorError(
                f"{field}: what stands before the @ of the URL holds one of / ? # @ or white space",
                why="a URL ends there, and the rest would be taken for a host, a port or a path",
                next_step=f"name {field}.password_file or password_env in place of it; or "
                "percent-encode it: / is %2F, # is %23, @ is %40",
            )
        try:
            parts = urlsplit(url)
            port = parts.port or 6379
        except ValueError:
            raise OperatorError(
                f"{field}: the host or the port of the URL cannot be",
                why="a port is a number up to 65535, and only an IPv6 address stands in brackets",
                next_step=f"write {field} as redis://user@host:port with a port from 1 to 65535",
            ) from None  # its text has a part of the URL
        if not parts.hostname:
            raise OperatorError(
                f"{field}: the URL names no host",
                why="a URL needs a host",
                next_step=f"write {field} as redis://user@host:port",
            )
        if parts.path not in ("", "/", "/0") or parts.query or parts.fragment:
            named = repr(parts.path) if _DATABASE.fullmatch(parts.path) else "what follows the host"
            raise OperatorError(
                f"{field}: {named} names more than a server",
                why="a migration moves every database of a server",
                next_step=f"leave away what follows the port of {field}",
            )
        return cls.model_validate(
            {
                "host": parts.hostname,
                "port": port,
                "username": unquote(parts.username) if parts.username else None,
                "password": SecretStr(remember(unquote(parts.password)))
                if parts.password
                else None,
                "tls": parts.scheme == "rediss",
                **more,
            }
        )

    @property
    def url(self) -> str:
        """Return the address without its password, fit to be shown."""
        user = f"{self.username}@" if self.username else ""
        return f"{'rediss' if self.tls else 'redis'}://{user}{self.host}:{self.port}"

    @property
    def place(self) -> str:
        """Return host and port."""
        return place_of(self.host, self.port)


class Announced(ServerLogin):
    """The login of servers whose addresses others announce, and where these are reached."""

    address_map: dict[str, str] = Field(
        default={},
        description="announced address: reachable address, where Exodus cannot reach what the "
        "Sentinels or the nodes announce; both as host:port, or both as host",
    )

    @field_validator("address_map")
    @classmethod
    def _maps_alike(cls, value: dict[str, str]) -> dict[str, str]:
        for announced, reachable in value.items():
            if _has_port(announced) is not _has_port(reachable):
                raise ValueError(
                    f"address_map: {announced} → {reachable}: write host:port on both sides, or "
                    "host on both"
                )
            for text in (announced, reachable):
                if _has_port(text):
                    split_place(text)
        return value

    def server(self, announced: str) -> Address:
        """Return the reachable address of a server announced as host:port."""
        host, port = split_place(self.address_map.get(announced, announced))
        if announced not in self.address_map:
            host = self.address_map.get(host, host)
        fields = {name: getattr(self, name) for name in ServerLogin.model_fields}
        return Address(host=host, port=port, **fields)


class Service(Announced):
    """A master with replicas behind Sentinel, and the login of these servers."""

    sentinels: tuple[str, ...] = Field(
        min_length=1, description="addresses of the Sentinels, each as host:port; name all of them"
    )
    service: str = Field(
        min_length=1, max_length=200, description="name by which the Sentinels know the master"
    )
    sentinel_username: str | None = Field(
        default=None, description="ACL user on the Sentinels; null: the user default"
    )
    sentinel_password_env: str | None = Field(
        default=None, description="environment variable that holds the Sentinels' password"
    )
    sentinel_password_file: Path | None = Field(
        default=None, description="file whose first line is the Sentinels' password"
    )
    sentinel_tls: bool = Field(default=False, description="use TLS to the Sentinels")
    sentinel_ca_file: Path | None = Field(
        default=None, description="PEM file of the authority that signed the Sentinels' certificate"
    )
    sentinel_cert_file: Path | None = Field(
        default=None, description="PEM file of the client certificate, if Sentinels ask for one"
    )
    sentinel_key_file: Path | None = Field(
        default=None, description="PEM file of that certificate's key"
    )
    sentinel_server_name: str | None = Field(
        default=None, description="name in the Sentinels' certificate; null: the host"
    )

    @field_validator("sentinels", mode="before")
    @classmethod
    def _is_a_list(cls, value: object) -> object:
        return _listed("sentinels", value)

    @field_validator("sentinels")
    @classmethod
    def _are_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once("sentinels", value)

    @field_validator("service")
    @classmethod
    def _is_one_word(cls, value: str) -> str:
        if not _SERVICE.fullmatch(value):
            raise ValueError(
                f"service {value!r} is no name of a master: Sentinel takes letters, digits and "
                ". - _"
            )
        return value

    @property
    def url(self) -> str:
        """Return the service without its password, fit to be shown."""
        user = f"{self.username}@" if self.username else ""
        scheme = "rediss+sentinel" if self.tls else "redis+sentinel"
        return f"{scheme}://{user}{','.join(self.sentinels)}/{self.service}"

    @property
    def sentinel_addresses(self) -> tuple[Address, ...]:
        """Return the addresses of the Sentinels, with their login."""
        return tuple(
            Address(
                host=host,
                port=port,
                username=self.sentinel_username,
                password_env=self.sentinel_password_env,
                password_file=self.sentinel_password_file,
                tls=self.sentinel_tls,
                ca_file=self.sentinel_ca_file,
                cert_file=self.sentinel_cert_file,
                key_file=self.sentinel_key_file,
                server_name=self.sentinel_server_name,
            )
            for host, port in map(split_place, self.sentinels)
        )


class Cluster(Announced):
    """A cluster, and the login of its nodes."""

    cluster: tuple[str, ...] = Field(
        min_length=1,
        description="addresses of nodes, each as host:port; the others are found by asking these",
    )

    @field_validator("cluster", mode="before")
    @classmethod
    def _is_a_list(cls, value: object) -> object:
        return _listed("cluster", value)

    @field_validator("cluster")
    @classmethod
    def _are_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once("cluster", value)

    @property
    def url(self) -> str:
        """Return the cluster without its password, fit to be shown."""
        user = f"{self.username}@" if self.username else ""
        scheme = "rediss+cluster" if self.tls else "redis+cluster"
        return f"{scheme}://{user}{','.join(self.cluster)}"

    @property
    def seeds(self) -> tuple[Address, ...]:
        """Return the addresses of the nodes that the plan names: they are reachable as they are."""
        fields = {name: getattr(self, name) for name in ServerLogin.model_fields}
        return tuple(
            Address(host=host, port=port, **fields) for host, port in map(split_place, self.cluster)
        )


Place = Address | Service | Cluster


def one_server(place: Place) -> Address:
    """Return the address of a place that the plan allows to be one server only.

    Raises:
        Bug: it is a service or a cluster.
    """
    if not isinstance(place, Address):
        raise Bug(
            f"{place.url} is no single server, and one is needed",
            why="the plan's check of strategy and topology let it pass",
            next_step="report this; nothing was changed",
        )
    return place


def place_of(host: str, port: int) -> str:
    """Return host and port as one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_place(text: str) -> tuple[str, int]:
    """Reverse `place_of`.

    Raises:
        ValueError: the text is not host:port.
    """
    host, colon, port = text.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    whole = bool(colon and inner and port.isdigit() and 0 < int(port) <= 65535)
    if not whole or not _HOST.fullmatch(inner) or (":" in inner) is (inner == host):
        raise ValueError(f"{text!r} is no address: write host:port, or [IPv6 address]:port")
    return inner, int(port)


def advertised(text: str | None) -> tuple[str, int | None]:
    """Split `gateway.advertise` into the host and the first port that clients are told.

    `text` is a host, a host and a port, or None. A missing host is empty, a missing port None.

    Raises:
        ValueError: it is no such text.
    """
    if text is None:
        return "", None
    return split_place(text) if _has_port(text) else (text, None)


def _listed(field: str, value: object) -> object:
    if isinstance(value, str):
        raise ValueError(  # noqa: TRY004 - pydantic shows it as an error of the field
            f"{field} is a list: write [host:port, host:port, host:port]"
        )
    return value


def _each_once(field: str, value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        split_place(text)
    if len(set(value)) != len(value):
        raise ValueError(f"{field} names one address twice; name each once")
    return value


def _has_port(text: str) -> bool:
    return ":" in text and not (text.count(":") > 1 and not text.startswith("["))


def read_secret(field: str, env: str | None, file: Path | None) -> str | None:
    """Return the password that a variable or a file holds; None where neither is named.

    Raises:
        OperatorError: the variable is not set, or the file cannot be read.
    """
    if env is not None:
        value = os.environ.get(env)
        if value is None:
            # What does not look like a variable may be the password itself, written into the wrong
            # field.
            named = (
                f"${env}" if _VARIABLE.fullmatch(env) else "the variable that password_env names"
            )
            raise OperatorError(
                f"{field}: no password in {named}",
                why="the plan names this environment variable and it is not set here",
                next_step="export it for this process, or name a password_file",
            )
        return remember(value)
    if file is not None:
        try:
            return remember(file.read_text().splitlines()[0])
        except (OSError, IndexError, UnicodeDecodeError) as exc:
            named = (
                str(file)
                if file.is_absolute() and file.parent.is_dir()
                else "the file that password_file names"
            )
            raise OperatorError(
                f"{field}: no password in {named}",
                why=(exc.strerror if isinstance(exc, OSError) else None)
                or "the file is empty, or not text",
                next_step="write the password on the first line of the file and let this user "
                "read it",
            ) from None  # its text has the name again
    return None


class Credentials(BaseModel):
    """A user of a server and the place of its password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    username: str = Field(min_length=1, description="ACL user; not default")
    password_env: str | None = Field(
        default=None, description="environment variable that holds the password"
    )
    password_file: Path | None = Field(
        default=None, description="file whose first line is the password"
    )

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if self.username == "default":
            raise ValueError(
                "the user 'default' is the applications': name a user that only Exodus has"
            )
        if (self.password_env is None) is (self.password_file is None):
            raise ValueError(
                f"user {self.username} needs password_env or password_file, and not both"
            )
        return self

    def at(self, address: P) -> P:
        """Return the address of the same server or service with this user."""
        changed = {
            "username": self.username,
            "password": None,
            "password_env": self.password_env,
            "password_file": self.password_file,
        }
        return address.model_copy(update=changed)
