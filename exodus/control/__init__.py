"""The control store: one small durable Redis where the flows and the data plane meet.

`schema.py` names every key. `store.py` is the connection. `route.py` is the versioned route,
`registry.py` the heartbeats of processes, `journal.py` the changed keys, `checkpoint.py` the
progress of a backfill, `ledger.py` the decisions of people. Read `schema.py` first.
"""
