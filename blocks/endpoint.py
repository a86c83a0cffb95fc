"""One server of the Redis family, with its secret."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from exodus.config import Address


class RedisEndpoint(Block):
    """A Redis or Valkey server: where it is and how to speak to it."""

    _block_type_name: ClassVar[str | None] = "RedisEndpoint"
    _block_type_slug: ClassVar[str | None] = "redis-endpoint"
    _description: ClassVar[str | None] = "A server of the Redis family that Exodus migrates from, to, or keeps its state in."

    url: str = Field(title="URL", description="redis://user@host:port, or rediss:// for TLS; without the password")
    password: SecretStr | None = Field(default=None, title="Password", description="of the user that Exodus connects as")
    ca_file: str | None = Field(default=None, title="CA file", description="PEM file that the server's certificate is checked against")
    cert_file: str | None = Field(default=None, title="Client certificate", description="PEM file, where the server asks for one")
    key_file: str | None = Field(default=None, title="Client key", description="PEM file of the client certificate's key")

    def address(self, field: str) -> Address:
        """The server as the engine knows it.

        Raises:
            exodus.errors.OperatorError: the URL is not one.
        """
        return Address.parse(
            self.url,
            field=field,
            **({"password": self.password} if self.password is not None else {}),
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
        )
