"""The end of a migration: finalise, abandon, and the evidence that remains.

`ends.py` finalises and abandons; `finalise_checks.py` decides whether that is allowed.
`redirect.py` sends clients away from the gateways. `collect.py` gathers the evidence, `bundle.py`
writes the bundle, `report.py` makes it a page, `bundle_store.py` keeps the newest bundles in the
control store, and `archive.py` removes an ended migration from it.
"""
