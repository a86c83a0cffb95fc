"""Copying keys: `sync(key)` makes keys on the follower equal to the authority.

`key.py` copies a batch of keys. `read.py` reads them, `payload.py` writes them, and `chunked.py`
copies large keys in pieces. `guard.py` takes away the right to write when the epoch ends. `scan.py`
walks slices of the keyspace. `impact.py` keeps the impact budget. Read `key.py` first.
"""
