"""One client connection, without I/O: what is forwarded, what is held, what is journalled.

- `Session` (machine.py) takes bytes from both sides and calls its `Outlet` (outlet.py). Read it
  first.
- `Admission` describes each request before it is forwarded. It decides what is held.
- `Matching` takes each reply to its request. `Pending` (pending.py) is a request without a reply.
- `Effects` collects the keys that requests may change, and marks those that they did change.
- `SessionState` and `Prediction` (state.py) are the connection's state, answered and expected.
- `WaitingReplies` keeps replies in order while a canary read waits for the follower.
- `replay.py` brings a new leg into the session's state.
- `SessionParts` (parts.py) is what all of these share; buffers.py and leg.py hold more of it.

All modules but outlet.py and replay.py run compiled (exodus/compiled.py). Their types are in `.pxd`
files; tests/unit/exodus/test_compiled.py compares the two.
"""

from exodus.gateway.session.effects import Unanswered
from exodus.gateway.session.leg import Dialect
from exodus.gateway.session.machine import Session
from exodus.gateway.session.outlet import Outlet
from exodus.gateway.session.replay import Stage

__all__ = ["Dialect", "Outlet", "Session", "Stage", "Unanswered"]
