"""What each message passes through, in Python: for systems on which ``compiled`` cannot be had.

Comes in: ready sockets, messages that are pushed. Goes out: messages to mailboxes, bytes to sockets. What is shared
between threads has a lock, held for a few instructions and never across user code, a wait or a wake-up.
"""

from __future__ import annotations

import contextvars
import select
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from krait_ws.config import Config
from krait_ws.core.hubs import (
    LONGEST,
    ON_LOOP,
    get_hub_if_exists,
    getcurrent,
    is_served,
    monotonic,
    new_lock,
    switch_to,
)
from krait_ws.core.sizes import memory_size, no_one
from krait_ws.protocol.frames import encode_binary, encode_text
from krait_ws.protocol.messages import Item

Lock = new_lock
READ, WRITE, HANGUP = 1, 2, 4


class Waiter(Protocol):
    """One wait of one thread or greenlet."""

    def wait(self, timeout: float | None) -> bool:
        """Waits at most ``timeout`` seconds, without end when ``None``. Returns whether it was woken."""

    def wake(self) -> None:
        """Ends the wait, or the coming wait. Thread: any. At most once.

        Called on the network loop, it runs a waiting greenlet at once: no lock may be held.
        """


def _bounded(timeout: float) -> float:
    return min(max(0.0, timeout), LONGEST)


class _ThreadWaiter:
    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = new_lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        return bool(self._lock.acquire(True, -1 if timeout is None else _bounded(timeout)))

    def wake(self) -> None:
        self._lock.release()


class _GreenletWaiter:
    __slots__ = ("_greenlet", "_hub", "_woken")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._greenlet: Any = None
        self._woken = False

    def wait(self, timeout: float | None) -> bool:
        # The greenlet is named before the flag is read: a wake from another thread after that finds it.
        self._greenlet = getcurrent()
        if self._woken:
            self._greenlet = None
            return True
        hub = self._hub
        timer = None
        if timeout is not None or not is_served(hub):
            timer = hub.loop.timer(LONGEST if timeout is None else _bounded(timeout))
            timer.start(self._resume)
        try:
            switch_to(hub)
        finally:
            self._greenlet = None
            if timer is not None:
                timer.close()
        return self._woken

    def wake(self) -> None:
        self._woken = True
        hub = self._hub
        if getcurrent() is hub:
            sleeper, self._greenlet = self._greenlet, None
            if sleeper is not None:
                sleeper.switch()  # on the loop itself: it runs now, until it waits again
        elif get_hub_if_exists() is hub:
            hub.loop.run_callback(self._resume)
        else:
            hub.loop.run_callback_threadsafe(self._resume)

    def _resume(self) -> None:
        sleeper, self._greenlet = self._greenlet, None
        if sleeper is not None:
            sleeper.switch()


class Waiters:
    """Those who wait for one condition, first come first woken. Guarded by the owner's lock.

    Waking takes two steps: they are taken out under the lock, and woken without it.
    """

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[Waiter] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def add_locked(self) -> Waiter:
        """Enters the caller; it must let go of the lock and call ``Waiter.wait``.

        Raises:
            RuntimeError: The caller is the network loop.
        """
        hub = get_hub_if_exists()
        if hub is not None and getcurrent() is hub:
            raise RuntimeError(ON_LOOP)
        waiter: Waiter = _ThreadWaiter() if hub is None else _GreenletWaiter(hub)
        if self._waiters:
            self._waiters.append(waiter)
        else:
            self._waiters = [waiter]
        return waiter

    def remove_locked(self, waiter: Waiter) -> bool:
        """Takes a waiter out; ``False`` when it has been woken already."""
        if self._waiters is None or waiter not in self._waiters:
            return False
        self._waiters.remove(waiter)
        return True

    def move_all_locked(self, other: Waiters) -> None:
        """Those who wait here wait in ``other`` from now on."""
        if self._waiters:
            other._waiters = [*(other._waiters or ()), *self._waiters]
            self._waiters = None

    def take_locked(self, most: int) -> list[Waiter] | tuple[()]:
        """The next in line, up to ``most``, to be woken when the lock is let go."""
        waiters = self._waiters
        if not waiters:
            return ()
        if len(waiters) <= most:
            self._waiters = None
            return waiters
        self._waiters = waiters[most:]
        return waiters[:most]

    def take_all_locked(self) -> list[Waiter] | tuple[()]:
        """All of them, to be woken when the lock is let go."""
        if not self._waiters:
            return ()
        waiters, self._waiters = self._waiters, None
        return waiters


