"""Change feeds: which keys of the authority changed, up to which position.

`feed.py` has the interface, and the journal that the gateways write. `replication.py` reads the
replication stream, `pushes.py` what a server pushes (CLIENT TRACKING, keyspace notifications).
`reader.py` has what both share. Read `feed.py` first.
"""
