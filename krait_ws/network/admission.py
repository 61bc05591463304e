"""Who may come in: the limits on connections, on those of one address, on its handshakes a second, and on threads.

Comes in: an upgrade, before anything of it is looked at closely. Goes out: a ``Place`` for it, or the answer that
refuses it, with Retry-After. What is held is given back exactly once, however the upgrade ends.

An address is an IPv4 address or the /64 network of an IPv6 address, which is what one customer usually has. The tables
hold only addresses that have a place or came a moment ago, and at most ``MAX_ADDRESSES`` of the latter.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from contextlib import suppress

from krait_ws.config import Config
from krait_ws.http import Response
from krait_ws.rate import Rate
from krait_ws.waiting import monotonic, new_lock

logger = logging.getLogger("krait_ws.admission")

MAX_ADDRESSES = 32_768
"""Addresses whose handshakes are remembered, with some 200 bytes each. Beyond it the one that came longest ago is
forgotten."""

_WARNING_INTERVAL = 60.0  # seconds; a flood must not fill the log as well
_MAPPED = bytes(10) + b"\xff\xff"  # what IPv4 addresses begin with on an IPv6 socket (RFC 4291 section 2.5.5.2)
_LONGEST_NAME = 64


class Admission:
    """See the module. Thread: the loop's, unless a method says otherwise.

    Attributes:
        connections: Places that are held: upgrades that are being decided, and sessions.
        threads: Threads that are reserved for handlers; guarded by ``_lock``.

    Args:
        config: The limits.
        count_refusal: Is told the setting whenever it refuses an upgrade.
    """

    def __init__(self, config: Config, count_refusal: Callable[[str], None]) -> None:
        self._config = config
        self._count_refusal = count_refusal
        self._warned_at: dict[str, float] = {}
        self.connections = 0
        self.threads = 0
        self._lock = new_lock()
        self._connections_of: dict[bytes, int] = {}
        per_second = config.max_handshakes_per_address
        self._rates = AddressRates(Rate(per_second, 1.0)) if per_second else None

    def check_handshake(self, remote_addr: str) -> Response | None:
        """Counts a handshake of an address. Returns the refusal when they come too fast."""
        if self._rates is None or not (address := address_key(remote_addr)):
            return None
        seconds = self._rates.take(address, monotonic())
        return self.refuse("max_handshakes_per_address", retry_after=seconds) if seconds else None

    def enter(self, remote_addr: str) -> Place | Response:
        """A place for an upgrade, to be left once it is over; or the refusal."""
        if self.connections >= self._config.max_connections:
            return self.refuse("max_connections")
        address = address_key(remote_addr) if self._config.max_connections_per_address else b""
        if address:
            count = self._connections_of.get(address, 0)
            if count >= self._config.max_connections_per_address:
                return self.refuse("max_connections_per_address")
            self._connections_of[address] = count + 1
        self.connections += 1
        return Place(self, address)

    def refuse(self, setting: str, cause: str = "", retry_after: float = 1.0) -> Response:
        """The answer that refuses an upgrade because of a limit; counts it.

        Args:
            setting: The limit.
            cause: What to log, where it is not just that the limit is reached.
            retry_after: Seconds until it is worth while to try again.
        """
        self._count_refusal(setting)
        now = monotonic()
        if now - self._warned_at.get(setting, -math.inf) >= _WARNING_INTERVAL:
            self._warned_at[setting] = now
            logger.warning("upgrades are refused: %s", cause or f"{setting} is reached")
        is_clients_own = setting.endswith("_per_address")
        return Response(
            "Too many connections from your address.\n" if is_clients_own else "The server is busy.\n",
            status=429 if is_clients_own else 503,  # RFC 6585 section 4
            headers={"Retry-After": str(max(1, math.ceil(retry_after)))},
        )

    def reserve_threads(self, count: int) -> bool:
        """Takes threads for the handlers of a controller, if there are so many. Thread: any."""
        limit = self._config.max_threads
        with self._lock:
            if limit and self.threads + count > limit:
                return False
            self.threads += count
            return True

    def release_threads(self, count: int) -> None:
        """Thread: any."""
        with self._lock:
            self.threads -= count

    def release_place(self, address: bytes) -> None:
        self.connections -= 1
        if address:
            left = self._connections_of[address] - 1
            if left:
                self._connections_of[address] = left
            else:
                del self._connections_of[address]


class Place:
    """What one upgrade holds, from its decision to the end of its session. ``leave`` gives back what is held by then;
    called again, it gives back what was taken since."""

    __slots__ = ("_address", "_admission", "_is_held", "_threads")

    def __init__(self, admission: Admission, address: bytes) -> None:
        self._admission = admission
        self._address = address
        self._is_held = True
        self._threads = 0

    @property
    def is_held(self) -> bool:
        """Whether the upgrade, or its session, is still there. Thread: any."""
        return self._is_held

    def reserve_threads(self, count: int) -> bool:
        """Takes threads for the controller's handlers. Returns whether there are so many. Thread: any; once."""
        if not self._admission.reserve_threads(count):
            return False
        self._threads = count
        return True

    def leave(self) -> None:
        """Thread: the loop's."""
        threads = self._threads
        if threads:  # not to be written otherwise: a script that is late may reserve at this moment
            self._threads = 0
            self._admission.release_threads(threads)
        if self._is_held:
            self._is_held = False
            self._admission.release_place(self._address)


class AddressRates:
    """A bucket for each address that came a moment ago; one that is full is as good as none, so it is forgotten."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._full_at: dict[bytes, float] = {}  # in the order of the last handshake

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, address: bytes, now: float) -> float:
        """Takes a token of an address. Returns 0.0, or the seconds until there is one."""
        full_at = self._full_at.pop(address, now)
        wait = self._rate.wait(full_at, now)
        self._full_at[address] = full_at if wait else self._rate.taken(full_at, now, 1)
        self._forget(now)
        return wait

    def _forget(self, now: float) -> None:
        """Forgets up to two of those that came longest ago: more than are ever added, and never much work at once."""
        for _ in range(2):
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now and len(self._full_at) <= MAX_ADDRESSES:
                return
            del self._full_at[oldest]
            if not self._full_at:
                return


def address_key(text: str) -> bytes:
    """What counts as one address: an IPv4 address, the /64 of an IPv6 address; what is neither, as it is. Empty for a
    client without an address, which a Unix socket's is."""
    host = text.strip()
    if host.startswith("["):  # a proxy may name the port as well
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    with suppress(OSError, ValueError):
        return socket.inet_pton(socket.AF_INET, host)
    with suppress(OSError, ValueError):
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return packed[12:] if packed.startswith(_MAPPED) else packed[:8]
    return text[:_LONGEST_NAME].encode(errors="replace")
