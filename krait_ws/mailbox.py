"""The two mailboxes between a handler and the network loop, bounded and lock-protected.

``InMailbox``: the loop puts what arrived, the handler pops. It never refuses and never waits in ``put``: when it is
full it says so, and its producer stops reading the socket until ``on_room``; so it holds at most its limits and what
one read of the socket gave. ``OutMailbox``: the handler pushes encoded frames, the loop takes them. When it is full
the slow-consumer policy decides.

One lock each, held for a few instructions and never across user code, a wait or a wake-up call of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from krait_ws.config import Config
from krait_ws.protocol.deflate import RSV1, inflate_shared
from krait_ws.protocol.frames import CONTINUATION, FIN, TEXT, Message, is_whole, payload_of
from krait_ws.protocol.messages import Item, Piece
from krait_ws.waiting import Waiter, Waiters, may_wait, monotonic, new_lock, wake_all


def memory_size(item: Item) -> int:
    """Bytes that a message, or a piece of one, holds at most: four a character when a text is not ASCII."""
    if type(item) is bytes:
        return len(item)
    data = item.data if isinstance(item, Piece) else item
    return len(data) if isinstance(data, bytes) or data.isascii() else 4 * len(data)


class Pressure(NamedTuple):
    """How far a client is behind what is pushed to it."""

    messages: int
    """Messages that wait to be sent."""
    bytes: int
    """Bytes of them."""
    dropped: int
    """Messages that ``slow_consumer`` has dropped so far."""
    blocked: int
    """Pushes that had to wait so far."""


def no_one() -> None:
    """What a mailbox calls that nobody has connected."""


class InMailbox:
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


class OutMailbox:
    """Encoded frames that wait for the network loop, in order.

    ``on_output`` is called outside the lock when there is something to take and the loop does not know it yet;
    ``on_overflow`` when the policy ends the connection.

    While one thread sends a message in fragments, no other message may come between them (RFC 6455 section 5.4). What
    is pushed meanwhile waits in a mailbox of its own, with the same limits and policy, and joins this one at the end.
    """

    __slots__ = (
        "_bytes",
        "_closed",
        "_has_fragments",
        "_held",
        "_lock",
        "_mid_message",
        "_pushers",
        "_signalled",
        "_streamers",
        "blocked",
        "dropped",
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
        self._held: OutMailbox | None = None  # what was pushed since a fragmented message began
        self._streamers = Waiters()  # for the end of that message
        self._mid_message = False
        self._has_fragments = False  # a message in fragments has been pushed
        self.dropped = 0  # messages that the policy dropped
        self.blocked = 0  # pushes that had to wait
        self.taken = 0  # messages that the loop has taken, each with its last frame

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def pressure(self) -> Pressure:
        """What waits, and what the policy did so far. Thread: any."""
        with self._lock:
            held = self._held
            pressure = Pressure(len(self.frames), self._bytes, self.dropped, self.blocked)
        if held is None:
            return pressure
        return Pressure(*map(sum, zip(pressure, held.pressure, strict=True)))

    @property
    def is_congested(self) -> bool:
        """Whether it is more than half full: time to stop producing."""
        return self._bytes * 2 > self.limits.max_out_bytes or len(self.frames) * 2 > self.limits.max_out_messages

    def push(self, frame: bytes, *, may_block: bool = True) -> bool:
        """Appends a frame. Returns ``False`` when the connection is over or the policy dropped it. Thread: any.

        May wait for room up to ``push_timeout`` where the policy is ``block``; without ``may_block`` and on the network
        loop, where it cannot, a full mailbox ends the connection.
        """
        with self._lock:
            if self._closed:
                return False
            held = self._held
            room = held is None and (not self.frames or self._has_room_locked(len(frame)))
            if room:
                self.frames.append(frame)
                self._bytes += len(frame)
                wake = not self._signalled
                self._signalled = True
        if held is not None:
            return self._push_held(held, frame, may_block=may_block)
        if not room:
            return self._push_when_full(frame, may_block=may_block)
        if wake:
            self.on_output()
        return True

    def post(self, frame: bytes) -> tuple[bool, bool]:
        """As ``push`` that may not block, without ``on_output``. Returns whether the frame is queued, and whether the
        caller must see to it that the loop is told."""
        with self._lock:
            if not self._closed and self._held is None and self._has_room_locked(len(frame)):
                return True, self._append_locked(frame)
        return self.push(frame, may_block=False), False

    def begin_stream(self) -> bool:
        """Begins a fragmented message; waits up to ``push_timeout`` for another one to end.

        Returns ``False`` when it did not, or when the connection is over.

        Raises:
            RuntimeError: It would wait on the network loop.
        """
        deadline = monotonic() + self.limits.push_timeout
        while True:
            with self._lock:
                if self._closed:
                    return False
                if self._held is None:
                    # What waits too long in it is dropped, which its pusher hears: the client is not to blame.
                    self._held = OutMailbox(self.limits)
                    return True
                remaining = deadline - monotonic()
                if remaining <= 0:
                    return False
                waiter = self._streamers.add_locked()
            waiter.wait(remaining)
            with self._lock:
                self._streamers.remove_locked(waiter)

    def push_fragment(self, frame: bytes) -> bool:
        """Appends a frame of the message that ``begin_stream`` began. A fragment cannot be dropped without its message,
        so a full mailbox makes it wait whatever the policy. Returns ``False`` when the connection is over.
        """
        return self._push_blocking(frame, is_fragment=True)

    def end_stream(self) -> None:
        """Ends the message that ``begin_stream`` began. What was pushed meanwhile joins the queue; together they may
        exceed the limits by a factor of two. After half a message nothing can follow: the mailbox closes.
        """
        if self._mid_message:
            self.close()
        wake = False
        waiters: list[Waiter] = []
        with self._lock:
            held, self._held = self._held, None
            if held is not None and not self._mid_message:
                frames, waiters = held._retire()
                for frame in frames:
                    wake = self._append_locked(frame) or wake
            if held is not None:
                self.dropped += held.dropped
                self.blocked += held.blocked
            waiters += self._streamers.take_all_locked()
        wake_all(waiters)
        if wake:
            self.on_output()

    def take(self, max_bytes: int) -> list[bytes]:
        """Frames of up to ``max_bytes`` together, at least one; none when there is none. Called by: the loop."""
        with self._lock:
            if not self.frames:
                self._signalled = False
                return []
            if self._bytes <= max_bytes:
                frames, self.frames = self.frames, []
                self._bytes = 0
                self._signalled = False
            else:
                frames = self._take_some_locked(max_bytes)
            self.taken += sum(frame[0] >= FIN for frame in frames) if self._has_fragments else len(frames)
            waiters = self._pushers.take_all_locked()
        if waiters:
            wake_all(waiters)
        return frames

    def pop(self) -> Message | None:
        """Takes back the next message; ``None`` when there is none, or only a part of one. Thread: any."""
        with self._lock:
            frames = self._take_locked(self._first_message_locked())
            if not frames:
                return None
            waiters = self._pushers.take_all_locked()
        wake_all(waiters)
        payload = b"".join(map(payload_of, frames))
        if frames[0][0] & RSV1:
            payload = inflate_shared(payload)
        return payload.decode() if frames[0][0] & 0x0F == TEXT else payload

    def close(self) -> None:
        """Takes nothing more and wakes every blocked push; what is in it can still be taken. Thread: any."""
        with self._lock:
            self._closed = True
            waiters = [*self._pushers.take_all_locked(), *self._streamers.take_all_locked()]
            held = self._held
        wake_all(waiters)
        if held is not None:
            held.close()

    def _take_some_locked(self, max_bytes: int) -> list[bytes]:
        count, size = 1, len(self.frames[0])
        while count < len(self.frames) and size + len(self.frames[count]) <= max_bytes:
            size += len(self.frames[count])
            count += 1
        return self._take_locked(count)

    def _take_locked(self, count: int) -> list[bytes]:
        frames = self.frames[:count]
        del self.frames[:count]
        self._bytes -= sum(map(len, frames))
        self._signalled = bool(self.frames)
        return frames

    def _retire(self) -> tuple[list[bytes], list[Waiter]]:
        """Empties and closes; those who wait in it, to be woken, try the mailbox that it was held for."""
        with self._lock:
            self._closed = True
            frames, self.frames = self.frames, []
            return frames, list(self._pushers.take_all_locked())

    def _push_held(self, held: OutMailbox, frame: bytes, *, may_block: bool) -> bool:
        if held.push(frame, may_block=may_block):
            return True
        with self._lock:
            ended = not self._closed and self._held is not held
        return self.push(frame, may_block=may_block) if ended else False

    def _first_message_locked(self) -> int:
        """How many frames the first message has; 0 when it is not all here, or its start is on its way already."""
        if not self.frames or self.frames[0][0] & 0x0F == CONTINUATION:
            return 0
        return next((count for count, frame in enumerate(self.frames, 1) if frame[0] >= FIN), 0)

    def _has_room_locked(self, size: int) -> bool:
        # A frame that is larger than the limit passes alone: it could never be sent otherwise.
        return not self.frames or (
            len(self.frames) < self.limits.max_out_messages and self._bytes + size <= self.limits.max_out_bytes
        )

    def _append_locked(self, frame: bytes) -> bool:
        """Returns whether the loop must be told."""
        self.frames.append(frame)
        self._bytes += len(frame)
        self._mid_message = frame[0] < FIN
        self._has_fragments = self._has_fragments or self._mid_message
        wake = not self._signalled
        self._signalled = True
        return wake

    def _push_when_full(self, frame: bytes, *, may_block: bool) -> bool:
        policy = self.limits.slow_consumer
        if policy == "drop_new":
            with self._lock:
                self.dropped += 1
            return False
        if policy == "drop_oldest":
            return self._push_over_oldest(frame)
        if policy == "block" and may_block:
            return self._push_blocking(frame)
        self.on_overflow()
        return False

    def _push_over_oldest(self, frame: bytes) -> bool:
        with self._lock:
            if self._closed:
                return False
            held = self._held  # a message in fragments may have begun since the caller looked
            wake = False
            if held is None:
                while not self._has_room_locked(len(frame)):
                    self.dropped += 1
                    if not self._drop_oldest_locked():
                        return False
                wake = self._append_locked(frame)
        if held is not None:
            return self._push_held(held, frame, may_block=True)
        if wake:
            self.on_output()
        return True

    def _drop_oldest_locked(self) -> bool:
        """Drops the oldest whole message. Fragments stay: those before them may be on their way already."""
        for index, frame in enumerate(self.frames):
            if is_whole(frame):
                del self.frames[index]
                self._bytes -= len(frame)
                return True
        return False

    def _push_blocking(self, frame: bytes, *, is_fragment: bool = False) -> bool:
        deadline = None
        wake = False
        while True:
            with self._lock:
                if self._closed:
                    return False
                held = None if is_fragment else self._held
                if held is not None:
                    break  # a message in fragments has begun since the caller looked: this one comes behind it
                if self._has_room_locked(len(frame)):
                    wake = self._append_locked(frame)
                    break
                if deadline is None:
                    self.blocked += 1
                    deadline = monotonic() + self.limits.push_timeout
                remaining = deadline - monotonic()
                waiter = self._pushers.add_locked() if remaining > 0 and may_wait() else None
            if waiter is None:
                self.on_overflow()
                return False
            waiter.wait(remaining)
            with self._lock:
                self._pushers.remove_locked(waiter)
        if held is not None:
            return self._push_held(held, frame, may_block=True)
        if wake:
            self.on_output()
        return True
