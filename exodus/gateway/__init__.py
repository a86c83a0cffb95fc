"""The gateway: applications connect to it instead of the database.

One client connection is one *session*, with one *leg*, a connection to the authority. Read in this
order, the way that a request travels:

- `session/`: the state machine of a session, without I/O. It decides which bytes are forwarded,
  which are held, and which keys are journalled.
- `relay.py`: the asyncio shell of a session. `orders.py`: what the route asks of the sessions.
- `journaler.py` carries written keys to the control store, through `marks.py` and `pipe.py`.
  `intents.py` keeps keys while the process may crash, `spool.py` while the store is away.
  `durability.py` notices what the store lost after it had acknowledged it.
- `route_following.py` acts on each epoch: `groups.py`, `holds.py`, `handover.py`, `spare_legs.py`,
  `settlement.py`, `canary_control.py`, `redirect.py`.
- `heartbeats.py` and `reporting.py` tell the control store, Prometheus and the log.
- `hub.py` puts one process together. `process.py` starts it, `supervisor.py` starts several.

Sessions never wait for anything but their two transports and a hold.
"""
