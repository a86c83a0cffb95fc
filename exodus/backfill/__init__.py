"""Backfill: the copy of all keys, slice by slice, while the applications write.

`slices.py` copies a slice in chunks, with a checkpoint after each. `migrate.py` lets the source
send keys itself. `runs.py` tells which backfill a migration is at. `progress.py` computes progress
and rates, `progress_view.py` reads them from the control store. `forecast.py` is the dry run. Read
`slices.py` first.
"""
