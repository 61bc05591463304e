"""Messages in parts: out while they are still being made, in while they are still arriving.

Comes in: chunks of user code, or pieces from an in-mailbox. Goes out: fragments to the out-mailbox, or chunks to user
code. However large the message, no more of it is in memory than the mailboxes hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from krait_ws.errors import ConnectionEndedError
from krait_ws.mailbox import InMailbox, OutMailbox, no_one
from krait_ws.protocol.frames import BINARY, BYTES_LIKE, CONTINUATION, TEXT, Message, encode_fragment
from krait_ws.protocol.messages import Piece


def push_stream(outgoing: OutMailbox, chunks: Iterator[Message], on_half: Callable[[], Any] = no_one) -> bool:
    """Sends the chunks as one fragmented message (RFC 6455 section 5.4), taking one when there is room for it.

    Args:
        outgoing: Where they go.
        chunks: ``str`` or bytes-like.
        on_half: Called before an exception leaves when a part of the message has gone: it cannot be taken back.

    Returns:
        ``False`` when the connection is over.

    Raises:
        ValueError: There is no chunk, so the message is neither text nor binary.
        TypeError: The chunks are not all ``str`` or all bytes-like.
        Exception: Whatever the iterator raised.
    """
    first = next(chunks, None)
    if first is None:
        raise ValueError("an iterator without chunks is no message: push an empty str or bytes instead")
    is_text = isinstance(first, str)
    payload = _encoded(first, is_text=is_text)
    opcode = TEXT if is_text else BINARY
    if not outgoing.begin_stream():
        return False
    try:
        for chunk in chunks:
            following = _encoded(chunk, is_text=is_text)
            if not outgoing.push_fragment(encode_fragment(opcode, payload, is_last=False)):
                return False
            payload, opcode = following, CONTINUATION  # from here on, something has gone
        return outgoing.push_fragment(encode_fragment(opcode, payload, is_last=True))
    except BaseException:
        if opcode == CONTINUATION:
            on_half()
        raise
    finally:
        outgoing.end_stream()


def _encoded(chunk: object, *, is_text: bool) -> bytes:
    if is_text and isinstance(chunk, str):
        return chunk.encode()
    if not is_text and isinstance(chunk, BYTES_LIKE):
        return bytes(chunk)
    raise TypeError(f"the chunks of a message are all str or all bytes-like, but one is {type(chunk).__name__}")


class MessageStream:
    """An incoming message as an iterator of its chunks, ``str`` for text and ``bytes`` for binary, cut anywhere.

    Each step waits for the next chunk. Taking the next message gives up the rest of this one.

    Attributes:
        is_text: Whether it is a text message.
    """

    def __init__(self, mailbox: InMailbox, first: Piece) -> None:
        self.is_text = isinstance(first.data, str)
        self._mailbox = mailbox
        self._piece: Piece | None = first
        self._ended = False

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        """The next chunk.

        Raises:
            ConnectionEndedError: The connection ended inside the message.
            RuntimeError: It would wait on the network loop.
        """
        if self._ended:
            raise StopIteration
        piece, self._piece = self._piece, None
        if piece is None:
            piece = next_piece(self._mailbox, None)
        if piece is None:
            self._ended = True
            raise ConnectionEndedError("the connection ended inside a message")
        self._ended = piece.is_last
        return piece.data

    def give_up(self) -> None:
        """Called by: the session, when the next message is taken."""
        self._ended = True


def next_piece(mailbox: InMailbox, timeout: float | None) -> Piece | None:
    """What ``InMailbox.pop`` gives in a mailbox of pieces."""
    item = mailbox.pop(timeout)
    assert item is None or isinstance(item, Piece)
    return item


def next_stream(mailbox: InMailbox, timeout: float | None) -> MessageStream | None:
    """The next message as a stream, without what is left of the one before; ``None`` as ``InMailbox.pop``."""
    while (piece := next_piece(mailbox, timeout)) is not None:
        if piece.is_first:
            return MessageStream(mailbox, piece)
    return None
