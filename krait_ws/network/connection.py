"""One socket and its protocol state. Owned by the network loop: every method runs there, and nothing here has a lock.

Comes in: bytes of the socket, frames of the session's out-mailbox. Goes out: messages to the session, bytes to the
socket. Its life::

    open      reads and writes; pauses reading while the session has no room
    closing   ``close`` was called: what is queued is sent, then the close frame; the peer's is waited for
    ending    the peer's close frame, or its fault, came first and ours has been sent: our half of TCP is shut, the rest
              is read away (RFC 6455 section 7.1.1)
    gone      the socket is closed; at once when the peer answers our close frame

From closing on a timer runs: a peer that does not do its part within ``close_timeout`` is cut off.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

if sys.platform.startswith("linux"):
    import fcntl
    import termios

from gevent.monkey import get_original

from krait_ws.core import LinkCore
from krait_ws.network.loop import BUFFER_SIZE, Loop, Timer
from krait_ws.network.poller import HANGUP, READ, WRITE
from krait_ws.network.tls import TlsSocket
from krait_ws.protocol.connection import ProtocolState, State
from krait_ws.protocol.deflate import Deflate
from krait_ws.protocol.frames import ABNORMAL
from krait_ws.protocol.messages import MAX_WORK_A_TURN
from krait_ws.session import Session
from krait_ws.waiting import monotonic

READ_SIZE = 16 * 1024
"""Bytes taken in one turn, so that a busy connection leaves turns to the others. Inside a large frame and after one, as
its bytes cost far less each, it is up to the whole buffer."""

SEND_SIZE = 64 * 1024
"""Bytes of frames that are joined to one send; a larger frame goes alone."""

FLUSH_BUDGET = 4 * SEND_SIZE
"""Bytes sent in one turn."""

_COPY_BELOW = 4 * 1024  # bytes


_OPEN, _CLOSE_SENT, _FAILED, _CLOSED = State

# What the system itself serves, whether or not the standard library is patched.
_NativeSocket = get_original("socket", "socket")


class Connection(LinkCore):
    """See the module.

    Args:
        loop: The network loop that owns it.
        sock: A connected socket; it is this connection's from now on.
        session: Whose messages it carries.
        received: What the client sent behind its handshake.
        deflate: The codec, when permessage-deflate was negotiated.
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_deflate",
        "_ending",
        "_hung_up",
        "_parts",
        "_protocol",
        "_read_size",
        "_take",
        "_takes_usual",
        "_timer",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket | TlsSocket,
        session: Session,
        received: bytes,
        deflate: Deflate | None = None,
    ) -> None:
        self._loop = loop
        self._sock: socket.socket | TlsSocket | None = sock
        self._descriptor = sock.fileno()
        self._session = session
        self._deflate = deflate
        self._take = session.outgoing.take if deflate is None else self._take_compressed
        self._protocol = ProtocolState(session.config.max_message_size, deflate, streams=session.streams)
        self._parts: Sequence[bytes] = ()  # of a large message that is being compressed
        self._closing: tuple[int, str] | None = None
        self._ending = False
        self._reading = True
        self._read_size = READ_SIZE
        self._hung_up = False
        self._unsent: memoryview | None = None  # the rest of a chunk that the socket did not take
        self._timer: Timer | None = None
        self.heard_at = monotonic()
        self.stuck_since: float | None = None
        self._in_system: int | None = None  # bytes that the system had not sent when it was asked last
        self.max_size = session.config.max_message_size
        # Whole frames may be taken, and sent, as they are; a session that counts or gives pieces must see them itself.
        is_plain = type(sock) is _NativeSocket and deflate is None
        self.writable = is_plain
        self._takes_usual = is_plain and not session.streams and not session.counts
        self._unread = received
        self.usual = self._takes_usual and not received
        sock.setblocking(False)
        if deflate is not None:
            session.shared_window = deflate.window_bits
        loop.watch(self._descriptor, self, READ)
        self.connect()
        if self._takes_usual and session.config.runs_on == "thread" and session.arrivals is not None:
            self.lend()
        session.attach(self)
        if received:
            session.bytes_in += len(received)
            loop.call(self._receive_unread)  # on the loop itself, where hooks may be called

    # ---- called by the loop

    def on_ready(self, events: int) -> None:
        """The socket is ready."""
        if events & READ and self.is_lent:  # an error, or a hang-up: the thread has it too, unless it is busy
            self.recall()
            if self.is_lent:
                events &= ~READ
        if events & READ:
            if self._reading:
                self._read()
            else:
                self._gone()  # reading is paused and not watched: this is an error or a hang-up
        elif events & HANGUP:
            self._hang_up()
        if events & WRITE and self._unsent is not None:
            self._send(self._unsent)
            self.flush()

    def abort(self) -> None:
        """Closes the socket now."""
        self._gone()

    # ---- called by the session

    def flush(self) -> None:
        """Sends what there is to send, up to a budget; the rest has its next turn soon."""
        if not self.begin_sending():
            return
        try:
            self._flush()
        finally:
            self.end_sending()

    def _flush(self) -> None:
        protocol = self._protocol
        outgoing = self._session.outgoing
        budget = FLUSH_BUDGET
        while self._sock is not None and self._unsent is None:
            if protocol.owes or self._closing is not None or protocol.state is not _OPEN:
                chunk = self._next_chunk()
            else:
                chunk = _joined(self._take(SEND_SIZE))
            if chunk:
                self._send(chunk)
            if not chunk or not (outgoing.frames or protocol.owes or self._closing is not None or self._parts):
                if not self._reading or protocol.state is _CLOSED:
                    self._all_sent()
                return
            budget -= len(chunk) if self._deflate is None else SEND_SIZE  # compressing costs more than sending
            if budget <= 0:
                self._loop.call(self.flush)
                return

    def resume_reading(self) -> None:
        """There is room for messages again."""
        if self._sock is not None and not self._reading:
            self._reading = True
            if self._hung_up and self._unsent is None:
                self.stuck_since = None
            self._watch()
            self._receive_held()

    def limit_turn(self, frames: int) -> None:
        """Reads at most so many frames in one turn."""
        self._protocol.work_a_turn = min(frames, MAX_WORK_A_TURN)

    def send_ping(self) -> None:
        """Sends a ping, whose round trip is measured."""
        now = monotonic()
        # The time itself tells one ping from another, and needs no place to be kept.
        self._protocol.send_ping(struct.pack("!d", now))
        self.flush()

    @property
    def is_gone(self) -> bool:
        return self._sock is None

    @property
    def is_listening(self) -> bool:
        """Whether silence of the peer says something."""
        return self._reading and self._closing is None and self._protocol.state is _OPEN

    def is_draining(self) -> bool:
        """Whether the peer has taken something since the last call, though the socket does not take more yet: the
        system reports room only when there is a good deal of it."""
        if self._sock is None or not sys.platform.startswith("linux"):
            return False
        waiting = int.from_bytes(fcntl.ioctl(self._descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        has_fallen = self._in_system is None or waiting < self._in_system
        self._in_system = waiting
        if has_fallen:
            self.stuck_since = monotonic()
        return has_fallen

    def has_unread(self) -> bool:
        """Whether bytes have come that are yet to be read: there are while the loop stands still."""
        if self._sock is None or not sys.platform.startswith("linux"):
            return False
        return any(fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)))

    def lose(self) -> None:
        """The peer has not answered a ping in time."""
        self._gone()

    def close(self, code: int, reason: str) -> None:
        """Sends what is queued, then closes. The first call counts."""
        if self._sock is None or self._closing is not None or not self._protocol.may_send:
            return
        self._closing = (code, reason)
        self.writable = False
        self.recall()
        self._start_timer()
        self.resume_reading()  # the peer's close frame may be behind messages that nobody will take
        self.flush()

    # ---- reading

    def _read(self) -> None:
        if self._unread:
            self._receive_unread()
            return
        sock = self._sock
        protocol = self._protocol
        if sock is None or protocol.is_holding:
            return  # what was read before comes first, and its turn is on its way
        self.usual = False  # until what is read now has been dealt with, nobody may read on
        loop = self._loop
        expected = protocol.bytes_expected
        if expected > READ_SIZE:
            self._read_size = BUFFER_SIZE  # the next message is likely to be as large: it is read in one piece
        try:
            received = sock.recv_into(loop.buffer, self._read_size)
        except (BlockingIOError, InterruptedError):
            self._note_usual()
            return
        except OSError:
            self._gone()
            return
        if not received:
            self._gone()
        elif not self._ending:
            self.heard_at = loop.now
            self._session.bytes_in += received
            if received < _COPY_BELOW:
                self._read_size = READ_SIZE
                self._receive(bytes(loop.buffer_view[:received]))
            else:
                self._receive(loop.buffer_view[:received])  # a view saves a copy, but is slower to take apart

    def _receive_unread(self) -> None:
        """What came behind the handshake, or a thread read of its own socket and has no use for."""
        unread, self._unread = self._unread, b""
        if unread and self._sock is not None:
            self.heard_at = monotonic()  # it may have lain here for long, and be the pong that a later ping waits for
            self._receive(unread)
            if self._sock is not None:
                self._watch()

    def _receive(self, data: bytes | memoryview) -> None:
        self.usual = False
        try:
            self._receive_any(data)
        finally:
            self._note_usual()

    def _note_usual(self) -> None:
        """What may come now, and go, after what has come."""
        is_open = self._sock is not None and self._protocol.state is _OPEN
        self.writable = self.writable and is_open
        self.usual = self._takes_usual and is_open and not self._unread and self._protocol.is_between_messages

    def _receive_any(self, data: bytes | memoryview) -> None:
        protocol = self._protocol
        session = self._session
        ping = protocol.ping_payload
        before = protocol.state
        messages = protocol.receive(data)
        if ping is not None and protocol.ping_payload is None:
            session.pong_received(monotonic() - struct.unpack("!d", ping)[0])
        if messages:
            session.messages_in += len(messages)
            if not session.receive(messages):
                self._pause_reading()
        if protocol.is_holding and self._reading:
            self._loop.call(self._receive_held)
        state = protocol.state
        if protocol.owes and (state is _OPEN or state is _CLOSE_SENT):
            self.flush()
        if state is before or state is _OPEN or state is _CLOSE_SENT:
            return
        assert protocol.close_code is not None
        self._start_timer()
        if state is _FAILED:
            self._session.fail(protocol.close_code, protocol.close_reason)  # it will call close
        else:
            self._session.end(protocol.close_code, protocol.close_reason)
            if before is _CLOSE_SENT and protocol.is_answered and self._unsent is None:
                self._gone()  # both close frames have gone and nothing is unread: no reset can destroy ours any more
            else:
                self.flush()

    def _receive_held(self) -> None:
        """The next turn of a read that held more than one turn's worth."""
        if self._sock is not None and self._reading and self._protocol.is_holding:
            self._receive(b"")

    def _hang_up(self) -> None:
        """The peer has gone while reading is paused. What it sent last may still be wanted, so the session gets as long
        to take it as a silent peer gets to speak; then the connection is lost."""
        self._hung_up = True
        if self.stuck_since is None:
            self.stuck_since = monotonic()
        self._watch()

    def _pause_reading(self) -> None:
        if self._sock is not None and self._closing is None:
            self._reading = False
            self._watch()

    # ---- writing

    def _next_chunk(self) -> bytes:
        """What is to be sent next while control frames are owed or the connection closes."""
        protocol = self._protocol
        control = protocol.take_control_frames() if protocol.owes else b""
        if protocol.state is not _OPEN and not protocol.may_send:
            return control
        frames = self._take(SEND_SIZE)
        if frames:
            return control + _joined(frames)
        if self._closing is not None:
            protocol.send_close(*self._closing)
            return control + protocol.take_control_frames()
        return control

    def _take_compressed(self, size: int) -> list[bytes]:
        """Compresses what one turn has time for."""
        assert self._deflate is not None
        if self._parts:
            first, *self._parts = self._parts
            return [self._deflate.deflate(first)]
        frames = self._session.outgoing.take(size)
        if len(frames) == 1:
            first, *self._parts = self._deflate.parts(frames[0])
            frames = [first]
        return [self._deflate.deflate(frame) for frame in frames]

    def _send(self, chunk: bytes | memoryview) -> None:
        sock = self._sock
        assert sock is not None
        try:
            sent = sock.send(chunk)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._gone()
            return
        self._session.bytes_out += sent
        was_stuck = self._unsent is not None
        is_stuck = sent < len(chunk)
        if not is_stuck and not was_stuck:
            return
        if is_stuck:
            self._unsent = memoryview(chunk)[sent:]
            if sent or not was_stuck:
                self.stuck_since = monotonic()
                self._in_system = None
        elif was_stuck:
            self._unsent = self.stuck_since = None
        if was_stuck != is_stuck:
            self._watch()

    def _all_sent(self) -> None:
        if self._sock is None or self._unsent is not None:
            return
        if self._protocol.state is _CLOSED:
            self._end_stream()
        elif not self._reading and self._session.receive([]):
            self.resume_reading()

    # ---- ending

    def _end_stream(self) -> None:
        """Closes our half of TCP. Closing the socket while something unread is in it would send a reset, which can
        destroy our close frame on its way."""
        if self._ending or self._sock is None:
            return
        self._ending = True
        with suppress(OSError):  # the peer was faster
            self._sock.shutdown(socket.SHUT_WR)
        self.resume_reading()

    def _gone(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._unsent = None
        if self._timer is not None:
            self._timer.cancel()
        self._loop.forget(self._descriptor)
        self.disconnect()
        if not self.leave_to_waiter(sock):
            sock.close()
        self._protocol.end_of_stream()
        self._session.transport_gone(self._protocol.close_code or ABNORMAL, self._protocol.close_reason)

    def _start_timer(self) -> None:
        if self._timer is None and self._sock is not None:
            self._timer = self._loop.call_later(self._session.config.close_timeout, self._gone)

    def _watch(self) -> None:
        watched = -1
        # A thread that the connection is lent to may change what there is to watch while the poller is told.
        while self._sock is not None and watched != (events := self._events()):
            self._loop.watch(self._descriptor, self, events)
            watched = events

    def _events(self) -> int:
        events = WRITE if self._unsent is not None else 0
        if self._reading:
            return events | (0 if self.is_lent else READ)
        return events | (0 if self._hung_up else HANGUP)


def _joined(frames: list[bytes]) -> bytes:
    return frames[0] if len(frames) == 1 else b"".join(frames)
