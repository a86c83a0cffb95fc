"""Exodus: move a live Redis-family database to another one while the applications keep running.

The nouns, in the order a request meets them: a *gateway* (`gateway/`) relays applications to the *authority* and
journals the keys they write; a *syncer* (`sync/`) makes each journalled key equal on the *follower*; a *comparer*
(`compare/`) replays sampled requests on the target; the *control store* (`control/`) is where they and the Prefect
flows meet. Nothing in this package imports Prefect.
"""

from exodus import compiled

__version__ = "0.1.0"
compiled.choose()
