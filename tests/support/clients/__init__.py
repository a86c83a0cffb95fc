"""Ordinary programs, each with another client library. Each prints the replies that it got, one a
line, without anything that differs between runs.
"""
