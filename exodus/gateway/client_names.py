"""Who the clients of a gateway are: the names that they gave, their libraries, their hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from exodus.plan.bounds import CLUSTER_CLIENTS_MAX, REPORTING_NAME_CHARS_MAX

if TYPE_CHECKING:
    from exodus.gateway.relay import Connection

_LIBRARY = ("setinfo lib-name", "setinfo lib-ver")  # of `SessionState.replay`


class ClientName(NamedTuple):
    """What a client says of itself, and its host."""

    name: str  # CLIENT SETNAME; may be empty
    library: str  # CLIENT SETINFO, with its version; may be empty
    host: str


def name_of(connection: Connection) -> ClientName:
    """Return who a connection's client is."""
    state = connection.session.state
    parts = [state.replay[word].rsplit(b"\r\n", 2)[1] for word in _LIBRARY if word in state.replay]
    return ClientName(_shown(state.name), _shown(b" ".join(parts)), connection.host)


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "backslashreplace")[:REPORTING_NAME_CHARS_MAX]


class ClusterClients:
    """Clients that asked for the nodes of a cluster, since the process began.

    A cluster client asks on one of its connections, which it may close at once. So another
    connection from the same host with the same name, or of the same library, is of such a client.
    """

    def __init__(self) -> None:
        self._named: set[tuple[str, str]] = set()  # host and name
        self._libraries: set[tuple[str, str]] = set()  # host and library
        self.left_out = 0  # beyond the bound

    def note(self, connection: Connection) -> None:
        """Note that a connection asked. Beyond a bound it is only counted."""
        client = name_of(connection)
        wanted = [(self._named, (client.host, client.name))]
        if client.library:
            wanted.append((self._libraries, (client.host, client.library)))
        for kept, entry in wanted:
            if entry in kept:
                continue
            if len(kept) < CLUSTER_CLIENTS_MAX:
                kept.add(entry)
            else:
                self.left_out += 1

    def has(self, client: ClientName) -> bool:
        """Tell whether a client is a cluster client."""
        known_library = bool(client.library) and (client.host, client.library) in self._libraries
        return known_library or (client.host, client.name) in self._named
