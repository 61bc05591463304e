"""What tests with a real server share: waiting with a deadline, a raw WebSocket client, raw HTTP, a watch for leaks.

The raw client has a frame codec of its own, so that an error in krait-ws cannot cancel itself out here. It sends what
no polite client would, and it closes itself in every rude way.
"""

from __future__ import annotations

import base64
import gc
import itertools
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent.hub import Hub
from greenlet import getcurrent, greenlet

from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse

PATIENCE = 20.0
"""Seconds that a test waits for something that should come at once; the machine may be busy."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
POLLERS = ("epoll", "watchers")
T = TypeVar("T")


def eventually(condition: Callable[[], T], timeout: float = PATIENCE, what: str = "") -> T:
    """Polls until ``condition`` is true, and returns what it gave.

    Raises:
        AssertionError: It was not within ``timeout`` seconds; ``what`` says what was waited for.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what or condition}"
        time.sleep(0.005)


class Gate:
    """Holds handlers until a test opens it, whatever they run on: a greenlet must not block in ``threading``."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def wait(self, timeout: float = PATIENCE) -> None:
        deadline = time.monotonic() + timeout
        while not self._open.is_set():
            assert time.monotonic() < deadline, f"nobody opened the gate within {timeout:g} s"
            if isinstance(getcurrent().parent, Hub):
                gevent.sleep(0.005)
            else:
                self._open.wait(0.005)


# ---- sites

made: dict[str, Callable[..., Any]] = {}
"""What the route scripts that ``route`` wrote call; the test and the server share one process."""

_numbers = itertools.count()


def write_site(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Writes files, with the folders they need, and returns the folder."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def route(answer: Callable[..., Any]) -> str:
    """The text of a route script whose upgrades are answered by a controller class, or by a function of the request
    that returns a controller or an answer."""
    key = f"answer-{next(_numbers)}"

    def websocket(request: Any) -> Any:
        given = answer() if isinstance(answer, type) else answer(request)
        return WebsocketsResponse(given) if isinstance(given, WebsocketsCtrlBase) else given

    made[key] = websocket
    return f"from {__name__} import made\n\n\ndef websocket(request):\n    return made[{key!r}](request)\n"


class HandlerEcho(WebsocketsCtrlBase):
    """The queue model."""

    def on_thread_start(self) -> None:
        for message in self.messages():
            self.push_out_message(message)


class EventEcho(WebsocketsCtrlBase):
    """The event model."""

    def __init__(self) -> None:
        super().__init__(use_in_message_queue=False)

    def on_in_message(self, message: Any) -> None:
        self.push_out_message(message)


FLAVOURS: dict[str, tuple[str, type[WebsocketsCtrlBase]]] = {
    "thread": ("thread", HandlerEcho),
    "thread-events": ("thread", EventEcho),
    "greenlet": ("greenlet", HandlerEcho),
    "greenlet-events": ("greenlet", EventEcho),
    "loop": ("loop", EventEcho),
}
"""Every way to run a controller that echoes: its ``runs_on`` and its class."""


# ---- the raw client


def mask_payload(payload: bytes, key: bytes) -> bytes:
    """RFC 6455 section 5.3; masking and unmasking are the same."""
    size = len(payload)
    pattern = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")


def frame(
    opcode: int, payload: bytes | str = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0
) -> bytes:
    """One frame of a client, or one that no client may send."""
    data = payload.encode() if isinstance(payload, str) else payload
    size = len(data)
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first, mask_bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, size)
    if not masked:
        return head + data
    key = secrets.token_bytes(4)
    return head + key + mask_payload(data, key)


def close_frame(code: int | None = None, reason: str = "") -> bytes:
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason.encode())


@dataclass
class Frame:
    """One frame of the server."""

    fin: bool
    opcode: int
    payload: bytes


class ServerIsGone(AssertionError):
    """The server ended the stream."""


class RawClient:
    """A WebSocket client made of a socket. A context manager that closes the socket.

    Args:
        port: Of the server, on the loopback interface.
        path: Of the URL.
        headers: Further lines of the request's head.
        behind: Bytes sent in the same packet behind the handshake.
        receive_buffer: Bytes of the socket's receive buffer; small ones let the server's sends block early.
        upgrade: ``False`` only connects.
    """

    def __init__(
        self,
        port: int,
        path: str = "/",
        *,
        headers: tuple[str, ...] = (),
        behind: bytes = b"",
        receive_buffer: int | None = None,
        upgrade: bool = True,
        timeout: float = PATIENCE,
    ) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._buffer = bytearray()
        self.status = 0
        self.head = ""
        try:
            self.sock.connect(("127.0.0.1", port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if upgrade:
                self.send(upgrade_request(path, headers) + behind)
                self.read_head()
                assert self.status == 101, self.head
        except BaseException:
            self.sock.close()
            raise

    def read_head(self) -> None:
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        self.head = head.decode("latin-1")
        self.status = int(self.head.split(" ", 2)[1])

    def read_answer(self) -> RawAnswer:
        """The next HTTP answer, which has a Content-Length."""
        self.read_head()
        headers = parse_headers(self.head)
        return RawAnswer(self.status, headers, self._take(int(headers["content-length"])))

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def buffered(self) -> bytes:
        """What arrived together with the last thing that was received. For a test that goes on with ``sock``."""
        taken = bytes(self._buffer)
        self._buffer.clear()
        return taken

    def send_frame(self, opcode: int, payload: bytes | str = b"", **options: Any) -> None:
        self.send(frame(opcode, payload, **options))

    def receive_frame(self) -> Frame:
        """The next frame.

        Raises:
            ServerIsGone: The stream ended.
        """
        first, second = self._take(2)
        assert not second & 0x80, "a server must not mask"
        assert not first & 0x70, "a reserved bit is set"
        size = second
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return Frame(first >= 0x80, first & 0x0F, bytes(self._take(size)))

    def receive(self) -> str | bytes:
        """The next message; no control frame may come before it."""
        received = self.receive_frame()
        assert received.fin
        assert received.opcode in (TEXT, BINARY), received
        return received.payload.decode() if received.opcode == TEXT else received.payload

    def expect(self, message: str | bytes) -> None:
        received = self.receive()
        assert received == message, f"expected {message[:100]!r}, received {received[:100]!r}"

    def expect_close(self, code: int | None, *, answer: bool = True) -> str:
        """The next frame closes with ``code``; then the stream ends. Returns the reason."""
        received = self.receive_frame()
        assert received.opcode == CLOSE, received
        got = int.from_bytes(received.payload[:2], "big") if received.payload else None
        reason = received.payload[2:].decode()
        assert got == code, f"expected a close with {code}, got {got} {reason!r}"
        if answer:
            with suppress(OSError):  # the server was the one to answer, and has closed
                self.send(frame(CLOSE, received.payload[:2]))
        self.expect_end()
        return reason

    def skip_to_close(self) -> tuple[list[str | bytes], int | None, str]:
        """The messages until the close frame, its code and reason. Answers it."""
        messages: list[str | bytes] = []
        while (received := self.receive_frame()).opcode != CLOSE:
            messages.append(received.payload.decode() if received.opcode == TEXT else received.payload)
        self.send(frame(CLOSE, received.payload[:2]))
        code = int.from_bytes(received.payload[:2], "big") if received.payload else None
        return messages, code, received.payload[2:].decode()

    def expect_end(self) -> None:
        """The server ends the stream and sends nothing more."""
        assert not self._buffer, bytes(self._buffer)
        try:
            data = self.sock.recv(1)
        except ConnectionResetError:
            data = b""
        assert data == b"", data

    def send_until_blocked(self, chunk: bytes, limit: int, stuck_after: float = 0.5) -> tuple[int, bytes]:
        """Sends ``chunk`` again and again until the server has taken nothing for ``stuck_after`` seconds.

        Returns:
            How many chunks went out in whole or in part, and the unsent rest of the last.

        Raises:
            AssertionError: The server took ``limit`` bytes.
        """
        self.sock.settimeout(stuck_after)
        count = sent = 0
        try:
            while True:
                count += 1
                rest = memoryview(chunk)
                while rest:
                    taken = self.sock.send(rest)
                    rest = rest[taken:]
                    sent += taken
                assert sent < limit, f"the server goes on reading after {sent} bytes that nobody takes"
        except TimeoutError:
            return count, bytes(rest)
        finally:
            self.sock.settimeout(PATIENCE)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Ends the connection with an RST, as a crash would."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def half_close(self) -> None:
        """Ends our half with a FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _fill(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ServerIsGone(f"the server ended the stream; unread: {bytes(self._buffer)!r}")
        self._buffer += data


def upgrade_request(path: str = "/", headers: tuple[str, ...] = ()) -> bytes:
    """The head of an upgrade request; a header given here takes the place of the usual one."""
    usual = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
        "Sec-WebSocket-Version": "13",
    }
    given = [line.partition(":")[0] for line in headers]
    lines = [f"{name}: {value}" for name, value in usual.items() if name not in given]
    lines += [line for line in headers if not line.endswith(": -")]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


