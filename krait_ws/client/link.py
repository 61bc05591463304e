"""One open connection to a server.

Comes in: messages from any thread. Goes out: messages in the order of arrival, to one reader at a time.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from websockets.exceptions import ConcurrencyError, ConnectionClosed, InvalidStatus
from websockets.http11 import Response
from websockets.protocol import OPEN, Event
from websockets.sync.client import ClientConnection

from krait_ws.client.errors import ConnectionBusyError, ConnectionClosedError, ConnectionUnavailableError

Message = str | bytes
"""Text is ``str``, binary is ``bytes``."""


class Link:
    """One open connection. It never comes back once it is over. Thread: any; one reader at a time.

    In a forked child it is the parent's: there its methods raise ``ConnectionUnavailableError``, and to close does
    nothing.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._process = os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether neither side has begun to close and the socket works, as far as it is known."""
        return self._websocket.state is OPEN

    @property
    def subprotocol(self) -> str | None:
        """The one that the server chose."""
        return self._websocket.subprotocol

    @property
    def last_frame_at(self) -> float:
        """When the last frame came from the server, a pong or a ping too, on the clock of ``time.monotonic``."""
        return self._websocket.last_frame_at

    def send(self, message: str | bytes | bytearray | memoryview) -> None:
        """Sends text or binary. Waits while the server does not read, at most ``send_timeout`` seconds.

        Raises:
            ConnectionClosedError: The connection is over, or the time was up and it is over now.
            TypeError: The message is of another type.
        """
        if not isinstance(message, str | bytes | bytearray | memoryview):
            raise TypeError(f"a message is str or bytes-like, not {type(message).__name__}")
        self._check_process()
        try:
            self._websocket.send(message)
        except ConnectionClosed as closed:
            raise _closed(closed) from closed

    def recv(self, timeout: float | None = None) -> Message:
        """The next message; an empty one is a message too. Those that came before the end come before the error.

        Args:
            timeout: Seconds to wait; 0 only looks, ``None`` waits until a message comes or the connection is over.

        Raises:
            TimeoutError: No message came in time.
            ConnectionClosedError: The connection is over.
            ConnectionBusyError: Another thread is receiving.
        """
        self._check_process()
        try:
            return self._websocket.recv(timeout)
        except TimeoutError:
            raise TimeoutError(f"no message came within {timeout:g} s") from None
        except ConcurrencyError:
            raise ConnectionBusyError("another thread is receiving from this connection") from None
        except ConnectionClosed as closed:
            raise _closed(closed) from closed

    def ping(self, timeout: float = 10.0) -> float:
        """Sends a ping and waits for its pong. Returns the seconds between them.

        Raises:
            TimeoutError: No pong came in time. The connection stays as it is.
            ConnectionClosedError: The connection is over.
        """
        self._check_process()
        sent_at = time.monotonic()
        in_time = self._websocket.protocol_mutex.acquire(timeout=max(0.0, timeout))  # a message may be stuck before it
        if in_time:
            self._websocket.protocol_mutex.release()
            try:
                answered = self._websocket.ping(ack_on_close=True)
            except ConnectionClosed as closed:
                raise _closed(closed) from closed
            in_time = answered.wait(max(0.0, sent_at + timeout - time.monotonic()))
        if not in_time:
            raise TimeoutError(f"no pong came within {timeout:g} s")
        if not self.is_open:
            raise _closed(self._websocket.protocol.close_exc)
        return time.monotonic() - sent_at

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes with the closing handshake, within ``close_timeout`` seconds. What was not received yet is dropped.

        Who is in ``recv`` is woken, and who is stuck in ``send`` when that time is up. Never raises because of the
        other side; again it does nothing.

        Raises:
            ValueError: The code or the reason cannot be sent (RFC 6455 section 7.4).
        """
        check_close(code, reason)
        if self._is_parents:
            return
        # The close frame waits for a message that is being sent, which may take as long as send_timeout.
        deadline = threading.Timer(self._websocket.close_timeout or 0, self._websocket.cut)
        deadline.daemon = True
        try:
            deadline.start()
        except RuntimeError:  # no more threads
            self.abort()
            return
        try:
            self._websocket.discard()
            self._websocket.close(code, reason)
        finally:
            deadline.cancel()
            deadline.join()
        self._websocket.join()

    def abort(self) -> None:
        """Ends the connection at once, without a close frame. Wakes a ``send`` that is stuck, too."""
        if self._is_parents:
            return
        self._websocket.cut()
        self._websocket.join()

    @property
    def _is_parents(self) -> bool:
        return os.getpid() != self._process

    def _check_process(self) -> None:
        if self._is_parents:
            raise ConnectionUnavailableError("the connection belongs to the parent process: make one after the fork")


class Refusal(Exception):
    """The answer to an upgrade was not 101."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


class WebSocket(ClientConnection):
    """The package's connection, and what it lacks."""

    last_frame_at = 0.0
    _discards = False

    def __init__(self, sock: socket.socket, protocol: Any, **options: Any) -> None:
        receive_data = protocol.receive_data

        def receive(data: bytes) -> None:
            """Drops what was read just before ``cut``: the package would log it as an internal error of its own."""
            if not protocol.reader.eof:
                receive_data(data)

        protocol.receive_data = receive
        super().__init__(sock, protocol, **options)

    def handshake(self, *arguments: Any, **options: Any) -> None:
        """Turns a refusal into an exception that the package does not know: it would follow a redirect to wherever the
        server says, with all headers but the usual ones that carry credentials."""
        try:
            super().handshake(*arguments, **options)
        except InvalidStatus as error:
            raise Refusal(error.response) from error

    def process_event(self, event: Event) -> None:
        self.last_frame_at = time.monotonic()
        if self._discards and self.response is not None:
            return
        with suppress(EOFError):  # the stream was ended by cut
            super().process_event(event)

    def discard(self) -> None:
        """Unread messages are dropped from now on: its reader stops at a full queue and would never see the close."""
        self._discards = True
        with suppress(TimeoutError, ConnectionClosed, ConcurrencyError):
            while True:
                self.recv(0)

    def cut(self) -> None:
        """Shuts the socket down, which wakes whoever is stuck in it; to close it alone would not."""
        with suppress(OSError), socket.socket(fileno=socket.dup(self.socket.fileno())) as double:
            double.shutdown(socket.SHUT_RDWR)
        self.close_socket()

    def join(self) -> None:
        """Waits for its threads, which end with the socket."""
        for thread in (self.recv_events_thread, self.keepalive_thread):
            if thread is not None and thread is not threading.current_thread():
                thread.join()


def check_close(code: int, reason: str) -> None:
    if code != 1000 and not 3000 <= code <= 4999 and code != 1001:
        raise ValueError(f"the close code {code} cannot be sent: use 1000, 1001 or 3000 to 4999")
    if len(reason.encode()) > 123:
        raise ValueError("a close reason has at most 123 bytes")


def _closed(closed: ConnectionClosed) -> ConnectionClosedError:
    frame = closed.rcvd or closed.sent
    if frame is not None:
        return ConnectionClosedError(frame.code, frame.reason)
    return ConnectionClosedError(1006, str(closed.__cause__ or "the connection was cut"))
