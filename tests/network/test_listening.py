"""The options of the listening socket, which accepted ones inherit."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from krait_ws.config import Config
from krait_ws.network.listening import new_listener
from tests.helpers import DEADLINE

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a socket choose")


@contextmanager
def accepted(host: str, to: str) -> Iterator[socket.socket]:
    """What a client that connects to the address ``to`` becomes."""
    with new_listener(Config(host=host, port=0)) as listener:
        listener.settimeout(DEADLINE)
        with socket.create_connection((to, listener.getsockname()[1]), timeout=DEADLINE):
            sock, _ = listener.accept()
            with sock:
                yield sock


def congestion_control(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def test_no_write_waits_for_another() -> None:
    with accepted("127.0.0.1", "127.0.0.1") as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@linux_only
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_clients_on_the_same_machine_are_not_paced(host: str) -> None:
    with accepted(host, host) as sock:
        assert congestion_control(sock) == "reno"


@linux_only
def test_for_others_the_system_chooses() -> None:
    with accepted("0.0.0.0", "127.0.0.1") as sock:
        chosen = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
        assert congestion_control(sock) == chosen
