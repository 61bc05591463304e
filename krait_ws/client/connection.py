"""A connection that is used by one at a time, opens itself when it is needed and closes itself when it is not.

Who uses it::

                     acquire                     release
         ┌──────▶ FREE ──────────▶ BUSY ──────────────────────────▶ DRAINING
         │         ▲                │  release, nothing is to come     │
         │         └────────────────┘                                  │ the rest came, or the time was up
         └─────────────────────────────────────────────────────────────┘
         close, from any of them ──▶ CLOSED, for good

Whether it has a socket is another matter. ``acquire`` opens one when there is none, or none that works any more. The
socket goes when either side closes it or it breaks, when nobody has used the connection for ``idle_timeout``, when the
rest of an answer does not come in time, and when the body of a ``session`` raises. The next ``acquire`` opens another,
so a lost socket costs its session and nothing else.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from krait_ws.client.errors import (
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionUnavailableError,
)
from krait_ws.client.link import Link, Message, check_close
from krait_ws.client.transport import Dial, Transport

log = logging.getLogger("krait_ws.client")

DrainCondition = Callable[[Message], bool]
"""Whether a message is the last one of an answer."""


class _Use(enum.Enum):
    FREE = "free"
    BUSY = "busy"
    DRAINING = "draining"
    CLOSED = "closed"


class Connection:
    """See above. Thread: any; while it is acquired, one thread may send and another receive.

    Args:
        transport: Where to and how; a URL takes the defaults.
        idle_timeout: Seconds after which the socket is closed when nobody uses it; ``None`` leaves it open.
        drain_condition: Says of a message whether it ends the server's answer. With it, ``release`` reads away what is
            still to come of an answer, so that the next user does not get it. Without it what has arrived is dropped.
        drain_timeout: Seconds that this may take.

    Raises:
        ValueError: The URL or a number of seconds cannot be used.
    """

    def __init__(
        self,
        transport: Transport | str,
        *,
        idle_timeout: float | None = 30.0,
        drain_condition: DrainCondition | None = None,
        drain_timeout: float = 5.0,
    ) -> None:
        for name, seconds in (("idle_timeout", idle_timeout), ("drain_timeout", drain_timeout)):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} must be more than 0, not {seconds!r}")
        self._transport = transport if isinstance(transport, Transport) else Transport(transport)
        self._idle_timeout = idle_timeout
        self._drain_condition = drain_condition
        self._drain_timeout = drain_timeout
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)  # those who wait to acquire
        self._unlinked = threading.Condition(self._lock)  # the watcher of the idle time
        self._use = _Use.FREE  # guarded by _lock, like all below
        self._link: Link | None = None
        self._dial: Dial | None = None
        self._watcher: threading.Thread | None = None
        self._settled = True
        self._last_activity = time.monotonic()
        self._end = (1000, "closed here")

    # ---- what it is

    @property
    def is_busy(self) -> bool:
        """Whether somebody has acquired it."""
        return self._use is _Use.BUSY

    @property
    def is_draining(self) -> bool:
        """Whether it was released and the rest of an answer is being read away."""
        return self._use is _Use.DRAINING

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called. It cannot be opened again."""
        return self._use is _Use.CLOSED

    @property
    def is_connected(self) -> bool:
        """Whether it has a socket that works, as far as it is known."""
        link = self._link
        return link is not None and link.is_open

    @property
    def is_settled(self) -> bool:
        """Whether nothing of an answer is to come, as ``drain_condition`` sees it; true without one."""
        return self._settled

    @property
    def last_activity(self) -> float:
        """When it was last opened, used or released, on the clock of ``time.monotonic``."""
        return self._last_activity

    @property
    def last_frame_at(self) -> float:
        """When the server was last heard, be it a pong, on the clock of ``time.monotonic``; 0 without a socket."""
        link = self._link
        return 0.0 if link is None else link.last_frame_at

    @property
    def subprotocol(self) -> str | None:
        """The one that the server chose; ``None`` also without a socket."""
        link = self._link
        return None if link is None else link.subprotocol

    def __repr__(self) -> str:
        connected = "connected" if self.is_connected else "not connected"
        return f"Connection({self._transport.place!r}, {self._use.value}, {connected})"

    # ---- its use

    def acquire(self, timeout: float | None = 0.0) -> None:
        """Takes it for exclusive use, and opens it if it is not open.

        Args:
            timeout: Seconds to wait for the one who uses it; 0 does not wait, ``None`` waits until it is free.
                Opening has the deadline of the transport.

        Raises:
            ConnectionBusyError: It is used by somebody else, or what they left is still being read away.
            ConnectionClosedError: ``close`` was called.
            AuthError, ConnectionUnavailableError: It cannot be opened.
        """
        self._check_process()
        with self._lock:
            if not self._freed.wait_for(lambda: self._use in (_Use.FREE, _Use.CLOSED), timeout):
                raise ConnectionBusyError(f"{self._transport.place}: the connection is {self._use.value}")
            self._check_not_closed_locked()
            self._use = _Use.BUSY
            if self.is_connected:
                return
            self._unlink_locked()
        link = None
        try:
            link = self._opened()
            self._take(link)
        except BaseException:
            if link is not None:
                link.abort()
            with self._lock:
                self._unlink_locked()
                self._free_locked()
                self._check_not_closed_locked()  # then that is the reason
            raise

    def release(self, *, discard: bool = False) -> None:
        """Gives it back. With a ``drain_condition`` it waits for the rest of an answer. When closed: nothing to do.

        Args:
            discard: Closes the socket instead, for who cannot tell what is still to come.

        Raises:
            ConnectionBusyError: It was not acquired, or another thread is still receiving; then the socket is closed.
            ConnectionDrainTimeoutError: The rest did not come within ``drain_timeout``. The connection is free even so.
        """
        self._check_process()
        with self._lock:
            if self._use is _Use.CLOSED:
                return
            self._check_busy_locked()
            self._use = _Use.DRAINING
            link = self._link
        is_clean = False
        try:
            is_clean = link is not None and not discard and self._drain(link)
        finally:
            with self._lock:
                if not is_clean:
                    self._unlink_locked()
            if link is not None and not is_clean:
                (link.close if discard else link.abort)()
            with self._lock:
                self._free_locked()

    @contextmanager
    def session(self, timeout: float | None = 0.0) -> Iterator[Connection]:
        """Acquires for the body of a ``with``. When the body raises, the socket is closed: who knows what is to come.

        Raises:
            ClientError: As ``acquire`` and ``release``.
        """
        self.acquire(timeout)
        try:
            yield self
        except BaseException:
            self.release(discard=True)
            raise
        self.release()

    def send(self, message: str | bytes | bytearray | memoryview) -> None:
        """Sends text or binary. Waits while the server does not read, with the transport's deadline.

        Raises:
            ConnectionBusyError: It was not acquired.
            ConnectionClosedError: The socket is gone. ``acquire`` opens another, unless ``close`` was called.
            TypeError: The message is of another type.
        """
        link = self._link_in_use()
        self._settled = self._drain_condition is None
        link.send(message)
        self._last_activity = time.monotonic()

    def recv(self, timeout: float | None = None) -> Message:
        """The next message. Those that came before the end come before the error.

        Args:
            timeout: Seconds to wait; 0 only looks, ``None`` waits until a message comes or the socket is gone, which
                the transport's pings find out.

        Raises:
            TimeoutError: No message came in time.
            ConnectionBusyError: It was not acquired, or another thread is receiving.
            ConnectionClosedError: The socket is gone. ``acquire`` opens another, unless ``close`` was called.
        """
        message = self._link_in_use().recv(timeout)
        self._last_activity = time.monotonic()
        self._settled = self._ends(message)
        return message

    def ping(self, timeout: float = 10.0) -> float:
        """Sends a ping and waits for its pong. Returns the seconds between them. It need not be acquired.

        Raises:
            TimeoutError: No pong came in time. The connection stays as it is.
            ConnectionClosedError: The socket is gone, or ``close`` was called.
            ConnectionUnavailableError: It is not connected.
        """
        self._check_process()
        with self._lock:
            self._check_not_closed_locked()
            link = self._link
        if link is None:
            raise ConnectionUnavailableError(f"{self._transport.place}: not connected; acquire it first")
        seconds = link.ping(timeout)
        self._last_activity = time.monotonic()
        return seconds

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes it for good, within the transport's ``close_timeout``. Wakes everyone who waits in it. Idempotent.

        In a forked child it does nothing: the connection is the parent's.

        Raises:
            ValueError: The code or the reason cannot be sent.
        """
        if os.getpid() != self._process:
            return
        check_close(code, reason)
        with self._lock:
            if self._use is not _Use.CLOSED:
                self._end = (code, reason or "closed here")
            self._use = _Use.CLOSED
            self._freed.notify_all()
            dial, self._dial = self._dial, None
            link, watcher = self._link, self._watcher
            self._unlink_locked()
        if dial is not None:
            dial.give_up()
        if link is not None:
            link.close(code, reason)
        if watcher is not None and watcher is not threading.current_thread():
            watcher.join()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- inside

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ConnectionUnavailableError("the connection belongs to the parent process: make one after the fork")

    def _check_not_closed_locked(self) -> None:
        if self._use is _Use.CLOSED:
            raise ConnectionClosedError(*self._end)

    def _check_busy_locked(self) -> None:
        self._check_not_closed_locked()
        if self._use is not _Use.BUSY:
            raise ConnectionBusyError(f"{self._transport.place}: acquire the connection before you use it")

    def _link_in_use(self) -> Link:
        self._check_process()
        with self._lock:
            self._check_busy_locked()
            if self._link is None:
                raise ConnectionBusyError(f"{self._transport.place}: the connection is still being opened")
            return self._link

    def _opened(self) -> Link:
        """A new socket. ``close`` can give it up."""
        dial = self._transport.dial()
        try:
            with self._lock:
                self._check_not_closed_locked()
                self._dial = dial
            return dial.wait()
        finally:
            dial.give_up()
            with self._lock:
                self._dial = None

    def _take(self, link: Link) -> None:
        """The socket is ours, unless ``close`` came meanwhile."""
        with self._lock:
            self._check_not_closed_locked()
            self._link = link
            self._settled = True
            self._last_activity = time.monotonic()
            if self._idle_timeout is not None:
                arguments = (link, self._idle_timeout)
                watcher = threading.Thread(target=self._watch, args=arguments, name="krait-client-idle", daemon=True)
                watcher.start()
                self._watcher = watcher

    def _free_locked(self) -> None:
        if self._use is not _Use.CLOSED:
            self._use = _Use.FREE
            self._last_activity = time.monotonic()
            self._freed.notify()

    def _unlink_locked(self) -> None:
        """The socket is no longer ours; whoever took it out closes it."""
        self._link = None
        self._unlinked.notify_all()

    def _watch(self, link: Link, idle_timeout: float) -> None:
        """Closes a socket that nobody has used for ``idle_timeout``. A thread for each open socket."""
        with self._lock:
            while self._link is link:
                left = idle_timeout
                if self._use is _Use.FREE:
                    left += self._last_activity - time.monotonic()
                if left <= 0:
                    self._unlink_locked()
                    break
                self._unlinked.wait(left)  # while it is in use it cannot become idle sooner than that
            else:
                return
        link.close(1000, "idle")

    def _drain(self, link: Link) -> bool:
        """Reads away what has come, and what is to come before the end of an answer. ``False``: the socket is gone.

        Raises:
            ConnectionDrainTimeoutError: It was not all in time.
            ConnectionBusyError: Another thread is receiving.
        """
        deadline = time.monotonic() + self._drain_timeout
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConnectionDrainTimeoutError(
                    f"{self._transport.place}: the rest of an answer did not come within {self._drain_timeout:g} s; "
                    "the socket was closed"
                )
            try:
                self._settled = self._ends(link.recv(0 if self._settled else left))
            except TimeoutError:
                if self._settled:
                    return True
            except ConnectionClosedError:
                return False

    def _ends(self, message: Message) -> bool:
        """Whether nothing is to come after this message."""
        if self._drain_condition is None:
            return True
        try:
            return bool(self._drain_condition(message))
        except Exception:
            log.exception("the drain_condition of %s raised; the message is taken for no end", self._transport.place)
            return False