def wake_all(waiters: Iterable[Waiter]) -> None:
    """Wakes those that were taken out; no lock may be held."""
    for waiter in waiters:
        waiter.wake()


class InQueue:
    """Messages that arrived and were not popped yet, in order.

    ``on_room`` is called once, outside the lock, when a full mailbox has fallen to half of its limits; ``on_drained``
    whenever a pop finds it empty and waits.
    """

    __slots__ = (
        "_arrived",
        "_bytes",
        "_closed",
        "_full",
        "_lock",
        "_next",
        "_poppers",
        "_room_waiters",
        "_waits",
        "limits",
        "on_drained",
        "on_room",
    )

    def __init__(self, limits: Config) -> None:
        self.limits = limits
        self.on_room: Callable[[], None] = no_one
        self.on_drained: Callable[[], None] = no_one
        self._lock = new_lock()
        # Two lists cost a fraction of an empty deque. Guarded by _lock, as is all below.
        self._arrived: list[Item] = []  # in order, behind those in _next
        self._next: list[Item] = []  # in reverse, so that the next is its last
        self._bytes = 0
        self._full = False
        self._waits = True
        self._closed = False
        self._poppers = Waiters()
        self._room_waiters = Waiters()

    def __len__(self) -> int:
        return len(self._arrived) + len(self._next)

    @property
    def is_drained(self) -> bool:
        """Whether it is empty and somebody waits for more, so that what came before has been dealt with."""
        with self._lock:
            return not self._arrived and not self._next and bool(self._poppers)

    @property
    def is_full(self) -> bool:
        """Whether its producer must wait for ``on_room``."""
        return self._full

    def put(self, messages: list[Item], wake: Callable[[Iterable[Waiter]], None] = wake_all) -> bool:
        """Appends what arrived. Returns ``False`` when the mailbox is full now. Thread: any; never waits.

        Once it is closed, messages are dropped: their connection is over.

        Args:
            wake: Wakes those who have waited for them, now or soon.
        """
        with self._lock:
            if self._closed:
                return True
            self._arrived += messages
            size = self._bytes
            for message in messages:
                # The two common kinds are measured here, without a call.
                is_plain = type(message) is bytes or (type(message) is str and message.isascii())
                size += len(message) if is_plain else memory_size(message)
            self._bytes = size
            waiters = self._poppers.take_locked(len(messages))
            if size >= self.limits.max_in_bytes or len(self) >= self.limits.max_in_messages:
                self._full = self._waits
        if waiters:
            wake(waiters)
        return not self._full

    def pop(self, timeout: float | None = 0) -> Item | None:
        """The next message; ``None`` after ``timeout`` seconds, or once the mailbox is closed and empty.

        Raises:
            RuntimeError: It would wait on the network loop.
        """
        deadline = None
        while True:
            with self._lock:
                if not self._next and self._arrived:
                    self._next, self._arrived = self._arrived, self._next
                    self._next.reverse()
                if self._next:
                    message = self._next.pop()
                    is_plain = type(message) is bytes or (type(message) is str and message.isascii())
                    self._bytes -= len(message) if is_plain else memory_size(message)
                    room = self._full and self._regain_room_locked()
                    waiters = self._room_waiters.take_all_locked() if room else ()
                    break
                if self._closed or not self._waits or timeout == 0:
                    return None
                waiter = self._poppers.add_locked()
            self.on_drained()
            if timeout is None:
                remaining = None
            else:
                deadline = deadline or monotonic() + timeout
                remaining = deadline - monotonic()
            woken = False
            try:
                woken = waiter.wait(remaining)
            finally:
                if not woken:
                    self._leave(waiter)
            if not woken:
                timeout = 0  # a last look, for what came at the same moment
        if room:
            wake_all(waiters)
            self.on_room()
        return message

    def wait_for_room(self) -> None:
        """Waits until the mailbox is not full or is closed. For the thread that delivers messages to it."""
        with self._lock:
            if self._closed or not self._full:
                return
            waiter = self._room_waiters.add_locked()
        waiter.wait(None)

    def end_waiting(self) -> None:
        """From now on nobody waits here, for messages or for room; what is still put can be popped. For a mailbox whose
        source has ended but for what a hook is still to put in. Thread: any."""
        with self._lock:
            self._waits = False
            self._full = False
            waiters = [*self._poppers.take_all_locked(), *self._room_waiters.take_all_locked()]
        wake_all(waiters)

    def close(self) -> None:
        """Takes nothing more and wakes every wait; what is in it can still be popped. Thread: any."""
        with self._lock:
            self._closed = True
            waiters = [*self._poppers.take_all_locked(), *self._room_waiters.take_all_locked()]
        wake_all(waiters)

    def _regain_room_locked(self) -> bool:
        if len(self) * 2 > self.limits.max_in_messages or self._bytes * 2 > self.limits.max_in_bytes:
            return False
        self._full = False
        return True

    def _leave(self, waiter: Waiter) -> None:
        """A wait ended by its timeout or an exception. A wake-up that came too late goes to the next in line."""
        with self._lock:
            late = not self._poppers.remove_locked(waiter) and len(self)
            following = self._poppers.take_locked(1) if late else ()
        wake_all(following)


