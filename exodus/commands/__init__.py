"""What a command means: `table.py` reads flags and key positions from a live server's COMMAND,
`keys.py` finds the keys of a request, `semantics.py` adds what no server tells (which replies can
be compared, what blocks, what changes a session).
"""
