"""The plan of a migration. No module here does I/O, except to read the migration file and the
passwords it names.

`vocabulary.py` has the words: sides, modes, roles, phases. `bounds.py` has every bound of the data
plane. `plan.py` is the plan, `settings.py` its parts, `address.py` one server. `scope.py` has the
filters and renames, `window.py` the hours of a cutover, `own_keys.py` the names of Exodus's own
keys. `migration_file.py` reads `migration.yaml`. Read `plan.py` first.
"""
