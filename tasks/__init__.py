"""Prefect tasks, by subject.

A task loads the migration's block by name, so no secret is a parameter. It returns plain JSON.

`context.py` opens a migration, `ledger.py` begins and ends phases, `decision.py` asks a person,
`evidence.py` runs the gates and writes artifacts. The others do the work of the phases through the
engine.
"""
