"""Comparing what the target answers with what applications were answered, without serving anybody from the target.

`rules.py` says when two replies are equal; `comparer.py` is the process that replays sampled requests; the gateway samples by key hash
and publishes pairs, so that a sampled key has a whole history. Read `comparer.py` first.
"""
