"""A stream of events that is kept open: it connects, notices a loss, comes back, and renews its credentials in time.

Comes in: a transport. Goes out: events, to callbacks. It starts and stops a thread, in which ``supervisor.py`` does the
work; everything here may be called from any thread.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from datetime import datetime
from types import TracebackType

from krait_ws.client.backoff import Backoff
from krait_ws.client.errors import ClientError, ConnectionClosedError, ConnectionUnavailableError
from krait_ws.client.link import Link, Message
from krait_ws.client.listeners import log
from krait_ws.client.status import ENDS, OPEN, Event, State, Status
from krait_ws.client.supervisor import Callbacks, Plan, Supervisor
from krait_ws.client.takeover import Identity
from krait_ws.client.transport import Transport

_running: weakref.WeakSet[EventStream] = weakref.WeakSet()
_own = threading.local()  # .stream is the one whose thread this is


@atexit.register
def _stop_all() -> None:
    """A program that ends says goodbye: all streams at the same time, so that many take no longer than one."""
    streams = list(_running)
    for stream in streams:
        stream.stop(0)
    began = time.monotonic()
    for stream in streams:
        stream.stop(max(0.0, began + stream._stop_timeout - time.monotonic()))


class EventStream:
    """Events of a server, from a connection that is kept open.

    ::

        NOT_STARTED ──start──► INITIALIZING ─────open─────► SYNCING ────quiet────► CONNECTED
                                    │                       ▲  │                       │
                                    │failed                 │  └─────────lost────┐     │lost
                                    ▼                  open │                    ▼     ▼
                               RECONNECTING ────────────────┘◄──────────────── LOST_CONNECTION
                                │  ▲     ▲      (when a renewal has a connection)    │
                                │  └─────┼─ failed                                   │ worth a retry
                 no more retries│        └───────────────────────────────────────────┤
                                ▼                                                    │
                          RECONNECT_FAILED ◄──────────────────no retries─────────────┘

        every state but RECONNECT_FAILED ──stop──► DISCONNECTED; from these two start begins anew

    While it is SYNCING the server repeats its current states; those events carry ``replayed=True``. It is over when
    nothing came for ``sync_quiet`` seconds, or after ``sync_max``.

    Callbacks run in the stream's thread, one at a time, in the order in which things happened, and never under a lock.
    One that raises is logged. One that is slow delays the others; nothing is lost meanwhile, but beyond 1024 waiting
    messages or 16 MiB the connection is not read, and when that lasts longer than the transport's pings allow it counts
    as lost.

    With ``renew_every`` a fresh connection takes over from the old one while the stream stays CONNECTED. No event is
    lost and none comes twice when these hold: an event reaches two connections of the same client at most ``sync_max``
    seconds apart, and in about the same order; the server's replay ends before ``sync_quiet`` seconds of silence or
    ``sync_max``; and no two events of one takeover (three ``sync_max`` at most) have the same identity. A renewal that
    fails is logged and tried again; the old connection stays. After a loss nobody knows what was missed: the replay of
    the server is what brings it back.

    Args:
        transport: Where to and how; or just a URL.
        backoff: When to try again.
        sync_quiet: Seconds of silence that end the replay.
        sync_max: Seconds after which the replay is over in any case.
        stale_after: Seconds without a message after which the connection counts as lost, for servers with a heartbeat;
            ``None`` leaves it to the transport's pings.
        renew_every: Seconds after which a fresh connection with fresh credentials takes over; ``None`` never does. A
            takeover is finished before the next begins, so less than three ``sync_max`` is of no use.
        identity: What tells two events apart during a takeover, made of a message; by default the message itself.
            ``None`` from it says that the message is no event. It must not block.

    Raises:
        ValueError: The URL or a number of seconds cannot be used.
    """

    def __init__(
        self,
        transport: Transport | str,
        *,
        backoff: Backoff | None = None,
        sync_quiet: float = 1.0,
        sync_max: float = 10.0,
        stale_after: float | None = None,
        renew_every: float | None = None,
        identity: Identity | None = None,
    ) -> None:
        where = Transport(transport) if isinstance(transport, str) else transport
        self._plan = Plan(where, backoff or Backoff(), sync_quiet, sync_max, stale_after, renew_every, identity)
        self._callbacks = Callbacks()
        self._state = State()
        self._changed = self._state.changed
        self._thread: threading.Thread | None = None  # guarded by _changed, as the next
        self._supervisor: Supervisor | None = None  # while it runs
        self._process: int | None = None  # in which it was started

    @property
    def transport(self) -> Transport:
        """Where to and how."""
        return self._plan.transport

    @property
    def renew_every(self) -> float | None:
        """Seconds from one renewal to the next."""
        return self._plan.renew_every

    # ---- what it tells; thread: any

    @property
    def status(self) -> Status:
        """Where it is now."""
        return self._state.status

    @property
    def connected(self) -> bool:
        """Whether it is CONNECTED: open, and the replay is over."""
        return self._state.status is Status.CONNECTED

    @property
    def error(self) -> ClientError | None:
        """Why the last connection was lost or could not be opened."""
        return self._state.error

    @property
    def last_event_at(self) -> datetime | None:
        """When the last message arrived, in UTC; replayed ones count."""
        return self._state.last_event_at

    def on_event(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """``callback(event)`` for each message. This and its kin return a function that removes the callback."""
        return self._callbacks.events.add(callback)

    def on_status(self, callback: Callable[[Status], object]) -> Callable[[], None]:
        """``callback(status)`` after each change of the status."""
        return self._callbacks.statuses.add(callback)

    def on_connect(self, callback: Callable[[], object]) -> Callable[[], None]:
        """``callback()`` each time the stream becomes CONNECTED."""
        return self._callbacks.connects.add(callback)

    def on_disconnect(self, callback: Callable[[], object]) -> Callable[[], None]:
        """``callback()`` each time it is no longer CONNECTED."""
        return self._callbacks.disconnects.add(callback)

    def on_open(self, callback: Callable[[Link], object]) -> Callable[[], None]:
        """``callback(link)`` greets: for each new connection, before its first message is taken; it may send and
        receive.

        It runs in the thread of that connection, during a takeover beside the other callbacks. What it raises fails the
        attempt. It has ``open_timeout`` seconds.
        """
        return self._callbacks.greetings.add(callback)

    def on_close(self, callback: Callable[[Link], object]) -> Callable[[], None]:
        """``callback(link)`` says the last words when the stream is stopped while it has a connection."""
        return self._callbacks.farewells.add(callback)

    def send(self, message: Message) -> None:
        """Sends to the server. It never opens a connection. Thread: any, callbacks too.

        Raises:
            ConnectionUnavailableError: There is no connection now.
            ConnectionClosedError: The connection is over, or it was lost while sending.
        """
        self._check_process()
        while True:
            with self._changed:
                link = self._state.link if self._state.status in OPEN else None
            if link is None:
                raise ConnectionUnavailableError(f"{self.transport.place}: no connection: {self._state.status.value}")
            try:
                return link.send(message)
            except ConnectionClosedError:
                with self._changed:
                    if self._state.link is None or self._state.link is link:
                        raise  # else another connection took over meanwhile, and this one was closed by us

    # ---- start and stop; thread: any

    def start(self) -> EventStream:
        """Starts the stream's thread; while it runs nothing changes. Returns the stream.

        Raises:
            RuntimeError: The stream is ending: it is started again from one of its callbacks, or is not over in time.
            ConnectionUnavailableError: It was started before a fork, in the parent.
        """
        self._check_process()
        with self._changed:
            if self._supervisor is not None:
                return self
            last = self._thread
        if last is not None and (self._is_own_thread() or not _has_ended(last, self._stop_timeout)):
            raise RuntimeError("the stream is still ending; start it when it is over, not from its callbacks")
        with self._changed:
            if self._thread is last:
                self._process = os.getpid()
                self._supervisor = Supervisor(self._plan, self._callbacks, self._state, self._enter_thread)
                self._state.status, self._state.error = Status.INITIALIZING, None
                self._thread = threading.Thread(
                    target=self._run, args=(self._supervisor,), name="krait-client-stream", daemon=True
                )
                self._thread.start()
                _running.add(self)
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Closes the connection and ends the thread. From a callback it only asks for that, and does not wait.

        Args:
            timeout: Seconds to wait; by default the transport's ``close_timeout`` and 5 more.

        Returns:
            Whether it is over. It is not when it was called from a callback, or while one takes its time. In a forked
            child there is nothing to do: the stream is the parent's.
        """
        if self._is_parents:
            return True
        with self._changed:
            thread, supervisor, self._supervisor = self._thread, self._supervisor, None
        if supervisor is not None:
            supervisor.interrupt()
        if thread is None:
            return True
        return not self._is_own_thread() and _has_ended(thread, self._stop_timeout if timeout is None else timeout)

    def wait_connected(self, timeout: float = 30.0) -> None:
        """Waits until the stream is CONNECTED.

        Raises:
            TimeoutError: It is not in time.
            ClientError: The stream is over: why.
            RuntimeError: It was called from a callback of the stream, which cannot go on meanwhile.
        """
        self.refuse_in_callback()
        awaited = ENDS | {Status.CONNECTED, Status.NOT_STARTED}
        with self._changed:
            if not self._changed.wait_for(lambda: self._state.status in awaited, timeout):
                why = f" ({self._state.error})" if self._state.error is not None else ""
                raise TimeoutError(
                    f"{self.transport.place}: not connected after {timeout:g} s: {self._state.status.value}{why}"
                )
            if self._state.status is not Status.CONNECTED:
                raise self._state.error or ConnectionUnavailableError(
                    f"{self.transport.place}: {self._state.status.value}"
                )

    def run_forever(self) -> None:
        """Starts, if it never was, and waits for ``stop`` or Ctrl-C, which stops.

        Raises:
            ClientError: The stream gave up: why.
            RuntimeError: It was called from a callback.
        """
        self.refuse_in_callback()
        if self._state.status is Status.NOT_STARTED:
            self.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._state.status in ENDS)
        except KeyboardInterrupt:
            self.stop()
        if self._state.status is Status.RECONNECT_FAILED and self._state.error is not None:
            raise self._state.error

    def refuse_in_callback(self) -> None:
        """For what waits for other callbacks.

        Raises:
            RuntimeError: This is one of the stream's own threads.
            ConnectionUnavailableError: The stream is that of the parent process.
        """
        self._check_process()
        if self._is_own_thread():
            raise RuntimeError("a callback of the stream must not wait for the stream")

    def __enter__(self) -> EventStream:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def _stop_timeout(self) -> float:
        return self.transport.close_timeout + 5

    @property
    def _is_parents(self) -> bool:
        return self._process not in (None, os.getpid())

    def _check_process(self) -> None:
        if self._is_parents:
            raise ConnectionUnavailableError("the stream belongs to the parent process: make one after the fork")

    def _is_own_thread(self) -> bool:
        return getattr(_own, "stream", None) is self

    def _enter_thread(self) -> None:
        _own.stream = self

    def _run(self, supervisor: Supervisor) -> None:
        self._enter_thread()
        self._callbacks.statuses.call(Status.INITIALIZING)
        try:
            error = supervisor.run()
        except Exception as failure:
            log.exception("%s: the stream failed", self.transport.place)
            error = ClientError(f"{self.transport.place}: {failure!r}")
        with self._changed:
            self._supervisor = None  # so that a callback that starts it again is told
        self._callbacks.become(self._state, Status.DISCONNECTED if error is None else Status.RECONNECT_FAILED, error)
        _running.discard(self)


def _has_ended(thread: threading.Thread, timeout: float) -> bool:
    thread.join(timeout)
    return not thread.is_alive()
