"""What the tests of the network parts share: a loop to be spun by hand, sockets, owners that note what they see."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent

from krait_ws.network.loop import Loop
from tests.helpers import DEADLINE


def spin(condition: Callable[[], Any], what: str) -> None:
    """Lets the hub of this thread run until the condition holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        gevent.sleep(0.001)


def turns(count: int = 20) -> None:
    """Gives the hub some turns: enough for everything that is ready now to have been served."""
    for _ in range(count):
        gevent.sleep(0.001)


@contextmanager
def new_loop(poller: str = "auto") -> Iterator[Loop]:
    """A loop on the hub of this thread."""
    loop = Loop(poller)
    try:
        yield loop
    finally:
        loop.close()


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one TCP connection: ours, which does not block, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), timeout=DEADLINE)
        ours, _ = listener.accept()
    ours.setblocking(False)
    with ours, peer:
        yield ours, peer


def until_readable(sock: socket.socket) -> None:
    """Something has come, or the end: on a busy machine the loopback interface may take a moment for it too. The loop
    stands still meanwhile."""
    readable, _, _ = select.select([sock], [], [], DEADLINE)
    assert readable, f"nothing came within {DEADLINE:g} s"


def reset(sock: socket.socket) -> None:
    """Ends a connection with an RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Owner:
    """Notes its events, and does with each what it is told."""

    def __init__(self, act: Callable[[int], object] = lambda events: None) -> None:
        self.events: list[int] = []
        self.aborted = 0
        self._act = act

    def on_ready(self, events: int) -> None:
        self.events.append(events)
        self._act(events)

    def abort(self) -> None:
        self.aborted += 1
