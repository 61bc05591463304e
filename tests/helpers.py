"""What many tests share: threads with a deadline, frames as a client sends them, requests, and a hand-driven loop."""

from __future__ import annotations

import contextvars
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.test import EnvironBuilder

from krait_ws.context import WebsocketsRequest
from krait_ws.http import Request
from krait_ws.waiting import get_hub_if_exists

DEADLINE = 10.0
"""Seconds after which something that should have happened has not."""

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

MASK = b"\x37\xfa\x21\x3d"
"""The masking key of the examples in RFC 6455 section 5.7."""


# ---- threads


class Task:
    """A function in a daemon thread of its own. Its end, and the end of what it waits for, have a deadline."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def result(self, timeout: float = DEADLINE) -> Any:
        """What the function returned; raises what it raised."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"still running after {timeout:g} s"
        if self._error is not None:
            raise self._error
        return self._value

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def until_blocked(self) -> Task:
        """Returns when the thread has stood still for a while: it waits for something.

        On a slow machine it may only seem to. That must merely be an easier order to the test.
        """
        still = 0
        last = None
        deadline = time.monotonic() + DEADLINE
        while still < 10:
            assert self.is_running, f"ended instead of waiting: {self._error or self._value!r}"
            assert time.monotonic() < deadline, "never waited"
            frame = sys._current_frames().get(self._thread.ident or 0)
            place = None if frame is None else (id(frame), frame.f_lasti)
            still = still + 1 if place is not None and place == last else 0
            last = place
            del frame
            pause(0.002)
        return self

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._value = function()
        except BaseException as error:
            self._error = error
        finally:
            hub = get_hub_if_exists()
            if hub is not None:
                hub.destroy(destroy_loop=True)


def own_thread(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test in a thread of its own, so that a gevent hub that it makes is gone afterwards."""

    @functools.wraps(test)
    def in_thread(*arguments: Any, **named: Any) -> None:
        context = contextvars.copy_context()
        Task(lambda: context.run(test, *arguments, **named)).result(60)

    return in_thread


def pause(seconds: float) -> None:
    """Between two looks at a condition that has a deadline; never instead of one."""
    threading.Event().wait(seconds)


def until(condition: Callable[[], Any], what: str) -> None:
    """Waits for a condition that tells nobody when it comes true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
        pause(0.002)


# ---- frames


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    size: int | None = None,
    width: int | None = None,
) -> bytes:
    """A frame as a client sends it (RFC 6455 section 5.2), or a broken one.

    Args:
        reserved: The bits RSV1 to RSV3, 0x40 to 0x10.
        mask: ``None`` leaves the masking out.
        size: The announced length, where it is to differ from the payload's.
        width: Bytes of the length: 0 for the seven bits, 2 or 8; the shortest by default.
    """
    size = len(payload) if size is None else size
    if width is None:
        width = 0 if size < 126 else 2 if size < 65536 else 8
    first = (0x80 if fin else 0) | reserved | opcode
    second = (0 if mask is None else 0x80) | {0: size, 2: 126, 8: 127}[width]
    head = bytes((first, second)) + (size.to_bytes(width, "big") if width else b"")
    if mask is None:
        return head + payload
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + masked.to_bytes(len(payload), "big")


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    """A client's close frame."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def splits(data: bytes) -> Iterator[list[bytes]]:
    """The data whole, byte by byte, and cut in two at every place."""
    yield [data]
    yield [data[index : index + 1] for index in range(len(data))]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of each frame that we send; they must be whole, final and without a mask."""
    frames = []
    while data:
        first, size = data[0], data[1]
        assert first & 0xF0 == 0x80, "not final, or a reserved bit is set"
        assert size < 128, "a server must not mask"
        start = 2
        if size > 125:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[2 : 2 + width], "big")
            start += width
        assert len(data) >= start + size, "not whole"
        frames.append((first & 0x0F, data[start : start + size]))
        data = data[start + size :]
    return frames


# ---- requests


def http_request(url: str = "/", headers: Any = None, method: str = "GET", **environ: Any) -> Request:
    """A plain request."""
    built = EnvironBuilder(url, method=method, headers=headers).get_environ()
    return Request({**built, "REMOTE_ADDR": "192.0.2.7", **environ})


def upgrade_http_request(url: str = "/", headers: Any = (), **environ: Any) -> Request:
    """A request that asks for an upgrade."""
    common = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    return http_request(url, [*common, *headers], **environ)


def upgrade_request(url: str = "/", headers: Any = (), params: dict[str, str] | None = None) -> WebsocketsRequest:
    return WebsocketsRequest(upgrade_http_request(url, headers), params)


# ---- the loop and the connection that a session sees


class HandLoop:
    """A network loop that runs its calls when the test says so. Calls may come from any thread."""

    hub = None

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._called = threading.Condition()
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call(self, function: Callable[[], None]) -> None:
        with self._called:
            self._calls.append(function)
            self._called.notify_all()

    def call_later(self, seconds: float, function: Callable[[], None]) -> Any:
        timer = (seconds, function)
        self.timers.append(timer)
        loop = self

        class Timer:
            def cancel(self) -> None:
                if timer in loop.timers:
                    loop.timers.remove(timer)

        return Timer()

    def run(self) -> None:
        """Runs what was called."""
        with self._called:
            calls, self._calls = self._calls, []
        for function in calls:
            function()

    def run_until(self, condition: Callable[[], Any], what: str) -> None:
        """Runs calls as they come until the condition holds."""
        deadline = time.monotonic() + DEADLINE
        self.run()
        while not condition():
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"not within {DEADLINE:g} s: {what}"
            with self._called:
                self._called.wait_for(lambda: self._calls, min(remaining, 0.05))
            self.run()

    def fire_timers(self) -> None:
        """The time of every timer has come."""
        timers, self.timers = self.timers, []
        for _, function in timers:
            function()


class RecordingTransport:
    """A connection that takes what is flushed and notes what it is told."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.sent = b""
        self.closed: list[tuple[int, str]] = []
        self.resumed = 0
        self.pings = 0

    def flush(self) -> None:
        while frames := self._session.outgoing.take(1 << 16):
            self.sent += b"".join(frames)

    send_now = flush

    def send_ping(self) -> None:
        self.pings += 1

    def resume_reading(self) -> None:
        self.resumed += 1

    def close(self, code: int, reason: str) -> None:
        """The first call counts, as for a connection."""
        if not self.closed:
            self.flush()
            self.closed.append((code, reason))

    def abort(self) -> None:
        if not self.closed:
            self.closed.append((1006, ""))

    @property
    def messages(self) -> list[str | bytes]:
        """What was sent, as messages."""
        return [payload.decode() if opcode == TEXT else payload for opcode, payload in server_frames(self.sent)]
