"""Ordinary programs, each with another client library; each prints what it was told, a line a
reply, and names only what a rerun would say too.
"""
