"""Prefect blocks: configuration only. `endpoint.py` is one server with its secret, `migration.py` ties them into a migration,
`register.py` writes them from a migration file. A task loads a block by name, so no secret travels as a parameter.
"""

from blocks.endpoint import RedisEndpoint
from blocks.migration import Migration

__all__ = ["Migration", "RedisEndpoint"]
