"""The two sides: their nodes, what each node can do, and whether both sides fit together.

`node.py` is one server and its capabilities. `endpoint.py` is a side. `pair_checks.py` compares the
two sides before a migration. `rights.py` lists the commands that each of Exodus's users needs, and
`permits.py` tries them on the server. `applications.py` connects as an application does. Read
`node.py` first.
"""
