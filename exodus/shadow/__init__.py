"""Shadow traffic: what the target answers, compared with what applications were answered. The
target serves nobody.

`rules.py` says when two replies are equal. `comparer.py` is the process that tries sampled requests
on the target. `findings.py` names what a person has to look at. The gateway samples by key hash, so
a sampled key has its whole history. Read `comparer.py` first.
"""