class OutQueue:
    """Encoded frames that wait for the network loop, and the ways in and out that are taken most of the time.

    A subclass has the others: ``send_other``, ``push_with_care``, ``take_with_care``.
    """

    __slots__ = (
        "_bytes",
        "_closed",
        "_has_fragments",
        "_held",
        "_lock",
        "_pushers",
        "_signalled",
        "frames",
        "limits",
        "on_output",
        "on_overflow",
        "taken",
    )

    def __init__(self, limits: Config) -> None:
        self.limits = limits
        self.on_output: Callable[[], None] = no_one
        self.on_overflow: Callable[[], None] = no_one
        self._lock = new_lock()
        self.frames: list[bytes] = []  # what waits; guarded by _lock, as is all below
        self._bytes = 0
        self._signalled = False  # the loop knows that there is something to take
        self._closed = False
        self._pushers = Waiters()
        self._held: Any = None  # what was pushed since a fragmented message began
        self._has_fragments = False  # there may be some among the frames, or one goes on
        self.taken = 0  # messages that have left, each with its last frame

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def is_congested(self) -> bool:
        """Whether it is more than half full: time to stop producing."""
        return self._bytes * 2 > self.limits.max_out_bytes or len(self.frames) * 2 > self.limits.max_out_messages

    def send(self, message: Any) -> bool:
        """Encodes a message and pushes it."""
        if type(message) is str:
            return self.push(encode_text(message))
        if type(message) is bytes:
            return self.push(encode_binary(message))
        return self.send_other(message)

    def send_other(self, message: Any) -> bool:
        """Pushes what is neither exactly ``str`` nor ``bytes``."""
        raise NotImplementedError(f"{type(self).__name__} must say what else can be sent")

    def push(self, frame: bytes, *, may_block: bool = True) -> bool:
        """Appends a frame. Returns ``False`` when the connection is over or the policy dropped it. Thread: any.

        May wait for room up to ``push_timeout`` where the policy is ``block``; without ``may_block`` and on the network
        loop, where it cannot, a full mailbox ends the connection.
        """
        with self._lock:
            if self._closed:
                return False
            room = self._held is None and self._has_room_locked(len(frame))
            if room:
                self.frames.append(frame)
                self._bytes += len(frame)
                wake = not self._signalled
                self._signalled = True
        if not room:
            return self.push_with_care(frame, may_block=may_block)
        if wake:
            self.on_output()
        return True

    def push_with_care(self, frame: bytes, *, may_block: bool) -> bool:
        """As ``push``, where there may be no room."""
        raise NotImplementedError(f"{type(self).__name__} must say what a full mailbox does")

    def _post(self, frame: bytes) -> tuple[bool, bool]:
        """As ``push`` that may not block, without ``on_output``. Returns whether the frame is queued, and whether the
        caller must see to it that the loop is told."""
        with self._lock:
            if not self._closed and self._held is None and self._has_room_locked(len(frame)):
                self.frames.append(frame)
                self._bytes += len(frame)
                is_news = not self._signalled
                self._signalled = True
                return True, is_news
        return self.push_with_care(frame, may_block=False), False

    def take(self, max_bytes: int) -> list[bytes]:
        """Frames of up to ``max_bytes`` together, at least one; none when there is none. Called by: the loop."""
        with self._lock:
            is_simple = self._bytes <= max_bytes and not self._has_fragments
            if is_simple:
                frames, self.frames = self.frames, []
                self._bytes = 0
                self._signalled = False
                self.taken += len(frames)
                waiters = self._pushers.take_all_locked()
        if not is_simple:
            return self.take_with_care(max_bytes)
        wake_all(waiters)
        return frames

    def take_with_care(self, max_bytes: int) -> list[bytes]:
        """As ``take``, where it may be a part of what there is."""
        raise NotImplementedError(f"{type(self).__name__} must say how much it gives")

    def _has_room_locked(self, size: int) -> bool:
        # A frame that is larger than the limit passes alone: it could never be sent otherwise.
        return not self.frames or (
            len(self.frames) < self.limits.max_out_messages and self._bytes + size <= self.limits.max_out_bytes
        )


