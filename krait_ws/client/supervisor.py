"""Keeps a connection of a stream open: the state machine that is drawn in ``EventStream``.

Comes in: what the connections bring. Goes out: calls of the callbacks, and the state for all other threads. Owned by
the stream's thread, in which ``run`` runs; ``feed.py`` has a thread for each connection.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from krait_ws.client.backoff import Backoff, is_worth_a_retry
from krait_ws.client.errors import ClientError, ConnectionUnavailableError
from krait_ws.client.feed import Arrived, Ended, Feed, Inbox, Item, Opened
from krait_ws.client.link import Message
from krait_ws.client.listeners import Listeners, log
from krait_ws.client.status import OPEN, Event, State, Status
from krait_ws.client.takeover import Identity, Quiet, Takeover
from krait_ws.client.transport import Transport


@dataclass(frozen=True)
class Plan:
    """What ``EventStream`` was told."""

    transport: Transport
    backoff: Backoff
    sync_quiet: float
    sync_max: float
    stale_after: float | None
    renew_every: float | None
    identity: Identity | None

    def __post_init__(self) -> None:
        for name in ("sync_quiet", "sync_max"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more seconds, not {getattr(self, name)!r}")
        for name in ("stale_after", "renew_every"):
            if not (getattr(self, name) is None or getattr(self, name) > 0):
                raise ValueError(f"{name} must be more than 0 seconds or None, not {getattr(self, name)!r}")


class Callbacks:
    """The user's, by what they are called for."""

    def __init__(self) -> None:
        self.events, self.statuses = Listeners(), Listeners()
        self.connects, self.disconnects = Listeners(), Listeners()
        self.greetings, self.farewells = Listeners(), Listeners()

    def become(self, state: State, status: Status, error: ClientError | None = None) -> None:
        """Sets the status and tells it. Called in the stream's thread."""
        with state.changed:
            last, state.status = state.status, status
            state.error = error or state.error
            state.changed.notify_all()
        if last is not status:
            self.statuses.call(status)
        if status is Status.CONNECTED:
            self.connects.call()
        elif last is Status.CONNECTED:
            self.disconnects.call()


class _Interrupted(Exception):
    """``interrupt`` was called. Raised and caught in the stream's thread."""


