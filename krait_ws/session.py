"""A session: one controller, its two mailboxes and its handlers, and the only way in which they end.

Comes in: messages from the connection (``receive``) and from user code (``push``). Goes out: calls of the controller's
hooks, and frames that the connection takes. A session knows its connection only as a ``Transport``, so it can live
without one (in tests, before the upgrade, after the socket is gone).

The end, once and for any reason (``end``): the code is noted, the mailboxes are closed, the stop flag is set, every
wait wakes, the connection is told to send what is queued and then the close frame, ``on_stop`` is called, and handlers
that still run after ``stop_timeout`` are abandoned with a log record.
"""

from __future__ import annotations

import contextvars
import logging
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gevent.lock import RLock as GreenletReentrantLock
from greenlet import GreenletExit

from krait_ws.config import DEFAULTS, Config
from krait_ws.core import SessionCore, send_posted
from krait_ws.errors import ConfigError, ThreadLimitError
from krait_ws.handlers import Handler, new_handler
from krait_ws.logs import Closed, connection_fields, log_failure
from krait_ws.mailbox import InMailbox, OutMailbox, no_one
from krait_ws.overrides import Overrides
from krait_ws.patching import check_runs_on
from krait_ws.pings import Pings
from krait_ws.protocol.frames import INTERNAL_ERROR, NORMAL, TRY_AGAIN_LATER, Message
from krait_ws.protocol.messages import Item
from krait_ws.roles import Hooks, Runtime, Transport
from krait_ws.streams import MessageStream, next_stream, push_stream
from krait_ws.waiting import Signal, Waiter, monotonic, new_lock, new_reentrant_lock, wake_all

if TYPE_CHECKING:
    from krait_ws.context import WebsocketsRequest

logger = logging.getLogger("krait_ws.session")

_SENT_A_TURN = 128  # connections, when a message goes to many: the sockets have their turn in between

# A name in logs is no secret; the system's own random numbers cost a call of it each.
_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)

_LAST_ANSWERS = 0.1
"""Seconds that a handler has to answer what came before a fault of its peer."""


def send_all(sessions: list[Session]) -> None:
    """Tells the loops, each once, that all of these have output. Thread: any."""
    servers: dict[Runtime | None, list[Session]] = {}
    for session in sessions:
        servers.setdefault(session._runtime, []).append(session)
    for runtime, members in servers.items():
        if runtime is not None:
            runtime.call(partial(_send_some, runtime, members, 0))
        else:
            for session in members:  # they are not accepted yet
                session.outgoing.on_output()


def _send_some(runtime: Runtime, sessions: list[Session], start: int) -> None:
    """Sends a turn's worth; the rest has the next one."""
    end = start + _SENT_A_TURN
    send_posted(sessions[start:end])
    if end < len(sessions):
        runtime.call(partial(_send_some, runtime, sessions, end))


