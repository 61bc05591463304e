"""Several connections to one place, shared by many threads.

A place in the pool is a ``Connection``. It is never lost: a connection whose socket broke keeps its place, and who gets
it next opens another. Each place is in one of these states::

               acquire            it is open            release
        IDLE ───────────▶ OPENING ───────────▶ BUSY ───────────────▶ DRAINING
         ▲                   │ failed           │ nothing is to come    │ the rest came, or the time was up
         └───────────────────┴──────────────────┴───────────────────────┘

Whoever waits is served in the order of coming. The first ``min_size`` places are kept open, by a thread that looks
after them; the others close themselves when idle.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from krait_ws.client.connection import Connection, DrainCondition
from krait_ws.client.errors import (
    ClientError,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionDrainTimeoutError,
    ConnectionUnavailableError,
    PoolExhaustedError,
)
from krait_ws.client.transport import Transport

log = logging.getLogger("krait_ws.client")

_CHECK_SECONDS = 1.0
"""Between two looks at the ``min_size`` connections; nobody tells when a server has closed one."""

_LONGEST_PAUSE = 30.0
"""Seconds between two tries to open them, after doubling from ``_CHECK_SECONDS``."""


class _Place(enum.Enum):
    IDLE = "idle"
    OPENING = "opening"
    BUSY = "busy"
    DRAINING = "draining"


@dataclass(frozen=True)
class PoolStats:
    """What a pool was at one moment, and what it has done so far."""

    connected: int
    """Connections with a socket that works, as far as it is known."""
    idle: int
    """Places that nobody uses, with a socket or without."""
    opening: int
    """Places that are taken and whose connection is being opened."""
    busy: int
    """Places that are acquired."""
    draining: int
    """Places whose last user has gone, and whose answer is still being read away."""
    waiting: int
    """Threads that wait in ``acquire``."""
    acquired: int
    """Calls of ``acquire`` that succeeded so far."""
    opened: int
    """Sockets that were opened so far."""
    failed: int
    """Tries to open one that failed so far."""
    exhausted: int
    """Calls of ``acquire`` that raised ``PoolExhaustedError`` so far."""
    drain_timeouts: int
    """Drains that took too long so far; each cost its socket."""


class Pool:
    """See above. Opens nothing before it is used. Thread: any.

    Args:
        transport: Where to and how; a URL takes the defaults.
        min_size: Connections that are kept open, from the first ``acquire`` or ``warm_up`` on.
        max_size: Connections at most.
        idle_timeout: Seconds after which those beyond ``min_size`` close their socket when nobody uses them; ``None``
            leaves them open.
        drain_condition: As for ``Connection``. The pool drains in a thread of its own; who releases does not wait.
        drain_timeout: Seconds that a drain may take.

    Raises:
        ValueError: A size or a number of seconds makes no sense.
    """

    def __init__(
        self,
        transport: Transport | str,
        *,
        min_size: int = 0,
        max_size: int = 10,
        idle_timeout: float | None = 30.0,
        drain_condition: DrainCondition | None = None,
        drain_timeout: float = 5.0,
    ) -> None:
        if not 0 <= min_size <= max_size or max_size < 1:
            raise ValueError(f"a pool of {min_size} to {max_size} connections cannot be; 1 or more, the least first")
        self._transport = transport if isinstance(transport, Transport) else Transport(transport)
        self._new = partial(Connection, self._transport, drain_condition=drain_condition, drain_timeout=drain_timeout)
        self._new(idle_timeout=idle_timeout)  # finds out whether the seconds make sense
        self._min_size = min_size
        self._max_size = max_size
        self._idle_timeout = idle_timeout
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._came_back = threading.Condition(self._lock)  # who closes waits for users
        self._stop = threading.Event()  # the keeper
        self._closed = False  # guarded by _lock, like all below
        self._places: dict[Connection, _Place] = {}
        self._kept: list[Connection] = []  # the first min_size places
        self._waiting: deque[threading.Condition] = deque()
        self._keeper: threading.Thread | None = None
        self._acquired = self._opened = self._failed = self._exhausted = self._drain_timeouts = 0

    @property
    def is_closed(self) -> bool:
        return self._closed

    def stats(self) -> PoolStats:
        """Numbers of now and so far."""
        with self._lock:
            places = list(self._places.values())
            return PoolStats(
                connected=sum(connection.is_connected for connection in self._places),
                idle=places.count(_Place.IDLE),
                opening=places.count(_Place.OPENING),
                busy=places.count(_Place.BUSY),
                draining=places.count(_Place.DRAINING),
                waiting=len(self._waiting),
                acquired=self._acquired,
                opened=self._opened,
                failed=self._failed,
                exhausted=self._exhausted,
                drain_timeouts=self._drain_timeouts,
            )

    def warm_up(self) -> None:
        """Opens the ``min_size`` connections that are not open yet, all at the same time, and keeps them open.

        Raises:
            AuthError, ConnectionUnavailableError: One could not be opened. The pool goes on trying.
            ConnectionClosedError: The pool is closed.
        """
        self._check_process()
        with self._lock:
            self._check_open_locked()
            self._keep_locked()
        for error in self._fill():
            raise error

    def acquire(self, timeout: float | None = 10.0) -> Connection:
        """A connection for exclusive use, open: the one that was heard from last, else one that has to be opened.

        Args:
            timeout: Seconds to wait until one is free; 0 does not wait, ``None`` waits until one is free or the pool is
                closed. Opening has the deadline of the transport.

        Raises:
            PoolExhaustedError: All are in use, and none became free in time.
            AuthError, ConnectionUnavailableError: It cannot be opened. Its place is free again.
            ConnectionClosedError: The pool is closed, or was closed meanwhile.
        """
        self._check_process()
        with self._lock:
            self._keep_locked()
            connection = self._wait_locked(timeout)
        self._open(connection)
        with self._lock:
            self._acquired += 1
        return connection

    def release(self, connection: Connection, *, discard: bool = False) -> None:
        """Gives a connection back. Does not wait for its drain.

        Args:
            connection: One of ``acquire``, once.
            discard: Closes its socket, for who cannot tell what is still to come.

        Raises:
            ConnectionBusyError: It is not of this pool, or was released already, or another thread is still receiving.
        """
        self._check_process()
        with self._lock:
            if self._places.get(connection) is not _Place.BUSY:
                if self._closed:
                    return
                raise ConnectionBusyError("this connection is not one that was acquired from this pool")
            self._places[connection] = _Place.DRAINING
        if discard or connection.is_settled or not connection.is_connected:
            self._give_back(connection, discard)
        else:
            name = "krait-client-drain"
            drain = threading.Thread(target=self._drain_away, args=(connection,), name=name, daemon=True)
            try:
                drain.start()
            except RuntimeError:  # no more threads: the place must not be lost with the drain
                self._give_back(connection, discard=True)

    @contextmanager
    def session(self, timeout: float | None = 10.0) -> Iterator[Connection]:
        """A connection for the body of a ``with``. When the body raises, its socket is closed, as in ``Connection``.

        Raises:
            ClientError: As ``acquire`` and ``release``.
        """
        connection = self.acquire(timeout)
        try:
            yield connection
        except BaseException:
            self.release(connection, discard=True)
            raise
        self.release(connection)

    def close(self, timeout: float | None = 10.0) -> bool:
        """Lets nobody in any more, waits for those who have a connection, and closes all. Those who wait are woken.

        Args:
            timeout: Seconds to wait for users; then their connections are closed under them. 0 does not wait, ``None``
                waits until all came back.

        Returns:
            Whether all came back in time.
        """
        if os.getpid() != self._process:
            return True  # the pool is the parent's
        with self._lock:
            self._closed = True
            for waiter in self._waiting:
                waiter.notify()
            unused = [connection for connection, place in self._places.items() if place is not _Place.BUSY]
            for connection in unused:
                if self._places[connection] is _Place.IDLE:
                    del self._places[connection]  # the others have somebody who takes them out
            keeper = self._keeper
        self._stop.set()
        _together(Connection.close, unused)
        with self._lock:
            all_came = self._came_back.wait_for(lambda: not self._places, timeout)
            rest = list(self._places)
        _together(Connection.close, rest)
        if keeper is not None:
            keeper.join()
        return all_came

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- places

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ConnectionUnavailableError("the pool belongs to the parent process: make one after the fork")

    def _check_open_locked(self) -> None:
        if self._closed:
            raise ConnectionClosedError(1000, "the pool is closed")

    def _wait_locked(self, timeout: float | None) -> Connection:
        """The next free place, in the order of coming."""
        turn = threading.Condition(self._lock)
        self._waiting.append(turn)
        try:
            if not turn.wait_for(
                lambda: self._closed or (self._waiting[0] is turn and self._has_room_locked()), timeout
            ):
                self._exhausted += 1
                raise PoolExhaustedError(
                    f"{self._transport.place}: all {self._max_size} connections are in use, "
                    f"and {len(self._waiting) - 1} others wait for one"
                )
            self._check_open_locked()
            return self._take_locked()
        finally:
            self._waiting.remove(turn)
            self._wake_next_locked()

    def _has_room_locked(self) -> bool:
        return len(self._places) < self._max_size or _Place.IDLE in self._places.values()

    def _take_locked(self) -> Connection:
        for closed in [one for one, place in self._places.items() if place is _Place.IDLE and one.is_closed]:
            self._forget_locked(closed)  # somebody kept it and closed it
        idle = [connection for connection, place in self._places.items() if place is _Place.IDLE]
        connected = [connection for connection in idle if connection.is_connected]
        if connected:
            connection = max(connected, key=lambda one: one.last_frame_at)
        else:
            connection = idle[0] if idle else self._place_locked()
        self._places[connection] = _Place.OPENING
        return connection

    def _forget_locked(self, connection: Connection) -> None:
        self._places.pop(connection, None)
        if connection in self._kept:
            self._kept.remove(connection)

    def _place_locked(self) -> Connection:
        """A new place. Those that are kept open have no idle time."""
        is_kept = len(self._kept) < self._min_size
        connection = self._new(idle_timeout=None if is_kept else self._idle_timeout)
        if is_kept:
            self._kept.append(connection)
        return connection

    def _wake_next_locked(self) -> None:
        if self._waiting:
            self._waiting[0].notify()

    def _open(self, connection: Connection) -> None:
        """Acquires it for whoever has its place, which is free again when this fails."""
        is_new = not connection.is_connected
        try:
            connection.acquire()
            with self._lock:
                self._check_open_locked()
                self._places[connection] = _Place.BUSY
                self._opened += is_new
        except BaseException as error:
            with self._lock:
                self._failed += isinstance(error, ClientError) and not self._closed
            self._put_back(connection)
            with self._lock:
                self._check_open_locked()  # then that is the reason
            raise

    def _give_back(self, connection: Connection, discard: bool = False) -> None:
        try:
            connection.release(discard=discard)
        except ConnectionDrainTimeoutError as error:
            log.warning("%s", error)
            with self._lock:
                self._drain_timeouts += 1
        finally:
            self._put_back(connection)

    def _put_back(self, connection: Connection) -> None:
        """The place is free. A connection that its user closed for good has none, nor has any in a closed pool."""
        with self._lock:
            is_over = self._closed or connection.is_closed
            if is_over:
                self._forget_locked(connection)
                self._came_back.notify_all()
            else:
                self._places[connection] = _Place.IDLE
            self._wake_next_locked()
        if is_over:
            connection.close()

    def _drain_away(self, connection: Connection) -> None:
        try:
            self._give_back(connection)
        except ConnectionBusyError as error:
            log.warning("%s", error)

    # ---- those that are kept open

    def _keep_locked(self) -> None:
        if self._min_size and self._keeper is None and not self._closed:
            self._keeper = threading.Thread(target=self._keep, name="krait-client-pool", daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        pause = _CHECK_SECONDS
        while not self._stop.wait(pause):
            errors = self._fill()
            if errors and not self._closed:
                log.warning("a connection of the pool cannot be opened, trying again: %s", errors[0])
            pause = min(pause * 2, _LONGEST_PAUSE) if errors else _CHECK_SECONDS

    def _fill(self) -> list[ClientError]:
        """Opens those of the ``min_size`` that nobody uses and that are not open. Returns what went wrong."""
        errors: list[ClientError] = []

        def open_one(connection: Connection) -> None:
            try:
                self._open(connection)
            except ClientError as error:
                errors.append(error)
            else:
                self._give_back(connection)

        with self._lock:
            if self._closed:
                return errors
            while len(self._kept) < self._min_size and len(self._places) < self._max_size:
                self._places[self._place_locked()] = _Place.IDLE
            lacking = [one for one in self._kept if self._places[one] is _Place.IDLE and not one.is_connected]
            for connection in lacking:
                self._places[connection] = _Place.OPENING
        _together(open_one, lacking)
        return errors


def _together(function: Callable[[Connection], None], connections: list[Connection]) -> None:
    """Calls it for all at the same time, for each may have to wait for the server. Returns when all are done."""
    threads = [threading.Thread(target=function, args=(connection,), daemon=True) for connection in connections]
    started = []
    for thread, connection in zip(threads, connections, strict=True):
        try:
            thread.start()
        except RuntimeError:  # no more threads: one after the other then, for whoever waits for a place
            function(connection)
        else:
            started.append(thread)
    for thread in started:
        thread.join()
