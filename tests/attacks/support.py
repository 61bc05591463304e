"""The site that is attacked, and what attacks are made of."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from krait_ws.testing import SiteServer
from tests.helpers import MASK
from tests.integration.support import (
    BINARY,
    CLOSE,
    PATIENCE,
    PING,
    PONG,
    TEXT,
    RawClient,
    close_frame,
    eventually,
    frame,
    upgrade_request,
    write_site,
)

ZEROS = bytes(4)
DEFLATE = ("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",)

_CONTROLLER = "from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse\n"
_ACCEPT = "\ndef websocket(request):\n    return WebsocketsResponse(Controller())\n"


def _controller(body: str) -> str:
    return f"{_CONTROLLER}\nclass Controller(WebsocketsCtrlBase):\n{body}{_ACCEPT}"


_EVENTS = (
    "    def __init__(self):\n        super().__init__(use_in_message_queue=False)\n"
    "    def on_in_message(self, message):\n        {}\n"
)
SITE: dict[str, str | bytes] = {
    "loop.py": _controller('    runs_on = "loop"\n' + _EVENTS.format("self.push_out_message(message)")),
    "sink.py": _controller('    runs_on = "loop"\n' + _EVENTS.format("pass")),
    "handler.py": _controller(
        "    def on_thread_start(self):\n        for message in self.messages():\n"
        "            self.push_out_message(message)\n"
    ),
    "idle.py": _controller("    def on_thread_start(self):\n        self.wait_stop()\n"),
    "pushes.py": _controller(
        "    def on_thread_start(self):\n        while self.push_out_message(bytes(60_000)):\n            pass\n"
    ),
    "pieces.py": _controller(
        '    runs_on = "greenlet"\n    stream_messages = True\n'
        "    def on_thread_start(self):\n        try:\n"
        "            for message in self.messages():\n"
        "                self.push_out_message(str(sum(len(chunk) for chunk in message)))\n"
        "        except ConnectionError:\n            pass\n"
        "        except Exception as error:\n"
        '            if type(error).__name__ != "ConnectionEndedError":\n                raise\n'
    ),
    "body.py": "import krait_ws\n\ndef http(request):\n    return krait_ws.Response(str(len(request.get_data())))\n",
    "client.py": (
        "import krait_ws\n\ndef http(request):\n"
        '    return krait_ws.Response(f"{request.remote_addr} {request.scheme} {request.host}")\n'
    ),
    "to.py": (
        "import krait_ws\n\ndef http(request):\n    return krait_ws.ResponseRedirect(request.args.get('url', '/'))\n"
    ),
    "chosen.py": (
        f"{_CONTROLLER}\ndef websocket(request):\n"
        "    return WebsocketsResponse(WebsocketsCtrlBase(), (request.protocols or [None])[0])\n"
    ),
    "rooms/[room].py": (
        "import krait_ws\n\ndef http(request):\n    return krait_ws.Response(repr(request.params['room']))\n"
    ),
    "page.html": "<p>page",
    "folder/index.html": "<p>folder",
    "_private/secret.txt": "secret",
    ".hidden": "secret",
}


class Polite(RawClient):
    """A client that knows how long it said nothing: a busy machine makes it slower than the server allows.

    Attributes:
        silence: The longest time between two things that it sent, the first of them the beginning of its connection.
    """

    def __init__(self, port: int) -> None:
        self.silence = 0.0
        self._spoke_at = time.monotonic()
        super().__init__(port, upgrade=False)

    def send(self, data: bytes) -> None:
        super().send(data)
        self.note_time()

    def note_time(self) -> None:
        now = time.monotonic()
        self.silence = max(self.silence, now - self._spoke_at)
        self._spoke_at = now


class Attacked:
    """A server under attack.

    Args:
        folder: For its site.
        options: Settings; times are short, so that attacks end soon.
    """

    def __init__(self, folder: Path, **options: object) -> None:
        times = {
            "keep_alive_timeout": 1.0, "close_timeout": 1.0, "push_timeout": 1.0, "send_timeout": 1.0,
            "ping_interval": 0.5, "ping_timeout": 0.5, "stop_timeout": 2.0,
        }  # fmt: skip
        # Larger than what the kernel's buffers hold.
        site = {**SITE, "large.bin": bytes(30 << 20)}
        self.server = SiteServer(write_site(folder, site), **{**times, **options})
        self.port = self.server.port
        self.has_options = bool(options)
        # What a flood leaves in the kernel is worked off after it: megabytes take many seconds. See flood() too.
        self.server.server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)

    def client(self, path: str = "/loop", headers: tuple[str, ...] = (), **options: object) -> RawClient:
        return RawClient(self.port, path, headers=headers, **options)  # type: ignore[arg-type]

    def open(self) -> socket.socket:
        """A connection that says nothing yet."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def serves_others(self) -> None:
        """A polite client is served, whichever way its controller runs."""

        def talk(client: Polite, path: str) -> None:
            client.send(upgrade_request(path))
            client.read_head()
            assert client.status == 101, client.head
            client.send_frame(TEXT, "hello")
            deadline = time.monotonic() + PATIENCE
            while (received := client.receive_frame()).opcode == PING:
                assert time.monotonic() < deadline, "nothing but pings"
                client.send_frame(PONG, received.payload)
            assert (received.opcode, received.payload) == (TEXT, b"hello")
            client.send(close_frame(1000))
            while (received := client.receive_frame()).opcode == PING:
                pass
            assert received.opcode == CLOSE

        def get_page(client: Polite) -> None:
            client.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.read_answer().status == 200

        for path in ("/loop", "/handler"):
            self._serves(partial(talk, path=path))
        self._serves(get_page)

    def _serves(self, talk: Callable[[Polite], None]) -> None:
        """``talk`` goes well. Where it does not it is tried again, if the client was slower than the server allows."""
        config = self.server.server.config
        allowed = min(config.handshake_timeout, config.ping_interval + config.ping_timeout)

        def goes_well() -> bool:
            client = Polite(self.port)
            try:
                with client:
                    talk(client)
            except (AssertionError, OSError):
                client.note_time()
                if client.silence < allowed:
                    raise
                return False
            return True

        eventually(goes_well, what="a polite client is served")

    @property
    def sessions(self) -> int:
        return len(self.server.server.sessions)

    @property
    def http_connections(self) -> int:
        return len(self.server.server._http_connections)

    def lets_go(self) -> None:
        """Nothing of the attackers is left."""
        eventually(lambda: not self.sessions, what="sessions end")
        eventually(lambda: not self.http_connections, what="HTTP connections end")


