"""Changing the authority: the fence, the switch as a list of steps, and its rehearsal.

`switch.py` holds the steps of a cutover and of a rollback after one (the same list with the sides swapped), with two interpreters:
`apply` does them, `explain` says what would be done. `fence.py` keeps strays from writing to the old authority.
`rehearsal.py` does the same switch for sessions of a reserved key prefix only. Read `switch.py` first.
"""
