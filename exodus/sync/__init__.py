"""Moving data: one primitive, and the producers of keys for it.

`key.py` makes a batch of keys on the follower equal to the authority (`payload.py` has the copy type by type); `guard.py` ends its right to
write with the epoch. Producers are `scan.py` with `backfill.py`, and `feed.py` with `live.py`. `reconcile.py` proves the result. Read `key.py` first.
"""
