"""The checks of the phase Test: what a target must show before data is moved to it.

One module a check. Each returns rows (`rows.py`) and decides nothing: the level of a check is the
plan's (`exodus/plan/gate_checks.py`), and the decision is a person's. What they write on the target
is on scratch keys, which are removed.
"""
