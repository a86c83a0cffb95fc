"""Raw conversations: bytes in, bytes out, directly and through the gateway."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

_QUIET_S = 0.12  # a server on loopback that is silent for so long has sent everything


def converse(
    port: int, pieces: Sequence[bytes], *, size: int | None = None, half_close: bool = False
) -> bytes:
    """Send pieces one after the other; return what comes back, and `<closed>` where the peer closed
    the connection.

    With `size`, stop as soon as so many bytes came.
    """
    said = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                sock.sendall(piece)
                if len(pieces) > 1:
                    time.sleep(0)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it closed before it read everything; its last reply can still be read
        while size is None or len(said) < size:
            sock.settimeout(_QUIET_S if size is None else 10)
            try:
                data = sock.recv(1 << 20)
            except TimeoutError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                said += b"<closed>"
                break
            said += data
    return bytes(said)


def pieces_of(data: bytes, size: int) -> list[bytes]:
    """Cut bytes into pieces of a size."""
    return [data[at : at + size] for at in range(0, len(data), size)] or [b""]
