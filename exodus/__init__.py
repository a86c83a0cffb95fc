"""Exodus: move a live Redis-family database to another one while the applications keep running.

The nouns, in the order a request meets them: a *gateway* (`gateway/`) relays applications to the
*authority* and journals the keys they write. A *syncer* (`live/`) copies each journalled key to the
*follower* (`copy/`). A *backfill* (`backfill/`) copies all keys, a *verification* (`verify/`)
compares both sides. A *comparer* (`shadow/`) tries sampled requests on the target. The *switch*
(`cutover/`) changes the authority. The *control store* (`control/`) is where they and the Prefect
flows meet. Nothing in this package imports Prefect.
"""

from exodus import compiled

__version__ = "0.1.0"
compiled.choose()
