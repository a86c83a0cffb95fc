"""Watching traffic that does not pass the gateway. `monitor.py` reads MONITOR; `profile.py` is what any observation adds up to."""
