"""One flow a phase: the order of its tasks and its decisions, and nothing else.

`lifecycle` starts the phase that is due.
"""
