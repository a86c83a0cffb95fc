"""Verification: whether source and target are equal, key by key, in both directions.

`comparison.py` compares keys, `decode.py` reads values out of DUMP payloads. `passes.py` compares
slice by slice, `parts.py` spreads a pass over several machines, and `reconcile.py` makes the report
and repairs. Read `reconcile.py` first.
"""
