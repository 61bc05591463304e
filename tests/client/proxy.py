"""A TCP proxy that injects faults between a client and a server, also a foreign one.

::

    with Proxy(site.port) as proxy:
        connection = Connection(proxy.url("/echo"))
        ...
        proxy.cut()

Every method takes effect before it returns: an event for the connections that are open, a state also for those
that come. Thread: any; one thread of the proxy owns all sockets.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

_BUFFER = 1 << 16
"""Bytes that are held per direction; a sender is stopped by TCP beyond that."""

DEADLINE = 10.0


class Proxy:
    """Listens on a free port of the loopback interface and passes everything on to ``port``."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.accepted = 0
        """Connections that were taken so far, those that got a canned answer too."""
        self._target = (host, port)
        self._pairs: list[_Pair] = []
        self._answers: list[bytes] = []
        self._stalled = False
        self._chunk, self._pause = _BUFFER, 0.0
        self._calls: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._running = True
        self._wake_in, self._wake_out = socket.socketpair()
        # It never listens, and keeps the port for us while we refuse: any connection of this machine might get it else.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        self._holder.bind(("127.0.0.1", 0))
        self.port: int = self._holder.getsockname()[1]
        self._listener: socket.socket | None = self._listen()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()

    def url(self, path: str = "/", scheme: str = "ws") -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    @property
    def open(self) -> int:
        """Connections to the client that are open now."""
        return len(self._pairs)

    # ---- events

    def cut(self) -> None:
        """Both sides see an orderly end of TCP (FIN), without a WebSocket close."""
        self._do(self._cut)

    def reset(self) -> None:
        """Both sides see a TCP reset (RST)."""
        self._do(lambda: self._cut(reset=True))

    def half_open(self) -> None:
        """The server sees the end; the client sees nothing at all, and what it sends is swallowed."""
        self._do(lambda: [pair.lose_server() for pair in self._pairs])

    # ---- states

    def stall(self) -> None:
        """Nothing passes in any direction until ``resume``; connections stay and new ones are accepted."""
        self._do(lambda: self._set_stalled(True))

    def resume(self) -> None:
        """Ends ``stall``: what was held passes."""
        self._do(lambda: self._set_stalled(False))

    def slow(self, chunk: int, pause: float = 0.0) -> None:
        """At most ``chunk`` bytes per direction pass at once, ``pause`` seconds apart. ``slow(1)``: byte by byte."""
        self._do(lambda: self._set_pace(chunk, pause))

    def fast(self) -> None:
        """Ends ``slow``."""
        self._do(lambda: self._set_pace(_BUFFER, 0.0))

    def refuse(self) -> None:
        """New connections are refused by TCP; those that are open stay."""
        self._do(self._stop_listening)

    def accept(self) -> None:
        """Ends ``refuse``, on the same port."""
        self._do(self._start_listening)

    def answer(self, status: str = "503 Service Unavailable", *, times: int = 1, headers: str = "") -> None:
        """The next ``times`` requests get this answer; later ones are passed on. ``headers`` are whole lines."""
        head = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n".encode()
        self._do(lambda: self._answers.extend([head] * times))

    def close(self) -> None:
        """Cuts everything and stops."""
        if self._running:
            self._do(self._stop)
            self._thread.join(DEADLINE)
            self._wake_in.close()
            self._wake_out.close()
            self._holder.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- the thread

    def _do(self, function: Callable[[], object]) -> None:
        done = threading.Event()
        failed: list[BaseException] = []

        def call() -> None:
            try:
                function()
            except BaseException as error:
                failed.append(error)
            done.set()

        with self._lock:
            self._calls.append(call)
        self._wake_out.send(b"x")
        assert done.wait(DEADLINE), "the proxy's thread hangs"
        if failed:
            raise failed[0]

    def _run(self) -> None:
        while self._running:
            with selectors.DefaultSelector() as selector:
                selector.register(self._wake_in, selectors.EVENT_READ)
                if self._listener is not None:
                    selector.register(self._listener, selectors.EVENT_READ)
                timeout = None
                for pair in self._pairs:
                    for way in pair.ways:
                        timeout = way.register(selector, self._stalled, timeout)
                ready = {key.fileobj for key, _ in selector.select(timeout)}
            if self._wake_in in ready:
                self._wake_in.recv(4096)
                with self._lock:
                    calls, self._calls = self._calls, []
                for call in calls:
                    call()
                continue  # the sockets may be others now
            if self._listener in ready:
                self._take()
            if not self._stalled:
                for pair in list(self._pairs):
                    pair.move(ready, self._chunk, self._pause)
                    if pair.is_over:
                        pair.close()
                        self._pairs.remove(pair)

    def _take(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        self.accepted += 1
        if self._answers:
            self._pairs.append(_Pair(client, None, self._answers.pop(0)))
            return
        try:
            self._pairs.append(_Pair(client, socket.create_connection(self._target, DEADLINE)))
        except OSError:
            client.close()  # as if the server's machine said so

    def _listen(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", self.port), backlog=128)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _start_listening(self) -> None:
        if self._listener is None:
            self._listener = self._listen()

    def _set_stalled(self, stalled: bool) -> None:
        self._stalled = stalled

    def _set_pace(self, chunk: int, pause: float) -> None:
        self._chunk, self._pause = chunk, pause

    def _cut(self, reset: bool = False) -> None:
        for pair in self._pairs:
            pair.close(reset)
        self._pairs.clear()

    def _stop(self) -> None:
        self._stop_listening()
        self._cut()
        self._running = False


class _Pair:
    """A client, its server, and the two ways between them."""

    def __init__(self, client: socket.socket, server: socket.socket | None, answer: bytes = b"") -> None:
        self._client = client
        self._server = server
        self._answer = answer
        for sock in (client, server):
            if sock is not None:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.ways = [_Way(client, server), _Way(server, client)]

    @property
    def is_over(self) -> bool:
        """A side has ended and the other has been told everything."""
        return any(way.is_over for way in self.ways)

    def move(self, ready: set[object], chunk: int, pause: float) -> None:
        for way in self.ways:
            way.move(ready, chunk, pause)
        up, down = self.ways
        if self._answer and b"\r\n\r\n" in up.swallowed:
            down.buffer += self._answer
            down.ended = True
            self._answer = b""

    def lose_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.ways = [_Way(self._client, None), _Way(None, self._client)]

    def close(self, reset: bool = False) -> None:
        for sock in (self._client, self._server):
            if sock is not None:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()


class _Way:
    """Bytes from one socket to another; ``None`` gives nothing, and swallows what it gets."""

    def __init__(self, source: socket.socket | None, sink: socket.socket | None) -> None:
        self._source = source
        self._sink = sink
        self.buffer = bytearray()
        self.swallowed = b""
        self.ended = False
        self._next_at = 0.0

    @property
    def is_over(self) -> bool:
        return self.ended and not self.buffer

    def register(self, selector: selectors.BaseSelector, stalled: bool, timeout: float | None) -> float | None:
        """Says what it waits for. Returns the seconds until it wants to go on without any event."""
        if stalled:
            return timeout
        if self._source is not None and not self.ended and len(self.buffer) < _BUFFER:
            self._watch(selector, self._source, selectors.EVENT_READ)
        if self._sink is not None and self.buffer:
            wait = self._next_at - time.monotonic()
            if wait > 0:
                return wait if timeout is None else min(wait, timeout)
            self._watch(selector, self._sink, selectors.EVENT_WRITE)
        return timeout

    def move(self, ready: set[object], chunk: int, pause: float) -> None:
        if self._source in ready and not self.ended and len(self.buffer) < _BUFFER:
            self._read(self._source)
        if self._sink in ready and self.buffer and time.monotonic() >= self._next_at:
            with contextlib.suppress(BlockingIOError):
                try:
                    del self.buffer[: self._sink.send(self.buffer[:chunk])]
                except (ConnectionError, BrokenPipeError):
                    self.buffer.clear()
                    self.ended = True
                self._next_at = time.monotonic() + pause

    def _read(self, source: socket.socket) -> None:
        try:
            data = source.recv(_BUFFER)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
        elif self._sink is None:
            self.swallowed = (self.swallowed + data)[-_BUFFER:]
        else:
            self.buffer += data

    def _watch(self, selector: selectors.BaseSelector, sock: socket.socket, event: int) -> None:
        try:
            known = selector.get_key(sock).events
        except KeyError:
            selector.register(sock, event)
        else:
            selector.modify(sock, known | event)
