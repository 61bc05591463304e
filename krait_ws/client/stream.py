"""A stream of events that is kept open: it connects, notices a loss, comes back, and renews its credentials in time.

Comes in: a transport. Goes out: events, to callbacks. Owned by the stream's thread, which runs every callback but the
greetings; each connection has a thread of its own (``feed.py``), and ``takeover.py`` joins two of them without a seam.
"""

from __future__ import annotations

import atexit
import dataclasses
import enum
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any

from krait_ws.client.backoff import Backoff, is_worth_a_retry
from krait_ws.client.errors import ClientError, ConnectionClosedError, ConnectionUnavailableError
from krait_ws.client.feed import Arrived, Ended, Feed, Inbox, Item, Opened
from krait_ws.client.link import Link, Message
from krait_ws.client.listeners import Listeners, log
from krait_ws.client.takeover import Identity, Quiet, Takeover
from krait_ws.client.transport import Transport


class Status(enum.Enum):
    """Where an ``EventStream`` is; drawn in its docstring."""

    NOT_STARTED = "not started"
    INITIALIZING = "initializing"
    SYNCING = "syncing"
    CONNECTED = "connected"
    LOST_CONNECTION = "lost connection"
    RECONNECTING = "reconnecting"
    RECONNECT_FAILED = "reconnect failed"
    DISCONNECTED = "disconnected"


OPEN = frozenset({Status.SYNCING, Status.CONNECTED})
ENDS = frozenset({Status.RECONNECT_FAILED, Status.DISCONNECTED})


@dataclass(frozen=True)
class Event:
    """What a callback gets.

    Attributes:
        data: The message: ``str`` or ``bytes``; from ``Subscriptions`` what was made of it.
        replayed: Whether it came while the stream was SYNCING: a state that the server repeats, no news.
        received_at: When it arrived, in UTC.
    """

    data: Any
    replayed: bool
    received_at: datetime


class _StopRequested(Exception):
    """``stop`` was called. Raised and caught in the stream's thread."""


_running: weakref.WeakSet[EventStream] = weakref.WeakSet()
_own = threading.local()  # .stream is the one whose thread this is


