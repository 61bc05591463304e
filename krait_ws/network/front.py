"""Where connections arrive: an upgrade whose head comes in one piece is answered here, on the network loop. What is
anything else goes to a greenlet of its own, with what has been read of it.

Comes in: accepted sockets. Goes out: connections of the network loop after a 101; for the rest calls of ``serve``, with
the answer to the upgrade where it has been decided on.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from werkzeug.wrappers import Response as WerkzeugResponse

from krait_ws.errors import RequestError
from krait_ws.logs import Answered
from krait_ws.network.admission import Place
from krait_ws.network.deadlines import Deadlines
from krait_ws.network.poller import READ
from krait_ws.network.upgrades import Begun, Decision, switching
from krait_ws.observe.observer import is_own
from krait_ws.protocol import handshake
from krait_ws.protocol.frames import ABNORMAL
from krait_ws.protocol.head import head_end, parse_head
from krait_ws.session import Session
from krait_ws.waiting import monotonic

if TYPE_CHECKING:
    from krait_ws.network.server import Server

logger = logging.getLogger("krait_ws.server")

_READ_SIZE = 8 * 1024
"""Bytes of a head in one piece, at most; gevent's reader takes no longer request line."""

Serve: TypeAlias = Callable[[socket.socket, Any, Begun], None]


class Front:
    """See the module. Thread: the loop's.

    Args:
        server: Whose front it is.
        serve: Takes over a socket with its client's address.
        leave: Is told of each connection that ends here, or has become a WebSocket.
    """

    def __init__(self, server: Server, serve: Serve, leave: Callable[[], None]) -> None:
        self.server = server
        self.loop = server.loop
        self.serve = serve
        self.leave = leave
        self.max_head_size = min(_READ_SIZE, server.config.max_head_size)
        self.deadlines: Deadlines[Arrival] = Deadlines(self.loop, server.config.handshake_timeout, Arrival.expire)

    def take(self, sock: socket.socket, address: Any) -> None:
        """A connection has been accepted; its socket does not block."""
        arrival = Arrival(self, sock, address)
        self.server.greeting.add(arrival)
        self.deadlines.add(arrival)
        self.loop.watch(sock.fileno(), arrival, READ)

    def close(self) -> None:
        """Ends the connections that have sent nothing, or whose upgrade is still being decided."""
        for arrival in [*self.server.greeting, *self.server.answering]:
            if isinstance(arrival, Arrival):
                arrival.abort()


class Arrival:
    """A connection whose first request is waited for, or is an upgrade that is being decided."""

    __slots__ = (
        "_address", "_asked_at", "_began", "_behind", "_descriptor", "_environ", "_front", "_place", "_received",
        "_sock", "_target",
    )  # fmt: skip

    def __init__(self, front: Front, sock: socket.socket, address: Any) -> None:
        self._front = front
        self._sock: socket.socket | None = sock
        self._descriptor = sock.fileno()
        self._address = address
        self._began = monotonic()
        self._received = b""
        self._behind = b""  # what came behind the request
        self._target = ""
        self._asked_at = 0.0  # when the request had come
        self._environ: dict[str, Any] = {}
        self._place: Place | None = None

    # ---- called by the loop

    def on_ready(self, events: int) -> None:
        """The first bytes have come, or the end."""
        sock = self._sock
        if sock is None or self._place is not None:
            self._forget()  # what comes behind the request waits in the socket
            return
        try:
            self._received = sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._received = b""
        if self._received:
            self._read()
        else:
            self._close()

    def abort(self) -> None:
        """Ends the connection. What the site decides about its upgrade comes too late."""
        if self._place is not None:
            self._place.leave()
        self._close()

    def expire(self) -> None:
        """Nothing has come in time."""
        self._hand_over()

    # ---- the request

    def _read(self) -> None:
        """Decides who answers what has come."""
        front = self._front
        server = front.server
        end = head_end(self._received)
        data = self._received[:end]
        if not 0 < end <= front.max_head_size or b"websocket" not in data.lower() or server.serves_in_greenlets:
            self._hand_over()
            return
        try:
            head = parse_head(data)
        except RequestError:
            self._hand_over()  # who comes to the same error, and answers it
            return
        self._asked_at = monotonic()
        environ = server.new_environ(head, self._address)
        if not handshake.is_upgrade(environ) or is_own(environ["PATH_INFO"]):
            self._hand_over()
            return
        refusal = server.upgrades.check(environ)
        place = refusal or server.admission.enter(environ.get("REMOTE_ADDR", ""))
        if not isinstance(place, Place):
            self._hand_over(place)
            return
        self._place = place
        self._environ = environ
        self._target = head.target
        self._behind = self._received[end:]
        front.deadlines.discard(self)
        server.greeting.discard(self)
        server.answering.add(self)
        server.upgrades.ask(environ, place, self._decided)

    def _decided(self, decision: Decision) -> None:
        assert self._place is not None
        if isinstance(decision, Session):
            if self._sock is None:
                decision.transport_gone(ABNORMAL)
            else:
                self._open(self._sock, decision)
            return
        self._place.leave()
        if self._sock is not None:
            self._hand_over(decision)

    def _open(self, sock: socket.socket, session: Session) -> None:
        """Sends the 101, and the connection begins."""
        front = self._front
        answer, deflate = switching(self._environ, session)
        try:
            is_sent = sock.send(answer) == len(answer)
        except OSError:
            is_sent = False
        client = self._environ.get("REMOTE_ADDR", "")
        opened = session if is_sent else None
        Answered(client, "GET", self._target, 101, seconds=monotonic() - self._asked_at, session=opened).log()
        if not is_sent:  # the client is gone; one that lives takes these few bytes
            session.transport_gone(ABNORMAL)
            self._close()
            return
        self._sock = None
        front.server.answering.discard(self)
        front.leave()
        try:
            front.server.adopt(sock, session, self._behind, deflate)
        except OSError as error:  # it cannot be watched
            logger.error("connection %s: cannot be watched: %s", session.id, error)
            sock.close()
            session.transport_gone(ABNORMAL)

    # ---- the end

    def _hand_over(self, refusal: WerkzeugResponse | None = None) -> None:
        """A greenlet goes on with it."""
        sock = self._let_go()
        if sock is not None:
            now = monotonic()
            left = max(0.0, self._began + self._front.server.config.handshake_timeout - now)
            spent = 0.0 if refusal is None else now - self._asked_at
            self._front.serve(sock, self._address, Begun(left, self._received, refusal, spent))

    def _close(self) -> None:
        sock = self._let_go()
        if sock is not None:
            sock.close()
            self._front.leave()

    def _let_go(self) -> socket.socket | None:
        server = self._front.server
        self._front.deadlines.discard(self)
        server.greeting.discard(self)
        server.answering.discard(self)
        self._forget()
        sock, self._sock = self._sock, None
        return sock

    def _forget(self) -> None:
        if self._sock is not None:
            self._front.loop.forget(self._descriptor)
