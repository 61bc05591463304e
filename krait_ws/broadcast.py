"""One message to many controllers.

Comes in: controllers and a message. Goes out: the same frame to each out-mailbox, encoded once, and compressed once for
each compression setting among them.
"""

from __future__ import annotations

from collections.abc import Iterable

from krait_ws.controller import WebsocketsCtrlBase
from krait_ws.core import post_all
from krait_ws.protocol.deflate import deflate_shared
from krait_ws.protocol.frames import BYTES_LIKE, encode_binary, encode_text, payload_of
from krait_ws.session import Session, send_all

_QUEUED_AT_ONCE = 1000  # without letting another thread have the interpreter


def broadcast(controllers: Iterable[WebsocketsCtrlBase], message: str | bytes | bytearray | memoryview) -> int:
    """Queues ``message`` for every controller, as ``push_out_message`` does for one, and never waits for any.

    Where an out-mailbox is full, the controller's ``slow_consumer`` decides: ``"drop_new"`` and ``"drop_oldest"`` drop;
    ``"close"``, and ``"block"`` because it cannot wait here, close with 1013. A connection that is over takes nothing.

    The order of messages to one client is that of the calls of one thread. A message from ``compress_threshold`` bytes
    on is compressed here, in the caller's thread, by itself: for those that keep a window it begins a new one.

    Args:
        controllers: Whom to send it to. They are walked through once: a set that other threads change must be copied
            first, ``list(members)``, under its lock. When walking raises, nobody has the message.
        message: ``str`` is sent as text, bytes-like as binary (copied).

    Returns:
        For how many it is queued.

    Raises:
        TypeError: A message of another type.
        UnicodeEncodeError: A text with a lone surrogate.

    Thread: any.
    """
    if isinstance(message, str):
        frame = encode_text(message)
    elif isinstance(message, BYTES_LIKE):
        frame = encode_binary(message)
    else:
        raise TypeError(
            f"a message is str or bytes-like, not {type(message).__name__}: make it one, as with json.dumps"
        )
    sessions = [controller._krait for controller in controllers]
    size = len(payload_of(frame))
    compressed: dict[int, bytes] = {}

    def own_frame(session: Session) -> bytes:
        window = session.shared_window
        if size < session.config.compress_threshold:
            return frame
        if window not in compressed:
            compressed[window] = deflate_shared(frame, window)
        return compressed[window]

    queued = 0
    # The loop is told when all is queued: it would take the interpreter from this thread, and back, with each frame.
    news: list[Session] = []
    try:
        for start in range(0, len(sessions), _QUEUED_AT_ONCE):
            queued += post_all(sessions[start : start + _QUEUED_AT_ONCE], frame, own_frame, news)
    finally:  # also when it cannot be compressed: those that have it would lie there, with all that comes later
        send_all(news)
    return queued
