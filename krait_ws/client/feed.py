"""One connection of a stream, in a thread of its own: opens it, greets, and passes on what arrives.

Comes in: a transport. Goes out, into the inbox of the stream: that it is open, each message with the time of its
arrival, and why it is over. The stream's thread is the only one that takes from the inbox.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from krait_ws.client.errors import ClientError, ConnectionUnavailableError, PeerTimeoutError
from krait_ws.client.link import Link, Message
from krait_ws.client.transport import Dial, Transport

INBOX_SIZE = 1024
"""Messages that wait for the stream's callbacks; beyond that the connection is not read and TCP makes the server
wait."""

INBOX_BYTES = 16 << 20
"""The same for what the messages hold, in bytes or characters."""

Greeting = Callable[[Link], object]
"""Called with each new connection before its first message is read; may send and receive."""


@dataclass(frozen=True)
class Opened:
    """A feed's connection is open and greeted."""

    feed: Feed
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Arrived:
    """A feed brings a message."""

    feed: Feed
    message: Message
    received_at: datetime
    at: float


@dataclass(frozen=True)
class Ended:
    """A feed's connection was not opened, or is over."""

    feed: Feed
    error: ClientError
    at: float = field(default_factory=time.monotonic)


Item = Opened | Arrived | Ended


class Inbox:
    """What the feeds of one stream bring, in the order in which it came. Bounded. Thread: any."""

    def __init__(self, size: int = INBOX_SIZE) -> None:
        self._size = size
        self._items: deque[Item] = deque()  # guarded by _changed
        self._bytes = 0  # in the messages of _items; guarded by _changed
        self._is_interrupted = False  # guarded by _changed
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        """Adds an item, once there is room; what a silenced feed brings is dropped."""
        with self._changed:
            if isinstance(item, Arrived):
                self._changed.wait_for(lambda: not self._is_full_locked() or item.feed.is_silent)
            if not item.feed.is_silent:
                self._items.append(item)
                self._bytes += _size(item)
                self._changed.notify_all()

    def take(self, deadline: float | None) -> Item | None:
        """The next item; ``None`` when there is none at the deadline (``time.monotonic``), or after ``interrupt``."""
        with self._changed:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._changed.wait_for(lambda: self._items or self._is_interrupted, timeout)
            if self._is_interrupted or not self._items:
                return None
            was_full = self._is_full_locked()
            item = self._items.popleft()
            self._bytes -= _size(item)
            if was_full and not self._is_full_locked():
                self._changed.notify_all()
            return item

    def interrupt(self) -> None:
        """From now on ``take`` returns ``None`` at once."""
        with self._changed:
            self._is_interrupted = True
            self._changed.notify_all()

    def drop(self, feed: Feed) -> None:
        """Silences a feed: nothing of it is in the inbox any more, and nothing will be."""
        with self._changed:
            feed.is_silent = True
            self._items = deque(item for item in self._items if item.feed is not feed)
            self._bytes = sum(map(_size, self._items))
            self._changed.notify_all()

    def _is_full_locked(self) -> bool:
        return len(self._items) >= self._size or self._bytes >= INBOX_BYTES


def _size(item: Item) -> int:
    return len(item.message) if isinstance(item, Arrived) else 0


class Feed:
    """One connection. Made, and told to end, by the stream's thread.

    Args:
        before: Called first, in the feed's thread: what gets new credentials. May block.
        stale_after: Seconds without a message that mean the connection is lost; ``None`` does not care.
        on_thread: Called first in the feed's thread, so that the stream knows its own threads.
    """

    def __init__(
        self,
        transport: Transport,
        inbox: Inbox,
        greetings: Sequence[Greeting],
        *,
        stale_after: float | None,
        on_thread: Callable[[], None],
        before: Callable[[], object] | None = None,
    ) -> None:
        self.link: Link | None = None
        """The connection, once it is open; read from any thread."""
        self.is_silent = False  # guarded by the inbox's lock
        self.give_up_at = time.monotonic() + 2 * transport.open_timeout
        """When opening and greeting have taken too long."""
        self._transport = transport
        self._inbox = inbox
        self._greetings = greetings
        self._stale_after = stale_after
        self._on_thread = on_thread
        self._before = before
        self._lock = threading.Lock()
        self._is_over = False  # guarded by _lock
        self._dial: Dial | None = None  # guarded by _lock
        self._thread = threading.Thread(target=self._run, name="krait-client-feed", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Ends the connection with a closing handshake, if there is one. Nothing of it comes any more."""
        self._end(lambda link: link.close())
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def retire(self) -> None:
        """Closes without waiting for it, because another connection took over."""
        self._inbox.drop(self)
        threading.Thread(target=self.close, args=(0,), name="krait-client-retire", daemon=True).start()

    def abort(self) -> None:
        """Ends the connection, or the attempt to open it, at once. Nothing of it comes any more."""
        self._end(lambda link: link.abort())

    def _end(self, end: Callable[[Link], None]) -> None:
        self._inbox.drop(self)
        with self._lock:
            self._is_over = True
            dial, link = self._dial, self.link
        if dial is not None:
            dial.give_up()
        if link is not None:
            end(link)

    def _run(self) -> None:
        self._on_thread()
        try:
            link = self._open()
            for greet in self._greetings:
                greet(link)
            self._inbox.put(Opened(self))
            self._pass_on(link)
        except ClientError as error:
            ended = error
        except BaseException as error:  # a greeting, or what gets credentials: the user's code, sys.exit too
            ended = ConnectionUnavailableError(f"{self._transport.place}: {error!r}")
            ended.__cause__ = error
        if self.link is not None:
            self.link.abort()  # nothing to do where it is closed
        self._inbox.put(Ended(self, ended))

    def _open(self) -> Link:
        if self._before is not None:
            self._before()
        with self._lock:
            dial = None if self._is_over else self._transport.dial()
            self._dial = dial
        if dial is None:
            raise ConnectionUnavailableError(f"{self._transport.place}: given up before it was opened")
        link = dial.wait()
        with self._lock:
            self._dial = None
            self.link = link
            is_over = self._is_over
        if is_over:
            link.abort()
        return link

    def _pass_on(self, link: Link) -> None:
        """Until the end of the connection, which is an exception."""
        while True:
            try:
                message = link.recv(self._stale_after)
            except TimeoutError:
                raise PeerTimeoutError(f"{self._transport.place}: no message for {self._stale_after:g} s") from None
            self._inbox.put(Arrived(self, message, datetime.now(timezone.utc), time.monotonic()))
