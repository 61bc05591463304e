"""The base class of the user's controllers.

Comes in: calls of the framework (``on_*``) and of user code. Goes out: everything to the controller's session, which is
the one private attribute here, so that no attribute of a subclass can collide with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from krait_ws.logs import ConnectionLog
from krait_ws.mailbox import Pressure
from krait_ws.overrides import overrides_of
from krait_ws.patching import check_runs_on
from krait_ws.protocol.frames import Message, encode_close
from krait_ws.rate import LimitedSession
from krait_ws.session import Session

if TYPE_CHECKING:
    from krait_ws.context import WebsocketsRequest


class _Missing:
    """What a controller has in its session's place until it has one. A ``__getattr__`` would say the same, and make
    every look at any attribute of a controller several times slower."""

    def __get__(self, controller: object, owner: type) -> Any:
        if controller is None:
            return self
        raise AttributeError(
            f"{owner.__qualname__}.__init__ must call super().__init__() before it uses the controller"
        )


class WebsocketsCtrlBase:
    """One instance serves one accepted connection.

    Override ``on_thread_start`` for a handler of your own (take messages with ``pop_in_message`` or ``messages``), or
    ``on_in_message`` to be called for each message, or both. Every method may be called from any thread.

    The class attributes below override the server's settings for this class; ``None`` takes the server's. Their
    meanings, units and defaults stand in the table of settings (``krait_ws.config``). With ``stream_messages = True`` a
    message comes as a ``MessageStream``, an iterator of its chunks as they arrive, of any size. With ``rate_limit =
    (messages, seconds)`` a client may send so many in a time, and as many at once; with more of them it waits, or the
    connection closes with 1008 where ``rate_policy`` is ``"close"``.

    Args:
        use_in_message_queue: ``False`` when nobody will pop: ``on_in_message`` is then the only way in, and messages
            that no override takes are discarded as they arrive.
    """

    runs_on: str | None = None
    slow_consumer: str | None = None
    max_message_size: int | None = None
    max_in_messages: int | None = None
    max_in_bytes: int | None = None
    max_out_messages: int | None = None
    max_out_bytes: int | None = None
    push_timeout: float | None = None
    stop_timeout: float | None = None
    close_timeout: float | None = None
    compress: bool | None = None
    compress_threshold: int | None = None
    compress_window_bits: int | None = None
    compress_context: bool | None = None
    max_inflated_size: int | None = None
    stream_messages: bool = False
    rate_limit: tuple[int, float] | None = None
    rate_policy: str = "wait"

    _krait: Session = cast(Session, _Missing())

    def __init__(self, use_in_message_queue: bool = True) -> None:
        overrides = overrides_of(type(self), WebsocketsCtrlBase)
        kind = Session if self.rate_limit is None else LimitedSession
        self._krait = kind(self, overrides, use_queue=use_in_message_queue)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        check_runs_on(cls.runs_on, cls.__qualname__)

    # ---- hooks

    def on_start(self) -> None:
        """Starts the handler. An override calls ``super().on_start()``.

        Called by: the framework, once, when the connection is accepted, off the network loop.

        Raises:
            RuntimeError: It was called before.
            ConfigError: ``runs_on`` is ``"loop"`` and there is a handler to run.
        """
        self._krait.start()

    def on_thread_start(self) -> None:
        """The handler's body; override it. When it returns, what was pushed is sent and the connection closes with
        1000; when it raises, with 1011. A class without a body of its own stays open until somebody closes.

        Called by: the handler, in the context of the route script that accepted the connection.
        """

    def on_in_message(self, message: Any) -> None:
        """Takes an arriving message, text as ``str`` and binary as ``bytes``: queues it for ``pop_in_message``.
        With ``stream_messages`` it is a ``MessageStream`` that must be read before an override returns.

        Called by: ``on_in_message_internal``, in the order of arrival and one at a time. With ``runs_on = "thread"`` or
        ``"greenlet"`` an override may block: it holds up this connection only. With ``"loop"`` it must not.
        """
        if self._krait.incoming is not None:
            self._krait.incoming.put([message])

    def on_in_message_internal(self, message: Any) -> None:
        """Takes the in-lock, which is re-entrant, then calls ``on_in_message``.

        Called by: the framework for each arriving message.
        """
        with self._krait.in_lock:
            self.on_in_message(message)

    def on_stop(self) -> None:
        """Sets the stop flag and wakes every wait of this controller. An override calls ``super().on_stop()``.

        Called by: the framework, once, when the connection ends for any reason; ``close_code`` is set by then. An
        override runs on a thread (or greenlet) of its own, for ``runs_on = "loop"`` on the loop. The stop flag is set
        and the waits are woken even if an override forgets to.
        """
        self._krait.stop_by_hook()

    # ---- messages

    def pop_in_message(self, timeout: float | None = 0) -> Any:
        """The next message that arrived, ``str`` or ``bytes``, or ``None``; a ``MessageStream`` with
        ``stream_messages``.

        What had arrived when the connection ended can still be popped.

        Args:
            timeout: Seconds to wait for one; ``None`` waits until one comes or the connection ends.

        Raises:
            RuntimeError: The queue is disabled (``use_in_message_queue=False``), or the call would wait on the network
                loop.
        """
        return self._krait.pop(timeout)

    def messages(self) -> Iterator[Any]:
        """Every message from now on, waiting for each, until the connection ends.

        Raises:
            RuntimeError: As ``pop_in_message``.
        """
        if type(self).pop_in_message is not WebsocketsCtrlBase.pop_in_message:
            return iter(partial(self.pop_in_message, None), None)
        return self._krait.messages()

    def push_out_message(self, message: str | bytes | bytearray | memoryview | Iterator[Any]) -> bool:
        """Queues a message for the client: ``str`` as text, bytes-like as binary (copied), an iterator of either as one
        message in fragments, whose chunks are taken as there is room for them.

        The fragments of an iterator are never dropped: it waits for room whatever the policy. What it raises
        comes out of this call, and ends the connection with 1011 when a part of the message has gone already.

        When the out-mailbox is full, ``slow_consumer`` decides: wait up to ``push_timeout`` (``"block"``), close with
        1013 (``"close"``), or drop this message or the oldest one. On the network loop ``"block"`` cannot wait and
        closes.

        Returns:
            ``True`` when it is queued, ``False`` when the connection is over or the message was dropped.

        Raises:
            TypeError: Another type, or chunks of several.
            ValueError: An iterator without chunks.
            UnicodeEncodeError: A text with a lone surrogate.
        """
        if type(message) is str or type(message) is bytes:
            return self._krait.outgoing.send(message)
        if isinstance(message, Iterator):
            return self._krait.push_stream(message)
        return self._krait.outgoing.send_other(message)

    @property
    def pressure(self) -> Pressure:
        """How far the client is behind: messages and bytes that wait, what was dropped and blocked so far. A producer
        that can, makes less or coarser messages while it is high."""
        return self._krait.outgoing.pressure

    def pop_out_message(self) -> Message | None:
        """Takes back the oldest message that the network loop has not taken yet; ``None`` when there is none."""
        return self._krait.outgoing.pop()

    # ---- life

    def should_stop(self) -> bool:
        """Whether the connection is over, or is being closed."""
        return self._krait.stopping.is_set()

    def wait_stop(self, timeout: float | None = None) -> bool:
        """Sleeps ``timeout`` seconds, or until the stop flag is set, whichever comes first: the polite ``time.sleep``.

        Returns:
            Whether to stop.
        """
        return self._krait.stopping.wait(timeout)

    def wait_stopped(self, timeout: float | None = None) -> bool:
        """Joins the handler. Returns ``True`` when it has ended (or never ran), ``False`` after ``timeout`` seconds.

        Raises:
            RuntimeError: The handler waits for itself.
        """
        return self._krait.wait_ended(timeout)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Sends what was pushed, then closes. Does nothing when the connection is over.

        Args:
            code: 1000-1003, 1007-1014 or 3000-4999 (RFC 6455 section 7.4).
            reason: At most 123 bytes of UTF-8.

        Raises:
            ValueError: Code or reason cannot be sent.
        """
        encode_close(code, reason)
        self._krait.end(code, reason)

    def ping(self, timeout: float | None = 0) -> float | None:
        """Sends a ping to the client (RFC 6455 section 5.5.2); its round trip comes to stand in ``latency``.

        Args:
            timeout: Seconds to wait for the pong; 0 does not wait, ``None`` waits until the connection ends.

        Returns:
            The round trip in seconds; ``None`` when the pong was not waited for or did not come.

        Raises:
            RuntimeError: It would wait on the network loop.
        """
        return self._krait.ping(timeout)

    @property
    def latency(self) -> float | None:
        """Seconds of the last measured round trip: of ``ping``, or of the server's own pings; ``None`` before one."""
        return self._krait.latency

    @property
    def close_code(self) -> int | None:
        """What ended the connection: the code of the first close, 1005 for a close without a code, 1006 for a loss
        without a close, ``None`` while it is open."""
        return self._krait.close_code

    @property
    def close_reason(self) -> str:
        """The reason that came with ``close_code``."""
        return self._krait.close_reason

    @property
    def request(self) -> WebsocketsRequest | None:
        """The upgrade request; ``None`` before the connection is accepted."""
        return self._krait.request

    @property
    def protocol(self) -> str | None:
        """The chosen subprotocol."""
        return self._krait.protocol

    @property
    def remote_addr(self) -> str | None:
        """The client's address."""
        return None if self._krait.request is None else self._krait.request.remote_addr

    @property
    def id(self) -> str:
        """Names the connection in every log record."""
        return self._krait.id

    @property
    def log(self) -> ConnectionLog:
        """A logger, ``krait_ws.controller``, whose records carry the connection's ``id``, its route and this class."""
        return ConnectionLog(self._krait)
