"""Text as people may see it: without secrets, and without anything that a terminal, Markdown, or
HTML would obey.

Client names, keys, server errors, and typed words come from outside. Every sink takes them through
here:

| sink                                    | function   |
| --------------------------------------- | ---------- |
| a line of a terminal                    | `plain`    |
| logs, where a record is made            | `mask_logs`|
| an error with its reasons there         | `lines`    |
| artifacts and forms of Prefect          | `markdown` |
| report.html, which escapes by itself    | `plain`    |
| Great Expectations' pages, which do not | `markup`   |
| `--json`, by whoever reads it           | `cleaned`  |

`masked` takes secrets out; all others go through it. It knows two kinds: what stands where a URL
has its password, and every secret that this process has read (`remember`).
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_REMEMBERED_MIN = (
    5  # characters; shorter ones stand in ordinary words, and are kept out where a message is made
)
_secrets: set[str] = set()

# From :// to the last @ before white space or a quote. The user's name stays where it is plainly
# one.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[A-Za-z0-9_.~%-]*)(?P<rest>[^\s\"'<>]*)@"
)
# A password in an ACL rule, as servers quote it
_RULE = re.compile(r"(?P<quote>['\"])(?P<kind>[><])[^'\"]+(?P=quote)")
_MARKUP = re.compile(r"([\\`*\[\]<>|~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.)")
_AT_START = re.compile(r"^(\s*)([#+=!-])")
# The mark is escaped, since a backslash before a digit is shown as one. It begins a list only
# before white space.
_NUMBER = re.compile(r"^(\s*\d+)([.)])(?=\s|$)")
_FURTHER_LINE = re.compile(r"\n(?! {4})")  # one that is not indented yet


def remember(secret: str) -> str:
    """Note a secret, so that no text shows it from now on; returns it."""
    if len(secret) >= _REMEMBERED_MIN:
        _secrets.update((secret, quote(secret, safe=""), repr(secret)[1:-1]))
    return secret


def _url_masked(found: re.Match[str]) -> str:
    rest = found["rest"]
    if not rest:
        return found[0]
    user = found["user"] if rest.startswith(":") else ""
    return f"{found['scheme']}{user}:{HIDDEN}@" if user else f"{found['scheme']}{HIDDEN}@"


def masked(text: object) -> str:
    """Return the text without secrets."""
    said = str(text)
    for secret in sorted(_secrets, key=len, reverse=True):
        if secret in said:
            said = said.replace(secret, HIDDEN)
    if "://" in said:
        said = _URL.sub(_url_masked, said)
    return (
        _RULE.sub(rf"\g<quote>\g<kind>{HIDDEN}\g<quote>", said)
        if ">" in said or "<" in said
        else said
    )


def _printable(text: str, kept: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode()
        for char in text
    )


def plain(text: object) -> str:
    """Return one line without secrets and control characters: escapes, bidirectional marks, line
    ends.
    """
    return _printable(masked(text))


def lines(text: object) -> str:
    """Return the same with its line ends."""
    return _printable(masked(text), "\n")


def markdown(text: object) -> str:
    """Return one line as Markdown that shows it as it is: no markup, no link, no HTML."""
    return _NUMBER.sub(r"\1\\\2", _AT_START.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", plain(text))))


def markup(text: object) -> str:
    """Return one line as HTML that shows it as it is."""
    return html.escape(plain(text))


def cleaned(document: Any) -> Any:
    """Return a JSON document without secrets and control characters in its texts."""
    if isinstance(document, str):
        return lines(document)
    if isinstance(document, Mapping):
        return {
            lines(key) if isinstance(key, str) else key: cleaned(value)
            for key, value in document.items()
        }
    if isinstance(document, (list, tuple)):
        return [cleaned(value) for value in document]
    return document


def when(at_ms: float) -> str:
    """Return a time in milliseconds as people write it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class LogFormatter(logging.Formatter):
    """Writes a record so that nothing in it ends its line as another record would begin."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; further lines of it are indented."""
        return _below(lines(super().format(record)))


def _below(text: str) -> str:
    return _FURTHER_LINE.sub("\n    ", text)


def mask_logs() -> None:
    """Mask every log record of this process where it is made, so also those that Prefect sends to
    its server.
    """
    make = logging.getLogRecordFactory()
    traceback = logging.Formatter()

    def masked_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            said = record.getMessage()
        except (
            TypeError,
            ValueError,
        ):  # its text and its arguments do not fit; that is no reason to fail whoever logs
            said = f"{record.msg} {record.args}"
        # Other formatters may print it: no line of it may look like a new record.
        record.msg, record.args = _below(lines(said)), ()
        if record.exc_info and record.exc_info[0] is not None:
            # What formatters use in place of their own
            record.exc_text = lines(traceback.formatException(record.exc_info))
        return record

    logging.setLogRecordFactory(masked_record)
