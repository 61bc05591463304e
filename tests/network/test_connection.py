"""A connection alone, on a socket that takes bytes when the test says so."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from krait_ws.config import Config
from krait_ws.network.connection import Connection
from krait_ws.network.loop import Loop
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import DEADLINE, TEXT, close_frame, frame, own_thread, upgrade_request
from tests.network.support import new_loop, spin, tcp_pair, turns


class Stubborn:
    """A socket that takes nothing while it is told not to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.takes = True

    def send(self, data: bytes) -> int:
        if not self.takes:
            raise BlockingIOError
        return self._sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@contextmanager
def connected(loop: Loop) -> Iterator[tuple[WebsocketsCtrlBase, Stubborn, socket.socket]]:
    """A controller, the socket of its connection, and the peer's."""
    with tcp_pair() as (ours, peer):
        controller = WebsocketsCtrlBase()
        session = controller._krait
        over: list[Any] = []
        session.accept(loop, Config(), upgrade_request(), None, over.append)
        sock = Stubborn(ours)
        connection = Connection(loop, sock, session, b"")  # type: ignore[arg-type]
        yield controller, sock, peer
        connection.abort()
        spin(lambda: over, "the end")


def received(peer: socket.socket) -> bytes:
    """What comes until the end of the stream."""
    peer.setblocking(False)
    data = bytearray()
    ended: list[bool] = []

    def read() -> bool:
        try:
            while part := peer.recv(1 << 16):
                data.extend(part)
            ended.append(True)
        except BlockingIOError:
            pass
        return bool(ended)

    spin(read, f"the end of the stream within {DEADLINE:g} s")
    return bytes(data)


@own_thread
def test_close_frames_that_cross_are_both_sent() -> None:
    """Failed: TCP was closed when the peer's came, while the socket had not taken ours yet."""
    with new_loop() as loop, connected(loop) as (controller, sock, peer):
        sock.takes = False
        controller.close(4000)
        turns()
        peer.sendall(close_frame(1000))
        turns()
        sock.takes = True
        assert received(peer) == bytes((0x88, 2)) + (4000).to_bytes(2, "big")
        assert controller.close_code == 4000


@own_thread
def test_a_fault_behind_our_close_frame_costs_the_peer_nothing_of_what_was_sent() -> None:
    """Failed: TCP was closed with bytes unread, which resets it."""
    with new_loop() as loop, connected(loop) as (controller, _, peer):
        controller.push_out_message("last words")
        controller.close(1000)
        turns()
        peer.sendall(frame(TEXT, b"no mask", mask=None) + bytes(100_000))
        turns()
        assert received(peer) == bytes((0x81, 10)) + b"last words" + bytes((0x88, 2)) + (1000).to_bytes(2, "big")
