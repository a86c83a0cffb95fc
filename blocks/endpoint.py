"""One Redis or Valkey server. By default its secret stays in a file or a variable of the worker."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from exodus.plan.address import Address


class RedisEndpoint(Block):
    """A Redis or Valkey server: address, login and TLS."""

    _block_type_name: ClassVar[str | None] = "RedisEndpoint"
    _block_type_slug: ClassVar[str | None] = "redis-endpoint"
    _description: ClassVar[str | None] = (
        "A Redis or Valkey server: source, target or control store of a migration."
    )

    url: str = Field(
        title="URL",
        description="redis://user@host:port, or rediss:// for TLS, without the password",
    )
    password_file: str | None = Field(
        default=None,
        title="Password file",
        description="File on the worker whose first line is the password",
    )
    password_env: str | None = Field(
        default=None,
        title="Password variable",
        description="Environment variable of the worker that holds the password",
    )
    password: SecretStr | None = Field(
        default=None,
        title="Password",
        description="Only if neither a file nor a variable is possible: everybody who may "
        "log in to Prefect can read it",
    )
    ca_file: str | None = Field(
        default=None,
        title="CA file",
        description="PEM file of the authority that signed the server's certificate",
    )
    cert_file: str | None = Field(
        default=None,
        title="Client certificate",
        description="PEM file, if the server asks for a certificate",
    )
    key_file: str | None = Field(
        default=None, title="Client key", description="PEM file of the client certificate's key"
    )
    server_name: str | None = Field(
        default=None,
        title="Server name",
        description="Name in the server's certificate, if it is not the URL's host",
    )

    def address(self, field: str) -> Address:
        """Return the server's address for the engine.

        Raises:
            exodus.errors.OperatorError: the URL is invalid.
        """
        return Address.parse(
            self.url,
            field=field,
            **({"password": self.password} if self.password is not None else {}),
            password_file=self.password_file,
            password_env=self.password_env,
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            server_name=self.server_name,
        )