def memory() -> int:
    """Resident bytes of the process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def many(opcode: int, payload: bytes = b"", *, size: int = 1 << 16, fin: bool = True, reserved: int = 0) -> bytes:
    """As many equal frames as fill ``size`` bytes."""
    # Masking with zeros changes nothing and costs nothing here.
    head = bytearray(frame(opcode, b"", fin=fin, reserved=reserved)[:1])
    assert len(payload) < 126
    one = bytes(head) + bytes((0x80 | len(payload),)) + ZEROS + payload
    return one * (size // len(one))


def plain_frame(opcode: int, payload: bytes, *, fin: bool = True, reserved: int = 0) -> bytes:
    """A frame of any size, made fast: its mask is zeros."""
    size = len(payload)
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    return head + ZEROS + payload


def compressed(parts: Iterable[bytes], *, last_block: bool = False) -> bytes:
    """The payload of a compressed message, made from parts so that it need not fit into memory inflated."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    made = b"".join(map(compressor.compress, parts))
    if last_block:
        return made + compressor.flush(zlib.Z_FINISH)
    return (made + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def zeros(megabytes: int) -> bytes:
    """The payload of a compressed message of zeros. Each megabyte but the first refers to the same one before it, so
    they are all compressed to the same bytes."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    first, second = (compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(2))
    return (first + second * (megabytes - 1))[:-4]


def send_for(client: RawClient, data: bytes, count: int) -> int:
    """Sends ``data`` ``count`` times, or until the server has closed. Returns how often it was sent."""
    for sent in range(count):
        try:
            client.send(data)
        except (ConnectionError, TimeoutError):
            return sent
    return count


@contextmanager
def flood(attacked: Attacked, data: bytes, *, path: str = "/sink", clients: int = 4, count: int = 30,
          headers: tuple[str, ...] = (), begin: bytes = b"") -> Iterator[None]:  # fmt: skip
    """Clients that send while the body runs, at least until they have sent ``count`` times."""
    stop = threading.Event()

    def attack(client: RawClient) -> None:
        with suppress(OSError):
            client.send(begin)
            sent = 0
            while sent < count or not stop.is_set():
                client.send(data)
                sent += 1

    with ExitStack() as stack:
        attackers = [stack.enter_context(attacked.client(path, headers)) for _ in range(clients)]
        threads = [threading.Thread(target=attack, args=(client,), daemon=True) for client in attackers]
        for client in attackers:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
            assert not any(thread.is_alive() for thread in threads), "the server stopped reading"


def half_written_request(path: str = "/page") -> bytes:
    return upgrade_request(path)[:-2]


__all__ = [
    "BINARY", "DEFLATE", "MASK", "SITE", "Attacked", "compressed", "flood", "half_written_request", "many", "memory",
    "plain_frame", "send_for", "zeros",
]  # fmt: skip
