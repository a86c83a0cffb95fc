"""Scripts that run on scratch copies and see the names of their keys.

A copy has a name of its own. A script that compares a name with a text then answers otherwise than
it did at the source, under whatever name. So before a difference is confirmed the script runs once
more, in a text of Exodus's own (`lua/as_its_keys.lua`): there KEYS has the keys' names, and each
command that names one gets the copy. What then is as it was at the source was the name's doing.

    EVAL         the text is in the request
    EVALSHA      SCRIPT SHOW tells it (Valkey 8.0 and later)
    FCALL        FUNCTION LIST WITHCODE tells the library of the function

The text is a constant of the script: names and arguments are arguments. So it takes one place in
the server's cache of scripts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from exodus.copy.value import pairs
from exodus.lua import lua
from exodus.net.leg import Reply, ReplyError

_TEXT = lua(__package__, "as_its_keys").encode()
_SHEBANG = b"#!"
Ask = Callable[[list[bytes]], Awaitable[Reply]]


async def seeing_keys(
    args: Sequence[bytes], copied: Sequence[bytes], ask: Ask
) -> list[bytes] | None:
    """Return a request that runs a script on copies, and lets it see its keys' names; None where
    nobody tells the script's text.

    Args:
        args: the request on the keys.
        copied: the same request on the copies.
        ask: asks the server on which it is to run.

    Raises:
        SourceError, TargetError: the server does not answer.
    """
    verb = args[0].upper()
    function = args[1] if verb.startswith(b"FCALL") else b""
    if function:
        text = _library_of(function, await ask([b"FUNCTION", b"LIST", b"WITHCODE"]))
    elif verb.startswith(b"EVALSHA"):
        told = await ask([b"SCRIPT", b"SHOW", args[1]])
        text = told if isinstance(told, bytes) else None
    else:
        text = args[1]
    if text is None:
        return None
    first, rest = b"", text
    if text.startswith(_SHEBANG):  # the engine and its flags; of a library its name too
        first, _, rest = text.partition(b"\n")
        first = b"" if function else first + b"\n"
    behind = 3 + int(args[2])
    keys, arguments = args[3:behind], args[behind:]
    whole = first + _TEXT.replace(b"@TEXT@", rest)
    return [b"EVAL", whole, args[2], *copied[3:behind], function, *keys, *arguments]


def _library_of(function: bytes, libraries: Reply) -> bytes | None:
    """Return the text of the library that has a function."""
    if isinstance(libraries, ReplyError):
        return None
    for library in map(pairs, libraries):
        names = [pairs(each)[b"name"].lower() for each in library[b"functions"]]
        if function.lower() in names:
            text: bytes = library[b"library_code"]
            return text
    return None