class SessionCore:
    """What the path of a message needs of a session; see ``Session``."""

    __slots__ = (
        "_context",
        "_delivers_on_loop",
        "_ended",
        "_hook",
        "_in_lock",
        "_rest",
        "_transport",
        "_wake",
        "arrivals",
        "bytes_in",
        "bytes_out",
        "messages_in",
        "outgoing",
        "shared_window",
    )

    arrivals: Any
    bytes_in: int
    bytes_out: int
    messages_in: int
    outgoing: Any
    shared_window: int
    _context: contextvars.Context | None
    _delivers_on_loop: bool
    _ended: bool
    _hook: Callable[[Any], None] | None
    _in_lock: Any
    _rest: Any
    _transport: Any
    _wake: Callable[[Iterable[Waiter]], None]


def post_all(sessions: list[Any], frame: bytes, own_frame: Callable[[Any], bytes], news: list[Any]) -> int:
    """Queues a frame for each of them, as ``OutQueue.push`` that may not block, but for ``on_output``.

    Args:
        own_frame: Called with a session that has a ``shared_window``: what it takes instead.
        news: Gets those of which the caller must tell the loop, also when this raises.

    Returns:
        For how many it is queued.

    Thread: any.
    """
    queued = 0
    for session in sessions:
        own = own_frame(session) if session.shared_window else frame
        is_queued, is_news = session.outgoing._post(own)
        queued += is_queued
        if is_news:
            news.append(session)
    return queued


def send_posted(sessions: list[Any]) -> None:
    """Sends what waits for those that are connected. Thread: the loop."""
    for session in sessions:
        if session._transport is not None:
            session._transport.send_now()


