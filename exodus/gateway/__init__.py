"""The gateway: what applications connect to instead of the database.

One client connection is one *session*, with one *leg* to the authority. `session.py` is the sans-IO state machine of a session:
it decides what is forwarded, what is held, which keys are journalled. `relay.py` is its asyncio shell, `handover.py` moves a
live session to the other side, `journaler.py` carries written keys to the control store (with `intents.py` and `spool.py` for when a
process or the store is away), `orders.py` is what the route asks of the sessions, `server.py` the process. Only `relay.py`,
`handover.py`, `journaler.py` and `server.py` do I/O on a socket. Read `session.py` first.
"""
