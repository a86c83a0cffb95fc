"""One Redis or Valkey server, a service behind Sentinel, or a cluster. By default its secrets stay
in files or variables of the worker.
"""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from exodus.errors import OperatorError
from exodus.plan.address import Address, Cluster, Place, Service

_TLS = ("ca_file", "cert_file", "key_file", "server_name")
_SENTINEL = (
    "sentinel_username",
    "sentinel_password_file",
    "sentinel_password_env",
    "sentinel_tls",
    "sentinel_ca_file",
    "sentinel_cert_file",
    "sentinel_key_file",
    "sentinel_server_name",
)


class RedisEndpoint(Block):
    """A Redis or Valkey server, a master with replicas behind Sentinel, or a cluster: address,
    login and TLS.
    """

    _block_type_name: ClassVar[str | None] = "RedisEndpoint"
    _block_type_slug: ClassVar[str | None] = "redis-endpoint"
    _description: ClassVar[str | None] = (
        "A Redis or Valkey server: source, target or control store of a migration."
    )

    url: str = Field(
        default="",
        title="URL",
        description="redis://user@host:port, or rediss:// for TLS, without the password; empty "
        "where Sentinels or a cluster are named",
    )
    sentinels: list[str] = Field(
        default=[], title="Sentinels", description="host:port of each Sentinel, in place of a URL"
    )
    service: str = Field(
        default="",
        title="Service",
        description="Name by which the Sentinels know the master",
    )
    cluster: list[str] = Field(
        default=[],
        title="Cluster",
        description="host:port of some nodes of a cluster, in place of a URL",
    )
    username: str | None = Field(
        default=None, title="User", description="ACL user, where no URL names it"
    )
    tls: bool = Field(default=False, title="TLS", description="Use TLS, where no URL names it")
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

    sentinel_username: str | None = Field(
        default=None, title="User on the Sentinels", description="Null: the user default"
    )
    sentinel_password_file: str | None = Field(
        default=None,
        title="Password file of the Sentinels",
        description="File on the worker whose first line is the password",
    )
    sentinel_password_env: str | None = Field(
        default=None,
        title="Password variable of the Sentinels",
        description="Environment variable of the worker that holds the password",
    )
    sentinel_tls: bool = Field(
        default=False, title="TLS to the Sentinels", description="Use TLS to the Sentinels"
    )
    sentinel_ca_file: str | None = Field(
        default=None, title="CA file of the Sentinels", description="PEM file"
    )
    sentinel_cert_file: str | None = Field(
        default=None, title="Client certificate for the Sentinels", description="PEM file"
    )
    sentinel_key_file: str | None = Field(
        default=None, title="Client key for the Sentinels", description="PEM file"
    )
    sentinel_server_name: str | None = Field(
        default=None,
        title="Server name of the Sentinels",
        description="Name in their certificate, if it is not the host",
    )
    address_map: dict[str, str] = Field(
        default={},
        title="Address map",
        description="Announced address: reachable address",
    )

    def place(self, field: str) -> Place:
        """Return the address of the server, the service or the cluster for the engine.

        Raises:
            exodus.errors.OperatorError: the URL is invalid.
            pydantic.ValidationError: a field of the service or the cluster is.
        """
        if self.cluster:
            given = ("username", "tls", "password", "password_file", "password_env", "address_map")
            return Cluster(
                cluster=tuple(self.cluster),
                **{name: getattr(self, name) for name in (*given, *_TLS)},
            )
        if not self.sentinels and not self.service:
            return self.address(field)
        names = ("username", "tls", *_TLS, *_SENTINEL)
        return Service(
            sentinels=tuple(self.sentinels),
            service=self.service,
            password=self.password,
            password_file=self.password_file,
            password_env=self.password_env,
            address_map=self.address_map,
            **{name: getattr(self, name) for name in names},
        )

    def address(self, field: str) -> Address:
        """Return the address of a single server, as a control store is.

        Raises:
            exodus.errors.OperatorError: the URL is invalid, or Sentinels or a cluster are named.
        """
        if self.sentinels or self.service or self.cluster:
            named = "a cluster" if self.cluster else "Sentinels"
            raise OperatorError(
                f"{field} is one server, and its block names {named}",
                why="only source and target may be behind Sentinel, or clusters",
                next_step=f"give the block of {field} a URL",
            )
        return Address.parse(
            self.url,
            field=field,
            **({"password": self.password} if self.password is not None else {}),
            password_file=self.password_file,
            password_env=self.password_env,
            **{name: getattr(self, name) for name in _TLS},
        )