class Supervisor:
    """One run of a stream, from its start to its end.

    Args:
        on_thread: Called first in the thread of each connection, so that the stream knows its own threads.
    """

    def __init__(self, plan: Plan, callbacks: Callbacks, state: State, on_thread: Callable[[], None]) -> None:
        self._plan = plan
        self._callbacks = callbacks
        self._state = state
        self._on_thread = on_thread
        self._inbox = Inbox()
        self._is_interrupted = False
        self._feed: Feed | None = None
        self._next: Feed | None = None  # on its way when the connection that it was to replace was lost
        self._replay: Quiet | None = None  # while SYNCING
        self._takeover: Takeover | None = None
        self._renew_at = float("inf")
        self._renewal_failures = 0
        self._open_since = float("inf")

    def run(self) -> ClientError | None:
        """Keeps a connection open until it is not worth it any more: why, or ``None`` after ``interrupt``."""
        try:
            return self._keep_open()
        except _Interrupted:
            self._say_goodbye()
            return None
        finally:
            self._leave_connections()
            if self._next is not None:
                self._next.abort()

    def interrupt(self) -> None:
        """Ends ``run``. Thread: any."""
        self._is_interrupted = True
        self._inbox.interrupt()

    def _keep_open(self) -> ClientError:
        failures = 0
        while True:
            self._open_since = float("inf")
            error = self._live()
            self._leave_connections()
            if self._state.status in OPEN:
                if time.monotonic() - self._open_since >= self._plan.backoff.stable_after:
                    failures = 0
                self._callbacks.become(self._state, Status.LOST_CONNECTION, error)
            delay = self._delay(failures, error) if self._next is None else 0.0
            if delay is None:
                return error
            failures += 1
            self._callbacks.become(self._state, Status.RECONNECTING, error)
            if self._next is None:
                self._take(time.monotonic() + delay)  # nobody fills the inbox: this sleeps, or is interrupted

    def _live(self) -> ClientError:
        """One connection, and those that take over from it. Returns why it is over or was never open."""
        self._feed = feed = self._next or self._new_feed()
        self._next = None
        opened = self._take(feed.give_up_at)
        if isinstance(opened, Ended):
            return opened.error
        if opened is None:
            return _not_greeted(feed, self._plan.transport)
        self._open_since = opened.at
        self._set_feed(feed)  # it has a link now
        self._sync(opened.at)
        while True:
            item = self._take(self._due_at())
            self._step(time.monotonic() if item is None else item.at)
            if item is not None and (error := self._handle(item)) is not None:
                return error

    def _sync(self, since: float) -> None:
        self._replay = self._new_replay(since)
        self._set_renewal(since)
        self._callbacks.become(self._state, Status.SYNCING)

    def _due_at(self) -> float | None:
        due = self._renew_at if self._takeover is None else self._takeover.due_at
        if self._replay is not None:
            due = self._replay.over_at  # a renewal waits for the end of the replay
        return None if due == float("inf") else due

    def _step(self, now: float) -> None:
        """Does what is due."""
        if self._replay is not None and now >= self._replay.over_at:
            self._replay = None
            self._callbacks.become(self._state, Status.CONNECTED)
        takeover = self._takeover
        if takeover is None:
            if now >= self._renew_at and self._replay is None:
                auth = self._plan.transport.auth
                successor = self._new_feed(auth.refresh if auth is not None else None)
                self._takeover = Takeover(successor, self._identity, self._plan.sync_quiet, self._plan.sync_max)
        elif takeover.is_switched:
            if now >= takeover.due_at:
                self._takeover = None
        elif not takeover.is_open:
            if now >= takeover.due_at:
                self._renewal_failed(_not_greeted(takeover.successor, self._plan.transport))
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
            if takeover is None:
                return item.error
            if not takeover.is_open:
                self._takeover, self._next = None, takeover.successor
                return item.error
            if takeover.is_settled:
                self._switch(takeover, item.at)
            else:
                self._replace_lost(takeover, item)
        return None

    def _deliver(self, item: Arrived) -> None:
        if self._replay is not None:
            self._replay.disturb(item.at)
        self._state.last_event_at = item.received_at
        self._callbacks.events.call(Event(item.message, self._replay is not None, item.received_at))

    # ---- renewal

    def _set_renewal(self, since: float) -> None:
        self._renewal_failures = 0
        self._renew_at = float("inf") if self._plan.renew_every is None else since + self._plan.renew_every

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
        self._callbacks.become(self._state, Status.LOST_CONNECTION, lost.error)
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
            delay = self._plan.backoff.delays[-1]  # the connection there is may be good for longer than its credentials
        self._renewal_failures += 1
        self._renew_at = time.monotonic() + max(delay, 0.1)
        log.warning("%s: no fresh connection, trying again in %g s: %s", self._plan.transport.place, delay, error)

    def _identity(self, message: Message) -> Any:
        if self._plan.identity is None:
            return message
        try:
            identity = self._plan.identity(message)
            hash(identity)
            return identity
        except Exception:
            log.exception("the identity of an event cannot be told; the message itself is taken")
            return message

    # ---- small parts

    def _take(self, deadline: float | None) -> Item | None:
        item = self._inbox.take(deadline)
        if self._is_interrupted:
            raise _Interrupted
        return item

    def _new_feed(self, before: Callable[[], object] | None = None) -> Feed:
        return Feed(
            self._plan.transport,
            self._inbox,
            self._callbacks.greetings.all(),
            stale_after=self._plan.stale_after,
            on_thread=self._on_thread,
            before=before,
        )

    def _new_replay(self, since: float) -> Quiet:
        return Quiet(self._plan.sync_quiet, self._plan.sync_max, since)

    def _set_feed(self, feed: Feed | None) -> None:
        self._feed = feed
        with self._state.changed:
            self._state.link = None if feed is None else feed.link

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
        if feed is not None and feed.link is not None and self._state.status in OPEN:
            self._callbacks.farewells.call(feed.link)
            feed.close(self._plan.transport.close_timeout)

    def _delay(self, failures: int, error: ClientError) -> float | None:
        try:
            return self._plan.backoff.delay(failures, error)
        except Exception:
            log.exception("the rule for new attempts raised; the usual one is taken")
            return dataclasses.replace(self._plan.backoff, retry=is_worth_a_retry).delay(failures, error)


def _not_greeted(feed: Feed, transport: Transport) -> ClientError:
    what = "not open" if feed.link is None else "not greeted"
    return ConnectionUnavailableError(f"{transport.place}: {what} after {2 * transport.open_timeout:g} s")
