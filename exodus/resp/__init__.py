"""The Redis protocol without I/O: bytes in, frames out, at any split.

`scanner.py` frames requests and replies and skips what it need not look at; `inline.py` splits the
servers' inline form; `encode.py` writes requests. Nobody here reads a socket or a clock, and
nothing here raises on what a peer sent. Read `scanner.py` first.
"""
