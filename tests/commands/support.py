"""A server that does exactly what a test says, byte by byte."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE = 30.0  # seconds


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(PATIENCE)
        self.request = ""
        self._bytes = b""

    def read_request(self) -> None:
        while b"\r\n\r\n" not in self._bytes:
            self._bytes += self._receive()
        head, _, self._bytes = self._bytes.partition(b"\r\n\r\n")
        self.request = head.decode()

    def accept(self, more: str = "", behind: bytes = b"") -> None:
        """Reads the request and answers with 101; ``behind`` goes out in the same packet."""
        self.read_request()
        found = re.search(r"Sec-WebSocket-Key: (\S+)", self.request)
        assert found
        digest = hashlib.sha1(found[1].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n" + more.encode() + b"\r\n" + behind
        )

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frame(self) -> tuple[int, bytes]:
        """The opcode and the payload of the client's next frame."""
        first, second = self._take(2)
        assert second & 0x80, "a client masks"
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        mask = self._take(4)
        masked = self._take(size)
        return first & 0x0F, bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked))

    def echoes(self, answer: Callable[[bytes], bytes]) -> None:
        """Answers each message with ``answer(payload)`` until the client closes, and answers its close."""
        while True:
            opcode, payload = self.frame()
            if opcode == 8:
                self.send(server_frame(0x88, payload))
                return
            if opcode in (1, 2):
                self.send(answer(payload))

    def _take(self, size: int) -> bytes:
        while len(self._bytes) < size:
            self._bytes += self._receive()
        taken, self._bytes = self._bytes[:size], self._bytes[size:]
        return taken

    def _receive(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the client is gone")
        return data


def server_frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    return bytes((first, 126)) + size.to_bytes(2, "big") + payload


@contextmanager
def server(behave: Callable[[Peer], None]) -> Iterator[str]:
    """Serves every connection with ``behave`` in a thread of its own. Gives the URL."""
    threads: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def run(sock: socket.socket) -> None:
        with sock, suppress(OSError):  # the client has gone: what it says is what the test looks at
            behave(Peer(sock))

    def listen() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threads.append(threading.Thread(target=run, args=(sock,), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=listen, daemon=True)
    accepting.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
