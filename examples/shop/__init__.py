"""A self-checking application: it writes through one URL, remembers what was acknowledged, and
later holds a server against that.

`preload.py` puts keys there, `workload.py` writes all the while, `model.py` is what must be there,
`check.py` compares a server with it.
"""
