"""One server of the Redis family. Its secret stays in a file or a variable of the worker, unless asked for otherwise."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from exodus.plan.address import Address


class RedisEndpoint(Block):
    """A Redis or Valkey server: where it is and how to speak to it."""

    _block_type_name: ClassVar[str | None] = "RedisEndpoint"
    _block_type_slug: ClassVar[str | None] = "redis-endpoint"
    _description: ClassVar[str | None] = "A server of the Redis family that Exodus migrates from, to, or keeps its state in."

    url: str = Field(title="URL", description="redis://user@host:port, or rediss:// for TLS; without the password")
    password_file: str | None = Field(default=None, title="Password file", description="file on the worker whose first line is the password")
    password_env: str | None = Field(
        default=None, title="Password variable", description="environment variable of the worker that holds the password"
    )
    password: SecretStr | None = Field(
        default=None,
        title="Password",
        description="only where neither a file nor a variable can be: whoever may log in to Prefect can read it",
    )
    ca_file: str | None = Field(default=None, title="CA file", description="PEM file that the server's certificate is checked against")
    cert_file: str | None = Field(default=None, title="Client certificate", description="PEM file, where the server asks for one")
    key_file: str | None = Field(default=None, title="Client key", description="PEM file of the client certificate's key")
    server_name: str | None = Field(default=None, title="Server name", description="name in the server's certificate, where it is not the URL's host")

    def address(self, field: str) -> Address:
        """The server as the engine knows it.

        Raises:
            exodus.errors.OperatorError: the URL is not one.
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