class LinkCore:
    """What the path of a message needs of a connection; see ``network.connection.Connection``. Nothing is lent here:
    threads wait for their messages, and the loop reads them."""

    __slots__ = (
        "_descriptor",
        "_in_system",
        "_loop",
        "_reading",
        "_session",
        "_sock",
        "_unread",
        "_unsent",
        "heard_at",
        "max_size",
        "stuck_since",
        "usual",
        "writable",
    )

    heard_at: float
    max_size: int
    stuck_since: float | None
    usual: bool
    """Whether whole frames may come now and are messages, so that nothing else need be known of them."""
    writable: bool
    """Whether frames may go out as they are."""
    _descriptor: int
    _in_system: int | None
    _loop: Any
    _reading: bool
    _session: Any
    _sock: Any
    _unread: bytes
    """What was read, and comes before anything else that is."""
    _unsent: memoryview | None
    """The rest of a chunk that the socket did not take."""

    is_lent = False
    """Whether a thread reads the socket at present, so that the loop must not."""

    def connect(self) -> None:
        """What its session's handlers push on the loop's own thread need not be told to the loop. Thread: the loop."""

    def disconnect(self) -> None:
        """The socket is gone: nothing comes and goes here any more. Thread: the loop."""
        self.usual = self.writable = False

    def lend(self) -> None:
        """A thread that takes its messages may read them from the socket. Thread: the loop."""

    def send_now(self) -> None:
        """Sends what waits in the out-mailbox. Thread: the loop."""
        self.flush()

    def flush(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must send")

    def begin_sending(self) -> bool:
        """Returns whether nobody else sends at the moment; else the loop will flush when they have."""
        return True

    def end_sending(self) -> None:
        """Others may send again."""

    def recall(self) -> None:
        """The loop wants to read on. Thread: the loop."""

    def leave_to_waiter(self, sock: Any) -> bool:
        """A socket may not be closed while a thread waits for it. Returns whether the thread closes it.

        Thread: the loop."""
        return False


class LoopCore:
    """The network loop's turn; see ``network.loop.Loop``, which says what the other methods do."""

    def __init__(self, buffer_size: int) -> None:
        self.buffer = bytearray(buffer_size)
        self.in_hook: Any = None
        self.now = 0.0
        self._scheduled = False
        self._woken = False
        self.linger = 0  # microseconds that whoever is about to sleep looks on; here nobody does

    def watches_with(self, epoll: Any, hub_descriptor: int) -> None:
        """What ``serve_epoll`` will be called with, and what is readable when anything of the hub is ready; below 0 for
        none. Thread: the loop."""

    def serve_epoll(self, epoll: Any, owners: dict[int, Any], most: int) -> int:
        """Serves up to ``most`` ready sockets and what that set off; returns how many were ready. Never waits.

        Thread: the loop."""
        ready = epoll.poll(0, most)
        if ready:
            self._scheduled = True  # calls made meanwhile are run below
            self.now = monotonic()
            for descriptor, mask in ready:
                owner = owners.get(descriptor)  # one that has been served may have ended another
                if owner is not None:
                    self._serve_one(owner, READ if mask == _EPOLLIN else _EVENTS.get(mask, READ | WRITE))
            self._run_soon()
        return len(ready)

    def lingers(self) -> bool:
        """Looks for what may be ready in a moment, where that has paid lately. Returns whether something of the hub is.

        Thread: the loop, when it has nothing else to do."""
        return False

    is_dirty = False
    """Whether ``flush_dirty`` has something to do."""

    def flush_dirty(self) -> None:
        """Sends what hooks and handlers on the loop have pushed. Thread: the loop."""

    def tick(self) -> bool:
        """Looks after what is lent to threads; returns whether to look again. Thread: the loop."""
        return False

    def _serve_one(self, owner: Any, events: int) -> None:
        try:
            owner.on_ready(events)
        except Exception:
            self._failed(owner)

    def _failed(self, owner: Any) -> None:
        raise NotImplementedError(f"{type(self).__name__} must say what becomes of an owner that raises")

    def _run_soon(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must run its calls")


_EPOLLIN = getattr(select, "EPOLLIN", 0)
_EVENTS = (
    {
        select.EPOLLOUT: WRITE,
        select.EPOLLIN | select.EPOLLOUT: READ | WRITE,
        select.EPOLLRDHUP: HANGUP,
        select.EPOLLRDHUP | select.EPOLLOUT: HANGUP | WRITE,
    }
    if hasattr(select, "EPOLLRDHUP")
    else {}
)
