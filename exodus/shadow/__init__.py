"""Shadow traffic: what the target answers, compared with what applications were answered. The
target serves nobody.

`comparer.py` is the process; `resume.py` lets the next one take up where it was. `copies.py` keeps
the sampled keys on the target, and `scratch.py` copies of them on which writes are tried.
`trials.py` asks one server, `cluster_trials.py` the nodes of a cluster, whose scratch copies are
those of `scratch_cluster.py`; `confinement.py` keeps scripts to them. `lives.py` tells when a
server may have lost what was copied.

`verdicts.py` judges replies by `rules.py`, `sweep.py` states. `histories.py` finds the state that
a write found, and `write_replies.py` runs the write on it again, as `replays.py` says it.

`investigation.py` looks for the cause of what is confirmed (`causes.py`), and `reports.py` writes
it into the ledger of divergences (`divergences.py`), which `repairs.py` works off.
`equivalence.py`, `coverage.py` and `findings.py` make the evidence of the decision. The gateway
samples by key hash, so a sampled key has its whole history. Read `verdicts.py` first.
"""
