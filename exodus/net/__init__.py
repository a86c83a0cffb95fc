"""Connections to servers: TLS, the login, the hot path's `Leg`, and redis-py's clients for control
work.

`leg.py` is one connection for the hot path. `client.py` makes redis-py's clients. `tls.py` has the
TLS settings of both. `info.py` reads an INFO reply. Read `leg.py` first.
"""
