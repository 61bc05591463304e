"""One connection of a load: handshake, messages, close.

Comes in: readiness of its socket. Goes out: counts and latencies in the ``Load`` it belongs to. Owned by the loop of
``load.py``.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from krait_ws.bench.latencies import EXACT
from krait_ws.bench.plan import RECEIVE_SIZE, client_frame
from krait_ws.errors import ProtocolError
from krait_ws.logs import escaped
from krait_ws.protocol.frames import CLOSE, CONTINUATION, FIN, NORMAL, PING, TEXT, decode_close

if TYPE_CHECKING:
    from krait_ws.bench.load import Load

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_MAX_HEAD = 32 * 1024
_MAX_FRAME = 64 << 20
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Link:
    """A connection; ``read`` is what a readable socket calls, by the state it is in."""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.messages = load.messages
        self.began = self.heard = perf_counter()
        self.is_open = self.is_closing = False
        self.sent: deque[tuple[float, int]] = deque()  # when so many messages went out that have not come back
        self.read: Callable[[], None] = self._read_connected
        self._out = memoryview(b"")  # what the socket has not taken
        self._queued = 0  # messages that wait behind it
        self._next = number % self.messages.count  # the message that goes out next
        self._at = self._next * self.messages.frame_size  # the place in ``expected`` that comes next
        self._tail = bytearray()  # an unfinished frame, or the head of the answer
        self._needed = 0
        self._inside = -1  # bytes of a fragmented message that have come; -1 between messages
        self._key = base64.b64encode(os.urandom(16)).decode()
        self.socket: Any = socket.socket(load.family, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.fd: int = self.socket.fileno()
        self._watches = select.EPOLLIN | select.EPOLLOUT
        code = self.socket.connect_ex(load.address)
        if code not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise OSError(code, os.strerror(code))
        load.poller.register(self.fd, self._watches)

    # ---- readiness

    def ready(self, events: int) -> None:
        """The socket is more than readable: it is writable or has failed."""
        if not self.is_open:
            return self.read()
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT and self.fd >= 0:
            self.read()
        return None

    def send(self, count: int, at: float) -> None:
        """Sends the next ``count`` messages, which were due at ``at``."""
        self.sent.append((at, count))
        if self._out:
            self._queued += count
        else:
            self._send_next(count)

    def _send_next(self, count: int) -> None:
        messages = self.messages
        size = messages.sent_size
        start = self._next * size
        self._next = (self._next + count) % messages.count
        data = messages.outgoing[start : start + count * size]
        try:
            taken = self.socket.send(data)
        except _WOULD_BLOCK:
            taken = 0
        except OSError as error:
            return self.fail(f"lost: {_words(error)}")
        if taken != len(data):
            self._out = data[taken:]
            self._watch(select.EPOLLIN | select.EPOLLOUT)
        return None

    def close(self) -> None:
        """Begins the closing handshake (RFC 6455 section 7)."""
        self.is_closing, self._queued = True, 0
        self._send_control(client_frame(CLOSE, NORMAL.to_bytes(2, "big")))

    def fail(self, kind: str) -> None:
        """Counts an error and ends the connection."""
        if self.fd >= 0:
            self.load.errors[escaped(kind)] += 1  # it may hold what the server said
            self.drop()

    def drop(self) -> None:
        """Closes the socket."""
        if self.fd >= 0:
            self.load.forget(self)
            self.socket.close()
            self.fd, self.is_open = -1, False

    # ---- handshake

    def _read_connected(self) -> None:
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return self.fail(f"refused: {_words(OSError(code, os.strerror(code)))}")
        plan = self.load.plan
        if plan.target.is_secure:
            assert plan.tls is not None
            self.socket = plan.tls.wrap_socket(
                self.socket, server_hostname=plan.target.host, do_handshake_on_connect=False
            )
            self.read = self._shake_tls
            return self._shake_tls()
        return self._ask()

    def _shake_tls(self) -> None:
        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            return self._watch(select.EPOLLIN)
        except ssl.SSLWantWriteError:
            return self._watch(select.EPOLLIN | select.EPOLLOUT)
        except ssl.SSLCertVerificationError as error:
            return self.fail(f"refused: TLS: {error.verify_message} (--insecure does not check)")
        except OSError as error:
            return self.fail(f"refused: TLS: {_words(error)}")
        return self._ask()

    def _ask(self) -> None:
        self._watch(select.EPOLLIN)
        self.read = self._read_head
        try:
            self.socket.sendall(self.load.plan.request(self._key))
        except OSError as error:
            return self.fail(f"refused: {_words(error)}")
        return None

    def _read_head(self) -> None:
        data = self._receive()
        if data is None:
            return None
        if not data:
            return self.fail("refused: closed during the handshake")
        self._tail += data
        end = self._tail.find(b"\r\n\r\n")
        if end < 0:
            return self.fail("refused: no end of the answer's head") if len(self._tail) > _MAX_HEAD else None
        fault = self._fault_of(bytes(self._tail[:end]).decode("latin-1"))
        if fault:
            return self.fail(f"refused: {fault}")
        rest = bytes(self._tail[end + 4 :])
        self._tail.clear()
        self.is_open = True
        self.read = self._read_pushes if self.load.plan.is_push else self._read_echoes
        self.load.opened(self, perf_counter())
        if rest and self.fd >= 0:
            self._take_frames(memoryview(rest))
        return None

    def _fault_of(self, head: str) -> str | None:
        status, *lines = head.split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) ?(.*)", status)
        if not found or found[1] != "101":
            return f"{found[1]} {found[2]}".strip() if found else f"no HTTP answer: {status[:60]!r}"
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        accept = base64.b64encode(hashlib.sha1(self._key.encode() + _GUID).digest()).decode()
        if headers.get("sec-websocket-accept") != accept:
            return "wrong Sec-WebSocket-Accept"
        offered = [name.strip() for name in self.load.plan.subprotocol.split(",") if name.strip()]
        chosen = headers.get("sec-websocket-protocol")
        if (chosen is not None or offered) and chosen not in offered:
            return f"subprotocol {chosen or 'none'}"
        if headers.get("sec-websocket-extensions"):
            return "an extension that was not offered"
        return None

    # ---- messages

    def _read_echoes(self) -> None:
        load, messages = self.load, self.messages
        try:
            size = self.socket.recv_into(load.buffer)
        except _WOULD_BLOCK:
            return None
        except OSError as error:
            return self.fail(f"lost: {_words(error)}")
        if not size:
            return self.fail("lost: no close frame")
        at = self._at
        # Everything as it must be: one comparison for all messages of this read, no frame is looked at.
        if not self._tail and self._inside < 0 and messages.expected.startswith(load.view[:size], at):
            frame_size = messages.frame_size
            done = (at + size) // frame_size - at // frame_size
            self._at = (at + size) % messages.cycle
            if done:
                self._came_back(done)
        else:
            start = at - at % messages.frame_size
            if not self._tail and start != at:
                self._tail += messages.expected[start:at]
                self._at = start
            self._take_frames(load.view[:size])
        if load.plan.tls is not None and self.fd >= 0 and self.socket.pending():
            return self.read()
        return None

    def _came_back(self, count: int) -> None:
        now = perf_counter()
        self.heard = now
        load, sent = self.load, self.sent
        load.received += count
        left = count
        while left:
            if not sent:
                return self.fail("wrong echo: more messages than were sent")
            at, many = sent[0]
            took = many if many <= left else left
            if took == many:
                sent.popleft()
            else:
                sent[0] = (at, many - took)
            left -= took
            micros = int((now - at) * 1e6)
            if micros < EXACT:
                load.latencies.exact[micros] += took
            else:
                load.latencies.record(micros, took)
        if load.refills:
            self.send(count, now)
        return None

    def _read_pushes(self) -> None:
        load = self.load
        try:
            size = self.socket.recv_into(load.buffer)
        except _WOULD_BLOCK:
            return None
        except OSError as error:
            return self.fail(f"lost: {_words(error)}")
        if not size:
            return self.fail("lost: no close frame")
        load.received_bytes += size
        self._take_frames(load.view[:size])
        if load.plan.tls is not None and self.fd >= 0 and self.socket.pending():
            return self.read()
        return None

    # ---- frame by frame

    def _take_frames(self, data: memoryview) -> None:
        took = 0
        is_push = self.load.plan.is_push
        try:
            for first, payload in self._frames(data):
                if first & 0x08:
                    self._take_control(first, bytes(payload))
                    if self.fd < 0:
                        return None
                elif is_push:
                    took += first >= FIN
                elif not self.is_closing:
                    took += self._is_end_of_echo(first, payload)
        except ProtocolError as error:
            return self.fail(f"broken: {error.reason}")
        if took and is_push:
            now = perf_counter()
            if not self.is_closing:
                self.load.latencies.record(int((now - self.heard) * 1e6), 1)
            self.heard = now
            self.load.received += took
        elif took:
            self._came_back(took)
        return None

    def _frames(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Whole frames: the first byte and the payload. What is unfinished is kept."""
        if self._tail:
            self._tail += data
            if len(self._tail) < self._needed:
                return
            data = memoryview(bytes(self._tail))
            self._tail.clear()
        place, size = 0, len(data)
        while place < size:
            head_size, length = 2, data[place + 1] if place + 1 < size else 0
            if length >= 126:
                if length > 127:
                    raise ProtocolError(1002, "a masked frame")
                head_size = 4 if length == 126 else 10
                length = int.from_bytes(data[place + 2 : place + head_size], "big")
            end = place + head_size + length
            if place + head_size > size or end > size:
                self._needed = end - place if place + head_size <= size else 0
                if self._needed > _MAX_FRAME:
                    raise ProtocolError(1009, f"a frame of more than {_MAX_FRAME >> 20} MiB")
                self._tail += data[place:]
                return
            first = data[place]
            if first & 0x70:
                raise ProtocolError(1002, "a reserved bit is set")
            if first & 0x08 and (first < FIN or length > 125):
                raise ProtocolError(1002, "a control frame that is fragmented or too long")
            yield first, data[place + head_size : end]
            place = end

    def _is_end_of_echo(self, first: int, payload: memoryview) -> bool:
        """Compares a frame with what must come; True when it completes its message."""
        messages = self.messages
        opcode = first & 0x0F
        if opcode != (CONTINUATION if self._inside >= 0 else messages.opcode):
            raise ProtocolError(1002, f"an echo with opcode {opcode}")
        if not self.sent:
            raise ProtocolError(1002, "a message that is no echo")
        number = self._at // messages.frame_size
        expected = messages.payloads[number]
        inside = max(self._inside, 0)
        if not expected.startswith(payload, inside) or (first >= FIN and inside + len(payload) != len(expected)):
            raise ProtocolError(1002, "an echo of another size, content or order")
        self._inside = -1 if first >= FIN else inside + len(payload)
        if first >= FIN:
            self._at = (number + 1) % messages.count * messages.frame_size
        return first >= FIN

    def _take_control(self, first: int, payload: bytes) -> None:
        opcode = first & 0x0F
        if opcode == PING:
            self._send_control(client_frame(0xA, payload))
        elif opcode == CLOSE:
            code, reason = decode_close(payload)
            if self.is_closing:
                self.drop()
            else:
                self.fail(f"closed: {code}{f' {reason}' if reason else ''}")

    # ---- bytes

    def say_hello(self) -> None:
        """Sends the plan's ``hello``."""
        self._send_control(client_frame(TEXT, self.load.plan.hello.encode()))

    def _send_control(self, frame: bytes) -> None:
        self._out = memoryview(bytes(self._out) + frame)
        self._flush()

    def _flush(self) -> None:
        try:
            taken = self.socket.send(self._out) if self._out else 0
        except _WOULD_BLOCK:
            taken = 0
        except OSError as error:
            return self.drop() if self.is_closing else self.fail(f"lost: {_words(error)}")
        self._out = self._out[taken:]
        if self._out:
            return self._watch(select.EPOLLIN | select.EPOLLOUT)
        self._watch(select.EPOLLIN)
        while self._queued and not self._out and self.fd >= 0:
            count = min(self._queued, self.load.at_once)
            self._queued -= count
            self._send_next(count)
        return None

    def _watch(self, events: int) -> None:
        if events != self._watches:
            self._watches = events
            self.load.poller.modify(self.fd, events)

    def _receive(self) -> bytes | None:
        try:
            data: bytes = self.socket.recv(RECEIVE_SIZE)
        except _WOULD_BLOCK:
            return None
        except OSError:
            return b""
        return data


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
