"""One number of a process, as Prometheus takes it."""

from __future__ import annotations

Labels = dict[str, str]
# Name as exodus_<part>_<what>_<unit>, help, labels, value; `_total` makes a counter
Sample = tuple[str, str, Labels, float]
