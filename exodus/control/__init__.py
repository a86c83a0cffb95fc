"""The control store: one small durable Redis where the flows and the data plane meet.

`store.py` is the schema and the only file that names keys. `route.py` is the versioned route, `registry.py` who is
alive and what each process has acknowledged, `journal.py` the changed keys, `checkpoint.py` how far a backfill has come,
`ledger.py` what people decided. Read `store.py` first.
"""
