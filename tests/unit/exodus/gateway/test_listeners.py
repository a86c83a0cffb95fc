"""Listening sockets of several listeners, and their handover to a successor."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from exodus.gateway.listeners import Offer, listen_all, take_over
from exodus.plan.bounds import LISTENERS_FDS_AT_ONCE
from tests.support.cluster_gateway import free_ports


def test_each_listener_has_a_port_and_each_worker_a_socket_of_it() -> None:
    first = free_ports(3)
    sockets = listen_all("127.0.0.1", first, 3, 2)
    try:
        assert [sock.getsockname()[1] - first for sock in sockets] == [0, 0, 1, 1, 2, 2]
    finally:
        for sock in sockets:
            sock.close()


def test_a_port_in_use_closes_the_others() -> None:
    first = free_ports(3)
    with socket.create_server(("127.0.0.1", first + 2)), pytest.raises(OSError, match="in use"):
        listen_all("127.0.0.1", first, 3, 1)
    for sock in listen_all("127.0.0.1", first, 3, 1):
        sock.close()


@pytest.mark.parametrize("workers", [1, 40])
def test_more_sockets_than_one_message_takes_are_handed_over(workers: int, tmp_path: Path) -> None:
    first = free_ports(8)
    sockets = listen_all("127.0.0.1", first, 8, workers)
    assert (len(sockets) > LISTENERS_FDS_AT_ONCE) is (workers > 1)
    offer = Offer(tmp_path / "offer", sockets)
    taken = take_over(tmp_path / "offer")
    try:
        assert taken is not None
        ports = [sock.getsockname()[1] for sock in taken.sockets]
        assert ports == [sock.getsockname()[1] for sock in sockets]
        taken.confirm()
        assert offer.taken.wait(10)
    finally:
        offer.close()
        for sock in (*sockets, *(taken.sockets if taken is not None else ())):
            sock.close()
        for thread in threading.enumerate():
            if thread.name == "takeover":
                thread.join(10)
