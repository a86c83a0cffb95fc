"""Which clients a gateway knows to be clients of a cluster."""

from __future__ import annotations

from types import SimpleNamespace

from exodus.gateway.client_names import ClientName, ClusterClients
from exodus.plan.bounds import CLUSTER_CLIENTS_MAX


def _connection(number: int, library: str) -> object:
    raw = (
        b"*4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$8\r\nLIB-NAME\r\n$3\r\n%b\r\n" % library.encode()
    )
    replay = {"setinfo lib-name": raw} if library else {}
    state = SimpleNamespace(name=b"app-%d" % number, replay=replay)
    return SimpleNamespace(session=SimpleNamespace(state=state), host="10.0.0.1")


def test_clients_beyond_the_bound_are_counted() -> None:
    clients = ClusterClients()
    for number in range(CLUSTER_CLIENTS_MAX + 3):
        clients.note(_connection(number, "lib"))  # type: ignore[arg-type]
    assert clients.left_out == 3
    for _ in range(2):  # nothing new
        clients.note(_connection(1, ""))  # type: ignore[arg-type]
    assert clients.left_out == 3
    assert clients.has(ClientName("app-1", "", "10.0.0.1"))
    assert clients.has(ClientName("another", "lib", "10.0.0.1"))
    assert not clients.has(ClientName(f"app-{CLUSTER_CLIENTS_MAX}", "", "10.0.0.1"))
    assert not clients.has(ClientName("app-1", "", "10.0.0.2"))