@atexit.register
def _stop_all() -> None:
    """A program that ends says goodbye."""
    for stream in list(_running):
        stream.stop()


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
    messages the connection is not read, and when that lasts longer than the transport's pings allow it counts as lost.

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
        renew_every: Seconds after which a fresh connection with fresh credentials takes over; ``None`` never does.
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
        for name, value in (("sync_quiet", sync_quiet), ("sync_max", sync_max)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
        for name, limit in (("stale_after", stale_after), ("renew_every", renew_every)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be more than 0 seconds or None, not {limit!r}")
        self.transport = Transport(transport) if isinstance(transport, str) else transport
        self.renew_every = renew_every
        self._backoff = backoff or Backoff()
        self._sync_quiet = sync_quiet
        self._sync_max = sync_max
        self._stale_after = stale_after
        self._identity_of = identity
        self._events, self._statuses = Listeners(), Listeners()
        self._connects, self._disconnects = Listeners(), Listeners()
        self._greetings, self._farewells = Listeners(), Listeners()
        self._changed = threading.Condition()
        self._status = Status.NOT_STARTED  # guarded by _changed, as the next four
        self._error: ClientError | None = None
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._feed: Feed | None = None  # the one that ``send`` takes
        self._inbox = Inbox()  # a new one for each start
        self._last_event_at: datetime | None = None
        # Owned by the stream's thread:
        self._replay: Quiet | None = None  # while SYNCING
        self._takeover: Takeover | None = None
        self._renew_at = float("inf")
        self._renewal_failures = 0

    # ---- what it tells; thread: any

    @property
    def status(self) -> Status:
        """Where it is now."""
        return self._status

    @property
    def connected(self) -> bool:
        """Whether it is CONNECTED: open, and the replay is over."""
        return self._status is Status.CONNECTED

    @property
    def error(self) -> ClientError | None:
        """Why the last connection was lost or could not be opened."""
        return self._error

    @property
    def last_event_at(self) -> datetime | None:
        """When the last message arrived, in UTC; replayed ones count."""
        return self._last_event_at

    def on_event(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """``callback(event)`` for each message. This and its kin return a function that removes the callback."""
        return self._events.add(callback)

    def on_status(self, callback: Callable[[Status], object]) -> Callable[[], None]:
        """``callback(status)`` after each change of the status."""
        return self._statuses.add(callback)

    def on_connect(self, callback: Callable[[], object]) -> Callable[[], None]:
        """``callback()`` each time the stream becomes CONNECTED."""
        return self._connects.add(callback)

    def on_disconnect(self, callback: Callable[[], object]) -> Callable[[], None]:
        """``callback()`` each time it is no longer CONNECTED."""
        return self._disconnects.add(callback)

    def on_open(self, callback: Callable[[Link], object]) -> Callable[[], None]:
        """``callback(link)`` greets: for each new connection, before its first message is taken; it may send and
        receive.

        It runs in the thread of that connection, during a takeover beside the other callbacks. What it raises fails the
        attempt. It has ``open_timeout`` seconds.
        """
        return self._greetings.add(callback)

    def on_close(self, callback: Callable[[Link], object]) -> Callable[[], None]:
        """``callback(link)`` says the last words when the stream is stopped while it has a connection."""
        return self._farewells.add(callback)

    def send(self, message: Message) -> None:
        """Sends to the server. It never opens a connection. Thread: any, callbacks too.

        Raises:
            ConnectionUnavailableError: There is no connection now.
            ConnectionClosedError: The connection is over, or it was lost while sending.
        """
        while True:
            with self._changed:
                link = self._feed.link if self._feed is not None and self._status in OPEN else None
            if link is None:
                raise ConnectionUnavailableError(f"{self.transport.place}: no connection: {self._status.value}")
            try:
                return link.send(message)
            except ConnectionClosedError:
                with self._changed:
                    if self._feed is None or self._feed.link is link:
                        raise  # else another connection took over meanwhile, and this one was closed by us

    # ---- start and stop; thread: any

    def start(self) -> EventStream:
        """Starts the stream's thread; while it runs nothing changes. Returns the stream.

        Raises:
            RuntimeError: The stream is ending: it is started again from one of its callbacks, or is not over in time.
        """
        with self._changed:
            last = self._thread
            if last is not None and last.is_alive() and not self._is_stopping:
                return self
        if last is not None and (self._is_own_thread() or not self._has_ended(last, self._stop_timeout)):
            raise RuntimeError("the stream is still ending; start it when it is over, not from its callbacks")
        with self._changed:
            if self._thread is last:
                self._is_stopping = False
                self._error = None
                self._status = Status.INITIALIZING
                self._inbox = Inbox()
                self._thread = threading.Thread(target=self._run, name="krait-client-stream", daemon=True)
                self._thread.start()
                _running.add(self)
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Closes the connection and ends the thread. From a callback it only asks for that, and does not wait.

        Args:
            timeout: Seconds to wait; by default the transport's ``close_timeout`` and 5 more.

        Returns:
            Whether it is over. It is not when it was called from a callback, or while one takes its time.
        """
        with self._changed:
            thread = self._thread
            self._is_stopping = True
            self._inbox.interrupt()
        if thread is None:
            return True
        return not self._is_own_thread() and self._has_ended(thread, self._stop_timeout if timeout is None else timeout)

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
            if not self._changed.wait_for(lambda: self._status in awaited, timeout):
                raise TimeoutError(f"{self.transport.place}: not connected after {timeout:g} s: {self._status.value}")
            if self._status is not Status.CONNECTED:
                raise self._error or ConnectionUnavailableError(f"{self.transport.place}: {self._status.value}")

    def run_forever(self) -> None:
        """Starts, if it never was, and waits for ``stop`` or Ctrl-C, which stops.

        Raises:
            ClientError: The stream gave up: why.
            RuntimeError: It was called from a callback.
        """
        self.refuse_in_callback()
        if self._status is Status.NOT_STARTED:
            self.start()
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._status in ENDS)
        except KeyboardInterrupt:
            self.stop()
        if self._status is Status.RECONNECT_FAILED and self._error is not None:
            raise self._error

    def refuse_in_callback(self) -> None:
        """For what waits for other callbacks.

        Raises:
            RuntimeError: This is one of the stream's own threads.
        """
        if self._is_own_thread():
            raise RuntimeError("a callback of the stream must not wait for the stream")

    def __enter__(self) -> EventStream:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def _stop_timeout(self) -> float:
        return self.transport.close_timeout + 5

    def _is_own_thread(self) -> bool:
        return getattr(_own, "stream", None) is self

    def _has_ended(self, thread: threading.Thread, timeout: float) -> bool:
        thread.join(timeout)
        return not thread.is_alive()

    # ---- the stream's thread

    def _enter_thread(self) -> None:
        _own.stream = self

    def _run(self) -> None:
        self._enter_thread()
        try:
            self._statuses.call(Status.INITIALIZING)
            end, error = Status.RECONNECT_FAILED, self._supervise()
        except Exception as failure:
            log.exception("%s: the stream failed", self.transport.place)
            end, error = Status.RECONNECT_FAILED, ClientError(f"{self.transport.place}: {failure!r}")
        if error is None:
            end = Status.DISCONNECTED
            self._say_goodbye()
        self._leave_connections()
        with self._changed:
            self._is_stopping = True  # so that a callback that starts it again is told
        self._become(end, error)
        _running.discard(self)

    def _supervise(self) -> ClientError | None:
        """Keeps a connection open until it is not worth it any more: why, or ``None`` for ``stop``."""
        with suppress(_StopRequested):
            return self._keep_open()
        return None

    def _keep_open(self) -> ClientError:
        failures = 0
        while True:
            started_at = time.monotonic()
            error = self._live()
            self._leave_connections()
            if self._status in OPEN:
                if time.monotonic() - started_at >= self._backoff.stable_after:
                    failures = 0
                self._become(Status.LOST_CONNECTION, error)
            delay = self._delay(failures, error)
            if delay is None:
                return error
            failures += 1
            self._become(Status.RECONNECTING, error)
            self._take(time.monotonic() + delay)  # nobody fills the inbox: this sleeps, or stops

    def _live(self) -> ClientError:
        """One connection, and those that take over from it. Returns why it is over or was never open."""
        feed = self._new_feed()
        self._set_feed(feed)
        opened = self._take(feed.give_up_at)
        if isinstance(opened, Ended):
            return opened.error
        if opened is None:
            return _not_greeted(feed, self.transport)
        self._sync(opened.at)
        while True:
            item = self._take(self._due_at())
            self._step(time.monotonic() if item is None else item.at)
            if item is not None and (error := self._handle(item)) is not None:
                return error

    def _sync(self, since: float) -> None:
        self._replay = self._new_replay(since)
        self._set_renewal(since)
        self._become(Status.SYNCING)

    def _due_at(self) -> float | None:
        due = self._renew_at if self._takeover is None else self._takeover.due_at
        if self._replay is not None:
            due = self._replay.over_at  # a renewal waits for the end of the replay
        return None if due == float("inf") else due

    def _step(self, now: float) -> None:
        """Does what is due."""
        if self._replay is not None and now >= self._replay.over_at:
            self._replay = None
            self._become(Status.CONNECTED)
        takeover = self._takeover
        if takeover is None:
            if now >= self._renew_at and self._replay is None:
                auth = self.transport.auth
                successor = self._new_feed(auth.refresh if auth is not None else None)
                self._takeover = Takeover(successor, self._identity, self._sync_quiet, self._sync_max)
        elif takeover.is_switched:
            if now >= takeover.due_at:
                self._takeover = None
        elif not takeover.is_open:
            if now >= takeover.due_at:
                self._renewal_failed(_not_greeted(takeover.successor, self.transport))
        else:
            takeover.settle_if_due(now)
            if takeover.is_switch_due(now):
                self._switch(takeover, now)

    def _handle(self, item: Item) -> ClientError | None:
        """Takes what a connection brought; returns why the stream has none any more."""
        takeover = self._takeover
        if takeover is not None and takeover.is_switched:
            if isinstance(item, Arrived) and item.feed is self._feed and not takeover.is_new(item):
                return None
            takeover = None
        if takeover is not None and item.feed is takeover.successor:
            if isinstance(item, Opened):
                takeover.opened(self._new_replay(item.at))
            elif isinstance(item, Arrived):
                takeover.new_brings(item)
            else:
                self._renewal_failed(item.error)
        elif item.feed is not self._feed:
            pass  # of the connection that was left at the very moment: the other one brings it too
        elif isinstance(item, Arrived):
            if takeover is not None:
                takeover.old_brings(item)
            self._deliver(item)
        elif isinstance(item, Ended):
            if takeover is None or not takeover.is_open:
                return item.error
            if takeover.is_settled:
                self._switch(takeover, item.at)
            else:
                self._replace_lost(takeover, item)
        return None

    def _deliver(self, item: Arrived) -> None:
        if self._replay is not None:
            self._replay.disturb(item.at)
        self._last_event_at = item.received_at
        self._events.call(Event(item.message, self._replay is not None, item.received_at))

    # ---- renewal

    def _set_renewal(self, since: float) -> None:
        self._renewal_failures = 0
        self._renew_at = float("inf") if self.renew_every is None else since + self.renew_every

    def _switch(self, takeover: Takeover, now: float) -> None:
        old = self._feed
        assert old is not None
        items = takeover.switch(now)
        self._set_feed(takeover.successor)
        old.retire()
        self._set_renewal(now)
        for item in items:
            self._deliver(item)

    def _replace_lost(self, takeover: Takeover, lost: Ended) -> None:
        """The old connection is lost before the fresh one settled: the fresh one goes on as after any loss."""
        self._takeover = None
        self._become(Status.LOST_CONNECTION, lost.error)
        self._set_feed(takeover.successor)
        self._sync(lost.at)
        for item in takeover.unsettled():
            self._deliver(item)

    def _renewal_failed(self, error: ClientError) -> None:
        assert self._takeover is not None
        self._takeover.successor.abort()
        self._takeover = None
        delay = self._delay(self._renewal_failures, error)
        if delay is None:
            delay = self._backoff.delays[-1]  # the connection there is may be good for longer than its credentials
        self._renewal_failures += 1
        self._renew_at = time.monotonic() + max(delay, 0.1)
        log.warning("%s: no fresh connection, trying again in %g s: %s", self.transport.place, delay, error)

    def _identity(self, message: Message) -> Any:
        if self._identity_of is None:
            return message
        try:
            return self._identity_of(message)
        except Exception:
            log.exception("the identity of an event cannot be told; the message itself is taken")
            return message

    # ---- small parts

    def _take(self, deadline: float | None) -> Item | None:
        item = self._inbox.take(deadline)
        if self._is_stopping:
            raise _StopRequested
        return item

    def _new_feed(self, before: Callable[[], object] | None = None) -> Feed:
        return Feed(
            self.transport,
            self._inbox,
            self._greetings.all(),
            stale_after=self._stale_after,
            on_thread=self._enter_thread,
            before=before,
        )

    def _new_replay(self, since: float) -> Quiet:
        return Quiet(self._sync_quiet, self._sync_max, since)

    def _set_feed(self, feed: Feed | None) -> None:
        with self._changed:
            self._feed = feed

    def _leave_connections(self) -> None:
        """Without a word: they are lost, or were never open."""
        if self._takeover is not None:
            self._takeover.successor.abort()
            self._takeover = None
        if self._feed is not None:
            self._feed.abort()
            self._set_feed(None)
        self._replay = None

    def _say_goodbye(self) -> None:
        feed = self._feed
        if feed is not None and feed.link is not None and self._status in OPEN:
            self._farewells.call(feed.link)
            feed.close(self.transport.close_timeout)
        self._leave_connections()

    def _become(self, status: Status, error: ClientError | None = None) -> None:
        with self._changed:
            last, self._status = self._status, status
            self._error = error or self._error
            self._changed.notify_all()
        if last is not status:
            self._statuses.call(status)
        if status is Status.CONNECTED:
            self._connects.call()
        elif last is Status.CONNECTED:
            self._disconnects.call()

    def _delay(self, failures: int, error: ClientError) -> float | None:
        try:
            return self._backoff.delay(failures, error)
        except Exception:
            log.exception("the rule for new attempts raised; the usual one is taken")
            return dataclasses.replace(self._backoff, retry=is_worth_a_retry).delay(failures, error)


def _not_greeted(feed: Feed, transport: Transport) -> ClientError:
    what = "not open" if feed.link is None else "not greeted"
    return ConnectionUnavailableError(f"{transport.place}: {what} after {2 * transport.open_timeout:g} s")
