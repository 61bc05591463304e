"""The two mailboxes between a handler and the network loop, bounded and lock-protected.

``InMailbox``: the loop puts what arrived, the handler pops. It never refuses and never waits in ``put``: when it is
full it says so, and its producer stops reading the socket until ``on_room``; so it holds at most its limits and what
one read of the socket gave. ``OutMailbox``: the handler pushes encoded frames, the loop takes them. When it is full
the slow-consumer policy decides.

Both are built on ``core``, which has what a usual message passes through; here is the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from krait_ws.config import Config
from krait_ws.core import InQueue, OutQueue
from krait_ws.core.sizes import memory_size as memory_size
from krait_ws.core.sizes import no_one as no_one
from krait_ws.protocol.deflate import RSV1, inflate_shared
from krait_ws.protocol.frames import (
    BYTES_LIKE,
    CONTINUATION,
    FIN,
    TEXT,
    Message,
    encode_binary,
    encode_text,
    is_whole,
    payload_of,
)
from krait_ws.waiting import Waiter, Waiters, may_wait, monotonic, wake_all


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


class InMailbox(InQueue):
    """Messages that arrived and were not popped yet, in order.

    ``on_room`` is called once, outside the lock, when a full mailbox has fallen to half of its limits; ``on_drained``
    whenever a pop finds it empty and waits.
    """

    __slots__ = ()


class OutMailbox(OutQueue):
    """Encoded frames that wait for the network loop, in order.

    ``on_output`` is called outside the lock when there is something to take and the loop does not know it yet;
    ``on_overflow`` when the policy ends the connection.

    While one thread sends a message in fragments, no other message may come between them (RFC 6455 section 5.4). What
    is pushed meanwhile waits in a mailbox of its own, with the same limits and policy, and joins this one at the end.
    """

    __slots__ = ("_mid_message", "_streamers", "blocked", "dropped")

    def __init__(self, limits: Config) -> None:
        super().__init__(limits)
        self._streamers = Waiters()  # for the end of a fragmented message; guarded by _lock, as is all below
        self._mid_message = False
        self.dropped = 0  # messages that the policy dropped
        self.blocked = 0  # pushes that had to wait

    @property
    def pressure(self) -> Pressure:
        """What waits, and what the policy did so far. Thread: any."""
        with self._lock:
            held: OutMailbox | None = self._held
            pressure = Pressure(len(self.frames), self._bytes, self.dropped, self.blocked)
        if held is None:
            return pressure
        return Pressure(*map(sum, zip(pressure, held.pressure, strict=True)))

    def send_other(self, message: Any) -> bool:
        """Pushes a message that is a subclass of ``str``, or bytes-like.

        Raises:
            TypeError: It is neither.
        """
        if isinstance(message, str):
            return self.push(encode_text(message))
        if isinstance(message, BYTES_LIKE):
            return self.push(encode_binary(message))
        raise TypeError(
            f"a message is str, bytes-like or an iterator of them, not {type(message).__name__}: "
            "make it one, for example with json.dumps"
        )

    def push_with_care(self, frame: bytes, *, may_block: bool) -> bool:
        """As ``push``, where there may be no room."""
        wake = False
        with self._lock:
            if self._closed:
                return False
            held = self._held
            room = held is None and self._has_room_locked(len(frame))
            if room:
                wake = self._append_locked(frame)
        if held is not None:
            return self._push_held(held, frame, may_block=may_block)
        if not room:
            return self._push_when_full(frame, may_block=may_block)
        if wake:
            self.on_output()
        return True

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

    def take_with_care(self, max_bytes: int) -> list[bytes]:
        """As ``take``, where it may be a part of what there is."""
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
            self._has_fragments = bool(self.frames) or self._mid_message
            waiters = self._pushers.take_all_locked()
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
