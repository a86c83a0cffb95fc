"""The local stack: real servers from Python packages, the data plane and Prefect, for the demo, for tests and for trying it out.

`home.py` is where a stack keeps its data, logs and pids; `processes.py` starts and ends processes; `servers.py` knows
the servers' packages; `prefect.py` the orchestrator; `up.py` ties them together. Read `up.py` first.
"""
