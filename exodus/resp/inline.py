"""Splitting a line into arguments the way the servers do (`sdssplitargs` in redis/redis src/sds.c).

Used for inline requests and for the quoted arguments of MONITOR's lines, which use the same
escapes.
"""

from __future__ import annotations

import re

_ESCAPES = {ord("n"): b"\n", ord("r"): b"\r", ord("t"): b"\t", ord("b"): b"\b", ord("a"): b"\a"}
_SPACE = b" \n\r\t\v\f\0"
_ENDS = (
    b" \n\r\t\0"  # of a word without quotes; the other white space is skipped between words only
)
_HEX = b"0123456789abcdefABCDEF"
_PLAIN = re.compile(rb"[^\"'\v\f\0]*").fullmatch  # what `bytes.split` splits as the servers do


# The quoting rules are one table of cases, and a call a byte would cost more.
def split_line(line: bytes) -> list[bytes] | None:  # noqa: C901, PLR0912
    """Return the arguments of one line (without its end), or None where quotes are unbalanced.

    A closing quote must be followed by white space or the end, as in the servers.
    """
    if _PLAIN(line) is not None:
        return line.split()
    args: list[bytes] = []
    at, end = 0, len(line)
    while True:
        while at < end and line[at] in _SPACE:
            at += 1
        if at >= end:
            return args
        word = bytearray()
        quote = 0
        while True:
            if at >= end:
                if quote:
                    return None
                break
            char = line[at]
            if quote == 0x22:  # "
                if (
                    char == 0x5C
                    and at + 3 < end
                    and line[at + 1] == 0x78
                    and line[at + 2] in _HEX
                    and line[at + 3] in _HEX
                ):
                    word.append(int(line[at + 2 : at + 4], 16))
                    at += 3
                elif char == 0x5C and at + 1 < end:
                    at += 1
                    word += _ESCAPES.get(line[at], line[at : at + 1])
                elif char == 0x22:
                    if at + 1 < end and line[at + 1] not in _SPACE:
                        return None
                    at += 1
                    break
                else:
                    word.append(char)
            elif quote == 0x27:  # '
                if char == 0x5C and at + 1 < end and line[at + 1] == 0x27:
                    at += 1
                    word.append(0x27)
                elif char == 0x27:
                    if at + 1 < end and line[at + 1] not in _SPACE:
                        return None
                    at += 1
                    break
                else:
                    word.append(char)
            elif char in _ENDS:
                break
            elif char in (0x22, 0x27):
                quote = char
            else:
                word.append(char)
            at += 1
        args.append(bytes(word))
