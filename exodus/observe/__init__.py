"""Watching traffic that does not pass the gateway. `monitor.py` reads MONITOR, `profile.py` sums up
what was seen.
"""