# ---- raw HTTP


@dataclass
class RawAnswer:
    status: int
    headers: dict[str, str]
    body: bytes


def parse_headers(head: str) -> dict[str, str]:
    """Names in lower case → values; of a head with or without its first line."""
    fields = (line.partition(":") for line in head.split("\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in fields}


def http_exchange(port: int, request: bytes) -> list[RawAnswer]:
    """Sends bytes, reads until the server ends the stream, and returns the answers. Each needs a Content-Length, but
    for the last."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        sock.sendall(request)
        received = bytearray()
        while data := sock.recv(1 << 16):
            received += data
    answers = []
    while received:
        head, _, rest = bytes(received).partition(b"\r\n\r\n")
        headers = parse_headers(head.decode("latin-1"))
        size = int(headers.get("content-length", len(rest)))
        answers.append(RawAnswer(int(head.split(b" ", 2)[1]), headers, rest[:size]))
        received = bytearray(rest[size:])
    return answers


def raw_get(port: int, target: bytes, *headers: bytes, method: bytes = b"GET") -> RawAnswer:
    """One request whose target goes out byte by byte as it is."""
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: localhost", b"Connection: close", *headers, b"", b""]
    answers = http_exchange(port, b"\r\n".join(lines))
    assert len(answers) == 1, answers
    return answers[0]


# ---- leaks


def open_descriptors() -> dict[str, str]:
    """Descriptor → what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one of the listing
    return found


def native_threads() -> set[str]:
    """Every thread of the process: those of gevent's pools are unknown to ``threading``."""
    return set(os.listdir("/proc/self/task"))


def living_greenlets() -> list[greenlet]:
    """Greenlets that were started and have not ended, but for the main one of each thread."""
    gc.collect()
    return [
        found
        for found in gc.get_objects()
        if isinstance(found, greenlet) and not found.dead and found and found.parent is not None
    ]


@contextmanager
def no_leaks(*, greenlets: bool = False) -> Iterator[None]:
    """Threads and descriptors, on request greenlets too, must be as many afterwards as before."""
    threads = len(native_threads())
    descriptors = len(open_descriptors())
    greenlets_before = len(living_greenlets()) if greenlets else 0
    yield

    def is_clean() -> bool:
        if len(native_threads()) > threads or len(open_descriptors()) > descriptors:
            gc.collect()  # a reference cycle may still hold a socket
            return False
        return not greenlets or len(living_greenlets()) <= greenlets_before

    try:
        eventually(is_clean)
    except AssertionError:
        names = [thread.name for thread in threading.enumerate()]
        left = f"{names} of {len(native_threads())} threads (before: {threads}); "
        left += f"{open_descriptors()} (before: {descriptors})"
        if greenlets:
            left += f"; {living_greenlets()} (before: {greenlets_before})"
        raise AssertionError(f"left behind: {left}") from None
