"""The local stack: real servers from Python packages, the data plane and Prefect.

The demo, the tests and the tutorial use it. `home.py` has the folders for data, logs and pids.
`processes.py` starts and ends processes. `servers.py` finds the servers' packages. `prefect.py`
starts the orchestrator. `up.py` combines them; read it first.
"""
