"""The reasons for which a write can be in no journal. Each opens a gap. No I/O.

A gap is stored under its process and reason. It blocks a cutover until a verification that began
after it found both sides equal.
"""

from __future__ import annotations

LONG_KEY = "a key is longer than the gateway keeps"
SCRIPTS = "scripts ran that may write keys which they do not declare"
REPLACED = "a command replaced data without naming keys"
UNMATCHED = "replies do not match requests"
UNREADABLE = "a connection cannot be read"
NO_ANSWER = "a connection ended before an unreadable request was answered"
UNDESCRIBED = "the server does not tell what a command is"
FAILED_SESSION = "a session failed in the gateway"
