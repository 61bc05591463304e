"""What the core's tests share: a handler that takes its steps when the test says so, on a loop that turns when it does.

The test's own thread is the loop's. While it does not let the hub run, the loop stands still between two of its steps,
and the handler's thread can do there what it does else once in a million times.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from krait_ws.config import Config
from krait_ws.core import IS_COMPILED
from krait_ws.network.connection import Connection
from krait_ws.network.loop import Loop
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import DEADLINE, TEXT, frame, until, upgrade_request
from tests.network.support import spin, tcp_pair

compiled_only = pytest.mark.skipif(not IS_COMPILED, reason="only the compiled core lends connections to threads")


def texts(*messages: str) -> bytes:
    """A client's text frames."""
    return b"".join(frame(TEXT, message.encode()) for message in messages)


class Puppet(WebsocketsCtrlBase):
    """Its handler takes one step after another."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._native_id = 0

    def on_thread_start(self) -> None:
        self._native_id = threading.get_native_id()
        while (step := self._steps.get()) is not None:
            function, future = step
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def begin(self, function: Callable[[], Any]) -> Future[Any]:
        """The handler's next step; its result is to be had when it has been taken."""
        future: Future[Any] = Future()
        self._steps.put((function, future))
        return future

    def do(self, function: Callable[[], Any]) -> Any:
        """The handler's next step, to its end. The loop stands still."""
        return self.begin(function).result(DEADLINE)

    def dismiss(self) -> None:
        """No more steps."""
        self._steps.put(None)

    def until_waiting(self) -> None:
        """Returns when the handler has slept in the system for a while: it waits for something. Where the machine is so
        slow that it only seems to, the test still holds; it merely tries an easier order."""
        looks = 0

        def sleeps() -> bool:
            nonlocal looks
            looks = looks + 1 if self.state == "S" else 0
            return looks > 5

        until(sleeps, "the handler waits")

    def stack_in_use(self) -> int:
        """Bytes of its thread's stack above where it waits now."""
        pointer = int(Path(f"/proc/self/task/{self._native_id}/syscall").read_text().split()[-2], 16)
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if start <= pointer < end:
                return end - pointer
        raise AssertionError("its stack is nowhere")

    @property
    def state(self) -> str:
        """What the system says of its thread: ``R`` for running, ``S`` for asleep; nothing before there is one."""
        if not self._native_id:
            return ""
        return Path(f"/proc/self/task/{self._native_id}/stat").read_text().rpartition(")")[2].split()[0]


class Bench:
    """A puppet's connection, and its peer.

    Attributes:
        over: Has something when nothing of the session is left.
    """

    def __init__(self, loop: Loop, ours: socket.socket, peer: socket.socket, received: bytes, config: Config) -> None:
        self.loop = loop
        self.peer = peer
        self.puppet = Puppet()
        self.session = self.puppet._krait
        self.over: list[Any] = []
        self.session.accept(loop, config, upgrade_request(), None, self.over.append)  # type: ignore[arg-type]
        self.connection = Connection(loop, ours, self.session, received)
        self._arrived = b""

    def begin_pop(self, timeout: float | None = None) -> Future[Any]:
        """The handler begins to wait for a message, on its own socket."""
        popped = self.puppet.begin(lambda: self.puppet.pop_in_message(timeout))
        until(lambda: popped.done() or self.connection.is_lent, "the handler has its connection")
        if not popped.done():
            self.puppet.until_waiting()
        return popped

    def push(self, message: str | bytes) -> Any:
        """The handler pushes a message."""
        return self.puppet.do(lambda: self.puppet.push_out_message(message))

    def arrived(self) -> bytes:
        """All that has come to the peer so far."""
        self.peer.setblocking(False)
        with suppress(BlockingIOError):
            while part := self.peer.recv(1 << 16):
                self._arrived += part
        return self._arrived

    def until_returned(self) -> None:
        """The loop has its connection back."""
        spin(lambda: not self.connection.is_lent, "the handler has been away for a tick")


@contextmanager
def bench(loop: Loop, received: bytes = b"", **config: Any) -> Iterator[Bench]:
    """``received`` came behind the handshake."""
    with tcp_pair() as (ours, peer):
        made = Bench(loop, ours, peer, received, Config(**config))
        try:
            yield made
        finally:
            made.puppet.dismiss()
            made.connection.abort()
            spin(lambda: made.over, "the end")
