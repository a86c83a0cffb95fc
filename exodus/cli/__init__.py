"""The command line.

`app.py` registers the commands, `output.py` prints, `context.py` finds the migration,
`prefect_api.py` speaks to Prefect's REST API (the same that its UI uses), and the others are one
file a command group.
"""
