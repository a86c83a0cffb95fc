"""Prefect tasks, by subject. Each loads the migration's block by name, so no secret is a parameter; what a task returns is plain JSON.

`context.py` opens a migration, `ledger.py` begins and ends phases, `decision.py` asks a person, `evidence.py` runs the gates and writes the
artifacts; the others do the work of the phases through the engine.
"""
