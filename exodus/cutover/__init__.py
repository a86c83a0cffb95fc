"""The cutover: the fence, and the switch as a list of steps.

`switch.py` has the steps of a cutover, and of a rollback after one: the same list with the sides
swapped. `apply` does them, `explain` shows them. `fence.py` makes the old authority refuse writes,
by one of the methods of `fence_methods.py`. `preconditions.py` checks again what a person approved.
`settle.py` ends what a dead switch left. `rehearsal_report.py` says whether a rehearsal counts
(`exodus/rehearsal/` does it). Read `switch.py` first.
"""
