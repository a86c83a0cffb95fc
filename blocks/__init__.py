"""Prefect blocks hold configuration only.

`endpoint.py` is one server with its secret. `migration.py` is a migration with its servers.
`register.py` writes them from a migration file. A task loads a block by name, so no secret is a
parameter.
"""

from blocks.endpoint import RedisEndpoint
from blocks.migration import Migration

__all__ = ["Migration", "RedisEndpoint"]
