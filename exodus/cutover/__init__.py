"""The cutover: the fence, the switch as a list of steps, and its rehearsal.

`switch.py` has the steps of a cutover, and of a rollback after one: the same list with the sides
swapped. `apply` does them, `explain` shows them. `fence.py` makes the old authority refuse writes,
by one of the methods of `fence_methods.py`. `preconditions.py` checks again what a person approved.
`settle.py` ends what a dead switch left. `rehearsal.py` does the same for a reserved key prefix
only. Read `switch.py` first.
"""
