"""The protocol state of one connection (RFC 6455 sections 5.5 and 7), without its socket.

Comes in: bytes from the peer, and our wish to close. Goes out: messages, and the control frames that we owe. Owned by
the network loop; no lock.

The closing handshake as a table::

    state        event                      sends           next state
    OPEN         our close                  our Close       CLOSE_SENT
    OPEN         peer's Close               its echo        CLOSED
    OPEN         peer breaks the protocol   nothing yet     FAILED
    FAILED       our close                  our Close       CLOSED
    CLOSE_SENT   peer's Close               nothing         CLOSED
    CLOSE_SENT   peer breaks the protocol   nothing         CLOSED
    any          end of TCP                 nothing         CLOSED
"""

from __future__ import annotations

import enum

from krait_ws.errors import ProtocolError
from krait_ws.protocol.deflate import Deflate
from krait_ws.protocol.frames import (
    ABNORMAL,
    CLOSE,
    PING,
    PONG,
    decode_close,
    encode_close,
    encode_control,
)
from krait_ws.protocol.messages import Data, Item, MessageReader

_MAX_OWED = 32


class State(enum.Enum):
    OPEN = "open"
    CLOSE_SENT = "close sent"
    FAILED = "failed"
    CLOSED = "closed"


_OPEN, _CLOSE_SENT, _FAILED, _CLOSED = State  # an attribute of an enumeration costs more than a global name


class ProtocolState(MessageReader):
    """What the peer said and what we owe it.

    ``close_code`` and ``close_reason`` tell what ended the connection: the close frame that came or went first, the
    code of the peer's fault, 1005 for a close frame without a code, 1006 for an end without a close frame
    (section 7.1.5). ``None`` and ``""`` while it is open. ``owes`` tells that ``take_control_frames`` has something.
    """

    __slots__ = ("_close_frame", "_owed", "close_code", "close_reason", "is_answered", "owes", "ping_payload", "state")

    def __init__(self, max_message_size: int, deflate: Deflate | None = None, *, streams: bool = False) -> None:
        super().__init__(max_message_size, deflate, streams=streams)
        self.state = _OPEN
        self.close_code: int | None = None
        self.close_reason = ""
        self.is_answered = False  # the peer's close frame has come, with which it has said all
        self.ping_payload: bytes | None = None  # of the ping that waits for its pong
        self._owed: list[bytes] | None = None  # pings, and the frames that answer pings
        self._close_frame = b""
        self.owes = False

    def receive(self, data: Data) -> list[Item]:
        """The messages that end in ``data``, in order. Never raises for what the peer sent.

        What arrives after a close frame, ours or the peer's, is no message any more (sections 1.4 and 5.5.1).
        """
        messages: list[Item] = []
        state = self.state
        if state is not _OPEN and state is not _CLOSE_SENT:
            return messages
        try:
            self.read_into(messages, data)
        except ProtocolError as error:
            if self.state is _OPEN:
                self._set_close(error.code, error.reason)
                self.state = _FAILED
            else:
                self.state = _CLOSED
            self.drop_held()
        if state is _CLOSE_SENT:
            messages.clear()
        return messages

    def on_control(self, opcode: int, payload: bytes) -> bool:
        if opcode == PING:
            self._owe_pong(payload)
        elif opcode == CLOSE:
            self._receive_close(payload)
            self.drop_held()
        elif payload == self.ping_payload:
            self.ping_payload = None
        return opcode != CLOSE

    def send_close(self, code: int, reason: str) -> None:
        """Begins the closing handshake; does nothing when it has begun. After a fault of the peer it is all there is of
        it: nothing that the peer sends is looked at any more (section 7.1.7).

        Raises:
            ValueError: The code may not be sent or the reason is too long.
        """
        if self.state is _OPEN:
            self._owe_close(encode_close(code, reason))
            self._set_close(code, reason)
            self.state = _CLOSE_SENT
        elif self.state is _FAILED:
            self._owe_close(encode_close(code, reason))
            self.state = _CLOSED

    @property
    def may_send(self) -> bool:
        """Whether data may be sent: no close frame has gone or come."""
        return self.state is _OPEN or self.state is _FAILED

    def end_of_stream(self) -> None:
        """TCP has ended, in whatever way."""
        if self.close_code is None:
            self._set_close(ABNORMAL, "")
        self.state = _CLOSED

    def send_ping(self, payload: bytes) -> None:
        """Sends a ping; ``ping_payload`` is its payload until the pong that answers it has come (section 5.5.3).

        While one is on its way no other is sent: its pong answers both.
        """
        if self.state is _OPEN and self.ping_payload is None:
            self.ping_payload = payload
            self._owe(encode_control(PING, payload))

    def take_control_frames(self) -> bytes:
        """The control frames to send now. No data may be sent after a close frame."""
        owed = self._owed or ()
        self._owed = None
        frames = b"".join((*owed, self._close_frame))
        self._close_frame = b""
        self.owes = False
        return frames

    def _owe_pong(self, payload: bytes) -> None:
        if self.state is _OPEN:
            self._owe(encode_control(PONG, payload))

    def _owe(self, frame: bytes) -> None:
        if self._owed is None:
            self._owed = []
        elif len(self._owed) == _MAX_OWED:
            del self._owed[0]  # a peer that does not read is owed the most recent answers only (section 5.5.3)
        self._owed.append(frame)
        self.owes = True

    def _receive_close(self, payload: bytes) -> None:
        code, reason = decode_close(payload)
        self.is_answered = True
        if self.state is _OPEN:
            self._set_close(code, reason)
            self._owe_close(encode_control(CLOSE, payload[:2]))  # the echo carries the code (section 5.5.1)
        self.state = _CLOSED

    def _owe_close(self, frame: bytes) -> None:
        self._close_frame = frame
        self.owes = True

    def _set_close(self, code: int, reason: str) -> None:
        self.close_code = code
        self.close_reason = reason
