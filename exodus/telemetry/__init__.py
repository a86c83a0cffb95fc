"""What a process counts: `counters.py` per command, `http.py` serves Prometheus metrics and
`/health` from any process.
"""