class Session(SessionCore):
    """See the module. Thread: any, unless a method says otherwise.

    Args:
        controller: Whose hooks to call.
        overrides: Which hooks are the user's.
        use_queue: Whether ``pop_in_message`` is to be used.

    Attributes:
        opened_at: When it was accepted (``monotonic``); 0.0 before.
        bytes_in: Bytes from the socket so far, heads of frames included. Written on the loop, as are the next two.
        bytes_out: Bytes to the socket.
        messages_in: Whole messages from the peer, or pieces of them with ``stream_messages``.
        is_abandoned: Whether a handler did not end in time.
        handler_seconds: How long its handlers ran, until the last of them had ended; ``None`` before the first end.
        shared_window: Bits of the window that a message compressed for many may use; 0 for none.
    """

    __slots__ = (
        "__weakref__",
        "_claimed",
        "_fault",
        "_gone",
        "_handlers",
        "_lock",
        "_on_over",
        "_overrides",
        "_pings",
        "_runtime",
        "_started",
        "_stop_hook_ran",
        "_stop_timer",
        "_stopper",
        "_stream",
        "close_code",
        "close_reason",
        "config",
        "controller",
        "ended",
        "handler_seconds",
        "id",
        "incoming",
        "is_abandoned",
        "latency",
        "opened_at",
        "protocol",
        "request",
        "stopping",
        "streams",
    )

    arrivals: InMailbox | None
    outgoing: OutMailbox

    counts = False
    """Whether it must see each message as it comes, and say how many may come in one turn."""

    def __init__(self, controller: Hooks, overrides: Overrides, *, use_queue: bool) -> None:
        self.controller = controller
        self.config = DEFAULTS.for_controller(controller)
        self.id = f"{_random.getrandbits(32):08x}"
        self.request: WebsocketsRequest | None = None
        self.protocol: str | None = None
        self.close_code: int | None = None
        self.close_reason = ""
        self._lock = new_lock()
        self.stopping = Signal(self._lock)  # the stop flag
        self.ended = Signal(self._lock)  # close_code is known
        self.outgoing = OutMailbox(self.config)
        self.outgoing.on_overflow = self._overflow
        self.incoming = InMailbox(self.config) if use_queue else None
        # What the socket gave and no hook has seen yet; the queue itself where there is no hook to see it.
        self.arrivals = InMailbox(self.config) if overrides.delivers else self.incoming
        self._in_lock: Any = None  # made when it is wanted; guarded by _lock
        self._overrides = overrides
        self._delivers_on_loop = False
        self._wake: Callable[[Iterable[Waiter]], None] = wake_all  # those who wait for what the socket gives
        self._claimed = False  # guarded by _lock, as are the next two
        self._started = False
        self._ended = False
        self._handlers: list[Handler] = []  # appended to by start only
        self._stopper: Handler | None = None  # runs the user's on_stop
        self._stop_hook_ran = False
        self.opened_at = 0.0
        self.bytes_in = self.bytes_out = self.messages_in = 0
        self.is_abandoned = False  # owned by the loop
        self.handler_seconds: float | None = None
        self.shared_window = 0
        self.latency: float | None = None
        self.streams = bool(getattr(type(controller), "stream_messages", False))
        self._stream: MessageStream | None = None  # the message that is being read; owned by the reader
        self._pings: Pings | None = None  # made for the first one; guarded by _lock
        self._fault: tuple[int, str] | None = None  # of the peer, while the handler answers what came before it
        self._hook: Callable[[Any], None] | None = None  # what the loop calls with each message
        self._rest: Sequence[Item] = ()  # messages that the loop has not delivered yet; owned by the loop
        self._stop_timer: Any = None  # owned by the loop
        self._gone = True  # no connection; owned by the loop
        self._transport: Transport | None = None  # owned by the loop
        self._runtime: Runtime | None = None
        self._context: contextvars.Context | None = None
        self._on_over: Callable[[Session], None] | None = None

    # ---- beginning

    def claim(self) -> None:
        """Takes the session for one connection, before anything else of it is touched.

        Raises:
            RuntimeError: It has been taken before: the instance is shared by several upgrades.
        """
        with self._lock:
            if self._claimed or self._started:
                name = type(self.controller).__qualname__
                raise RuntimeError(f"this {name} serves a connection already: make a new instance for each upgrade")
            self._claimed = True

    def threads_needed(self, config: Config) -> int:
        """How many threads the controller may have at one time on a server with this configuration.

        Raises:
            ConfigError: The controller has a setting that cannot be used.
        """
        if config.for_controller(self.controller).runs_on != "thread":
            return 0
        overrides = self._overrides
        return overrides.handles + overrides.delivers + overrides.stops

    def accept(
        self,
        runtime: Runtime,
        config: Config,
        request: WebsocketsRequest,
        protocol: str | None,
        on_over: Callable[[Session], None],
    ) -> None:
        """The upgrade is decided: binds the session to a server and starts the controller.

        Args:
            on_over: Called once on the loop, when both the connection and the handlers have ended.

        Raises:
            ConfigError: The controller has a setting that cannot be used.
            RuntimeError: ``on_start`` is overridden and did not call the base class's.
            Exception: Whatever ``on_start`` raised.
        """
        self._runtime = runtime
        self.opened_at = monotonic()
        self._on_over = on_over
        self._gone = False
        self.request = request
        self.protocol = protocol
        self._set_config(config.for_controller(self.controller))
        self.controller.on_start()
        if not self._started:
            raise RuntimeError(f"{type(self.controller).__qualname__}.on_start must call super().on_start()")

    def start(self) -> None:
        """Starts the handlers in a copy of the current context: what the base class's ``on_start`` does.

        Raises:
            RuntimeError: It was called before.
            ThreadLimitError: The system gives no more threads.
            ConfigError: ``runs_on`` is ``"loop"`` and there is a handler to run.
        """
        with self._lock:
            if self._started:
                raise RuntimeError("on_start was called already: a controller serves one connection")
            self._started = True
        if self._runtime is None:
            self._set_config(DEFAULTS.for_controller(self.controller))
        self._context = contextvars.copy_context()
        check_runs_on(self.config.runs_on, type(self.controller).__qualname__)
        if self.config.runs_on == "loop":
            if self._overrides.handles:
                name = type(self.controller).__qualname__
                raise ConfigError(
                    f"{name}: runs_on = 'loop' has no handler for on_thread_start; override on_in_message"
                )
            if self.streams:
                name = type(self.controller).__qualname__
                raise ConfigError(f"{name}: stream_messages waits for chunks, so runs_on cannot be 'loop'")
            self.arrivals = self.incoming  # the loop calls the hook itself
            self._delivers_on_loop = self._overrides.delivers
            self._hook = getattr(self.controller, self._overrides.hook)
            return
        if self._overrides.handles:
            self._handlers.append(self._new_handler(self._handle))
        if self._overrides.delivers:
            body = self._deliver if self._overrides.handles else self._deliver_and_close
            self._handlers.append(self._new_handler(body))
        # They are all noted before the first one runs: it may ask about itself at once, or end at once.
        for index, handler in enumerate(self._handlers):
            try:
                handler.start()
            except RuntimeError as error:
                del self._handlers[index:]
                raise ThreadLimitError(f"the system gives no thread for a handler: {error}") from None

    def attach(self, transport: Transport) -> None:
        """The connection is there. Thread: the loop."""
        runtime = self._runtime
        assert runtime is not None
        self._transport = transport
        if self.config.runs_on == "thread":
            self._wake = self._wake_threads
        self.outgoing.on_output = self._ask_to_send
        if self.arrivals is not None:
            self.arrivals.on_room = self._ask_to_read
        if self.close_code is not None:
            transport.close(self.close_code, self.close_reason)
        else:
            self._send_ping()
            transport.flush()

    # ---- messages

    @property
    def in_lock(self) -> Any:
        """What ``on_in_message_internal`` takes. Thread: any."""
        if self._in_lock is None:
            with self._lock:
                if self._in_lock is None:
                    is_greenlet = self.config.runs_on == "greenlet"
                    self._in_lock = GreenletReentrantLock() if is_greenlet else new_reentrant_lock()
        return self._in_lock

    def pop(self, timeout: float | None) -> Item | MessageStream | None:
        """See ``WebsocketsCtrlBase.pop_in_message``."""
        incoming = self._queue()
        # The mailbox holds pieces only where streams are asked for.
        return self._next_stream(incoming, timeout) if self.streams else incoming.pop(timeout)

    def messages(self) -> Iterator[Any]:
        """See ``WebsocketsCtrlBase.messages``."""
        incoming = self._queue()
        return iter(partial(self._next_stream, incoming, None) if self.streams else partial(incoming.pop, None), None)

    def _queue(self) -> InMailbox:
        if self.incoming is None:
            raise RuntimeError("this controller has no in-queue (use_in_message_queue=False): override on_in_message")
        return self.incoming

    def push_stream(self, chunks: Iterator[Message]) -> bool:
        """See ``WebsocketsCtrlBase.push_out_message``."""
        return push_stream(self.outgoing, chunks, partial(self.end, INTERNAL_ERROR))

    def receive(self, messages: list[Item]) -> bool:
        """Messages have arrived, or there is room for those that have. Returns whether the socket may be read on.

        Thread: the loop; never waits, except in the hooks of a controller with ``runs_on = "loop"``.
        """
        arrivals = self.arrivals
        if self._delivers_on_loop:
            runtime = self._runtime
            assert self._context is not None
            if runtime is not None:
                runtime.in_hook = self
            self._call_hook(self._context.run, self._deliver_on_loop, messages)
            if runtime is not None:
                runtime.in_hook = None
            if self.outgoing.frames and self.outgoing.is_congested:
                return False  # its hook cannot wait for a slow consumer, so the producer waits
            return arrivals is None or not arrivals.is_full
        return arrivals is None or arrivals.put(messages, self._wake)

    @property
    def route(self) -> str:
        """The URL pattern that it came to, for example ``/[room]``. Thread: any."""
        return self.request.route if self.request is not None else ""

    @property
    def messages_out(self) -> int:
        """Messages to the peer so far. Thread: any."""
        return self.outgoing.taken

    # ---- pings

    def ping(self, timeout: float | None) -> float | None:
        """Sends a ping; see ``WebsocketsCtrlBase.ping``."""
        runtime = self._runtime
        with self._lock:
            if self._ended or runtime is None:
                return None
            if self._pings is None:
                self._pings = Pings(self._lock)
        answered = self._pings.ping(timeout, partial(runtime.call, self._send_ping))
        return self.latency if answered else None

    def pong_received(self, latency: float) -> None:
        """The pong of the last ping has come after ``latency`` seconds. Thread: the loop."""
        self.latency = latency
        if self._pings is not None:
            self._pings.answered()

    def _send_ping(self) -> None:
        """On the loop. Without a connection the ping waits for ``attach``."""
        if self._transport is not None and self._pings is not None and self._pings.take_wanted():
            self._transport.send_ping()

    # ---- end

    def fail(self, code: int, reason: str) -> None:
        """The peer broke the protocol: ends the session when the handler has answered what came before that, or after
        ``_LAST_ANSWERS`` at most. Nothing more of the peer is read meanwhile. Thread: the loop.
        """
        if self.arrivals is None or not self.is_running or self._ended:
            self.end(code, reason)
            return
        runtime = self._runtime
        assert runtime is not None
        self._fault = (code, reason)
        end = partial(self.end, code, reason)
        runtime.call_later(_LAST_ANSWERS, end)
        mailboxes = [self.arrivals]
        if self._overrides.handles and self.incoming is not None and self.incoming is not self.arrivals:
            mailboxes.append(self.incoming)  # the hook's messages have a handler that takes them from there

        def look() -> None:
            if all(mailbox.is_drained for mailbox in mailboxes):
                end()

        for mailbox in mailboxes:
            mailbox.on_drained = partial(runtime.call, look)
        look()

    def end(self, code: int, reason: str = "") -> bool:
        """Ends the session: the only close path. Returns ``False`` when it has been ended before."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            # A handler that returns meanwhile does not change what happened. Whoever sees that it has ended sees why.
            self.close_code, self.close_reason = self._fault or (code, reason)
        self.stop()
        self._call_on_stop()
        self.ended.set()
        if self._runtime is not None:
            self._runtime.call(self._close_transport)
        return True

    def stop_by_hook(self) -> None:
        """What the base class's ``on_stop`` does. A hook that has run once is not called again."""
        self._stop_hook_ran = True
        self.stop()
        if self._runtime is not None and not self._ended:
            # The user asks the handler to return, and its end closes the connection. It has its time, like any other.
            end = partial(self.end, NORMAL)
            self._runtime.call(partial(self._runtime.call_later, self.config.stop_timeout, end))

    def stop(self) -> None:
        """Sets the stop flag, closes the mailboxes and wakes every wait."""
        if not self.stopping.set():
            return
        self.outgoing.close()
        with self._lock:
            pings = self._pings
        if pings is not None:
            pings.close()
        if self.arrivals is not None:
            self.arrivals.close()
        if self.incoming is not None:
            if self._delivers_apart:
                self.incoming.end_waiting()  # what had arrived is still delivered; then it is closed
            else:
                self.incoming.close()
        if not self._handlers:
            self.end(NORMAL)  # nothing runs that could end it by returning

    def transport_gone(self, code: int, reason: str = "") -> None:
        """The connection has ended, or never came to be. Thread: the loop."""
        was_there = self._transport is not None
        self._gone = True
        self._transport = None
        self.outgoing.on_output = no_one
        self.end(code, reason)
        if was_there:
            Closed(self, monotonic() - self.opened_at).log()
        self._check_over()

    def abort(self) -> None:
        """Ends the connection without a word. Thread: the loop."""
        if self._transport is not None:
            self._transport.abort()

    def give_up(self) -> None:
        """The server waits no longer: what still runs is reported, the connection is cut. Thread: the loop."""
        self._abandon_handlers()
        self.abort()

    def wait_ended(self, timeout: float | None) -> bool:
        """Joins the handlers. Returns whether they have ended.

        Raises:
            RuntimeError: The caller is one of them.
        """
        deadline = None if timeout is None else monotonic() + timeout
        if any(handler.is_current() for handler in self._handlers):
            raise RuntimeError("a handler cannot wait for its own end: return from it instead")
        for handler in self._handlers:
            if not handler.done.wait(None if deadline is None else max(0.0, deadline - monotonic())):
                return False
        return True

    def wait_over(self, timeout: float) -> bool:
        """Waits for the end, for the handlers and for a user's ``on_stop``. Returns whether all have ended."""
        deadline = monotonic() + timeout
        return self.ended.wait(timeout) and all(
            handler.done.wait(max(0.0, deadline - monotonic())) for handler in self._all_handlers()
        )

    @property
    def is_running(self) -> bool:
        """Whether user code has not ended yet."""
        return any(not handler.done.is_set() for handler in self._all_handlers())

    def stacks(self) -> list[str]:
        """Where its handlers are now: a traceback for each that has not ended. Thread: the loop."""
        return [handler.stack() for handler in self._all_handlers() if not handler.done.is_set()]

    # ---- inside

    def _set_config(self, config: Config) -> None:
        self.config = config
        for mailbox in (self.outgoing, self.arrivals, self.incoming):
            if mailbox is not None:
                mailbox.limits = config

    def _new_handler(self, body: Callable[[], None]) -> Handler:
        """A handler that tells the loop when it has ended."""
        context = self._context.copy() if self._context is not None else contextvars.copy_context()
        hub = None if self._runtime is None else self._runtime.hub
        return new_handler(self.config.runs_on, body, context, self._handler_done, hub)

    def _handler_done(self) -> None:
        self.handler_seconds = monotonic() - self.opened_at
        if self._runtime is not None:
            self._runtime.call(self._check_over)

    def _all_handlers(self) -> list[Handler]:
        return self._handlers if self._stopper is None else [*self._handlers, self._stopper]

    def _handle(self) -> None:
        if self._call_hook(self.controller.on_thread_start):
            self.end(NORMAL)

    def _deliver(self) -> None:
        try:
            self._deliver_arrivals()
        finally:
            if self.incoming is not None:
                self.incoming.close()  # not before: the hook may have queued what had arrived before the end

    def _deliver_arrivals(self) -> None:
        assert self.arrivals is not None
        following = partial(self._next_stream, self.arrivals) if self.streams else self.arrivals.pop
        while (message := following(None)) is not None:
            if not self._call_hook(self.controller.on_in_message_internal, message):
                return
            if self.incoming is not None:
                self.incoming.wait_for_room()

    def _deliver_and_close(self) -> None:
        self._deliver()
        self.end(NORMAL)

    def _wake_threads(self, waiters: Iterable[Waiter]) -> None:
        """Threads are woken when all sockets of a turn have been read: one that runs takes the interpreter away from
        the loop at its next system call. A greenlet runs at once."""
        assert self._runtime is not None
        for waiter in waiters:
            self._runtime.call(waiter.wake)

    def _next_stream(self, mailbox: InMailbox, timeout: float | None) -> MessageStream | None:
        if self._stream is not None:
            self._stream.give_up()
        self._stream = next_stream(mailbox, timeout)
        return self._stream

    def _deliver_on_loop(self, messages: list[Item]) -> None:
        """Calls the hook until its answers fill half of the out-mailbox; the rest has its turn when they have gone."""
        if self._rest:
            messages = [*self._rest, *messages]
            self._rest = ()
        outgoing = self.outgoing
        with self.in_lock:  # re-entrant, so that on_in_message_internal finds it taken: once for all of these
            deliver = self._hook
            assert deliver is not None
            for number, message in enumerate(messages):
                if self._ended:
                    return
                if outgoing.frames and outgoing.is_congested:
                    self._rest = messages[number:]
                    return
                deliver(message)

    def _call_hook(self, hook: Callable[..., None], *arguments: Any) -> bool:
        """Calls user code. What it raises is logged once and ends the session with 1011; the peer learns no more."""
        try:
            if arguments:
                hook(*arguments)
            else:
                hook()  # the other call takes 500 bytes more of the stack, for as long as a handler runs
        except BaseException as error:  # whatever a user's hook raises, the loop and the thread go on
            return self.hook_raised(error)
        return True

    def hook_raised(self, error: BaseException) -> bool:
        """What user code raised ends the session, unless it was a way to end itself. Returns whether it goes on."""
        if isinstance(error, SystemExit | GreenletExit):
            return True
        environ = {} if self.request is None else self.request.http.environ
        name = type(self.controller).__qualname__
        log_failure(logger, error, environ, "connection %s: %s raised", self.id, name, **connection_fields(self))
        self.end(INTERNAL_ERROR)
        return False

    def _call_on_stop(self) -> None:
        """A user's ``on_stop`` may block and take locks that the caller of ``end`` holds, so it gets a place of its
        own: the loop for controllers that run there, else a short-lived handler."""
        if not self._overrides.stops or self._stop_hook_ran:
            return
        if self.config.runs_on != "loop":
            try:
                self._stopper = self._new_handler(self._run_on_stop)
                self._stopper.start()
            except RuntimeError:
                self._stopper = None
                logger.exception("connection %s: no thread for on_stop", self.id, extra=connection_fields(self))
        elif self._runtime is not None:
            self._runtime.call(self._stop_on_loop)
        else:
            self._run_on_stop()

    def _run_on_stop(self) -> None:
        self._call_hook(self.controller.on_stop)

    def _stop_on_loop(self) -> None:
        assert self._runtime is not None
        self._runtime.in_hook = self
        (self._context or contextvars.copy_context()).run(self._run_on_stop)
        self._runtime.in_hook = None

    def _overflow(self) -> None:
        self.end(TRY_AGAIN_LATER, "messages could not be sent in time")

    def _ask_to_send(self) -> None:
        """There is output. A transport that has gone meanwhile takes none."""
        transport = self._transport
        if transport is not None and self._runtime is not None:
            self._runtime.call(transport.send_now)

    def _ask_to_read(self) -> None:
        """There is room again."""
        transport = self._transport
        if transport is not None and self._runtime is not None:
            self._runtime.call(transport.resume_reading)

    def _close_transport(self) -> None:
        """On the loop: the part of ``end`` that touches the connection."""
        assert self._runtime is not None
        assert self.close_code is not None
        if self._transport is not None:
            self._transport.close(self.close_code, self.close_reason)
        if self.is_running:
            self._stop_timer = self._runtime.call_later(self.config.stop_timeout, self._abandon_handlers)

    @property
    def _delivers_apart(self) -> bool:
        """Whether a handler takes what arrived and may put it into the queue."""
        return self._overrides.delivers and self._started and self.config.runs_on != "loop"

    def _abandon_handlers(self) -> None:
        """Reports them once: the timer and the end of the server may come together."""
        if self.is_abandoned:
            return
        self.is_abandoned = self.is_running
        if self.incoming is not None:
            self.incoming.close()  # a hook that is stuck must not hold up a handler that waits for it
        for handler in self._all_handlers():
            if not handler.done.is_set():
                logger.error(
                    "connection %s: %s did not stop in time and is abandoned; it is at\n%s",
                    self.id,
                    type(self.controller).__qualname__,
                    handler.stack(),
                    extra=connection_fields(self),
                )

    def _check_over(self) -> None:
        """On the loop: reports once when nothing of the session is left."""
        if not self._gone or self.is_running or self._on_over is None:
            return
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        on_over, self._on_over = self._on_over, None
        on_over(self)
