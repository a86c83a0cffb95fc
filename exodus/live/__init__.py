"""Live sync: changed keys are copied again, in lanes, by the syncer process.

`syncer.py` is the process. `lanes.py` works the journal's partitions. `rescan.py` compares both
sides after a FLUSHALL or a gap. `server_runs.py` notices a server that restarted with less than it
had. `recheck.py` compares keys that were written since the last verification. `lag_probe.py`
measures the lag that an application sees. Read `syncer.py` first.
"""
