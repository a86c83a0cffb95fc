"""The rehearsal: the steps of the switch, there and back, for reserved keys only.

`rehearse.py` runs rounds of it and reports. `steps.py` is the switch, narrowed to the reserved
keys: the interpreter, the hold, the change of the route, and the release are a cutover's own
(`exodus/cutover/switch.py`). `clients.py` has the sessions that write meanwhile, `copying.py` their
live sync, `fence.py` a fence on a user made for it, `own_gateway.py` the gateway that one round
kills.
"""
