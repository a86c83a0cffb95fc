"""The address of one server, its TLS settings, and where its password is.

A password is a `SecretStr` that no dump contains. The plan names an environment variable or a file
in its place, and whoever connects reads it there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from exodus.errors import OperatorError
from exodus.safe_text import remember

_OTHER_SCHEMES = (
    "http",
    "https",
    "tcp",
    "tls",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "valkey",
    "valkeys",
)
_SPLITS = re.compile(r"[/?#@\s]")
_DATABASE = re.compile(r"/[0-9]{1,3}")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


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


class Address(Tls):
    """The address and login of one server. `password` is never dumped."""

    host: str = Field(min_length=1, description="host name or IP address")
    port: int = Field(ge=1, le=65535, description="TCP port; 6379 if the URL names none")
    username: str | None = Field(default=None, description="ACL user; null: the user default")
    password: SecretStr | None = Field(default=None, exclude=True)
    password_env: str | None = Field(
        default=None, description="environment variable that holds the password"
    )
    password_file: Path | None = Field(
        default=None, description="file whose first line is the password"
    )

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
                next_step=f"write {field} as redis://user@host:port",
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

    def secret(self, field: str) -> str | None:
        """Return the password from the place that the address names.

        Raises:
            OperatorError: the named variable is not set, or the file cannot be read.
        """
        if self.password is not None:
            return remember(self.password.get_secret_value())
        return read_secret(field, self.password_env, self.password_file)


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

    def at(self, address: Address) -> Address:
        """Return the address of the same server with this user."""
        changed = {
            "username": self.username,
            "password": None,
            "password_env": self.password_env,
            "password_file": self.password_file,
        }
        return address.model_copy(update=changed)
