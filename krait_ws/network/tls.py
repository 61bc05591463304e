"""TLS between a socket and its reader: certificates, the handshake, and a socket that encrypts.

Comes in: bytes of a TCP socket. Goes out: the plain bytes to the HTTP handler, and after a 101 to the connection. The
TLS engine works on memory only (``ssl.MemoryBIO``), so that one object serves both: first a greenlet, which waits in
the socket under it, then the network loop, which never waits.
"""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from krait_ws.config import Config
from krait_ws.errors import ConfigError
from krait_ws.network.loop import BUFFER_SIZE

_RECORD_SIZE = 16 * 1024 + 1024  # bytes of the largest record with what is around it (RFC 8446 section 5.2)
_READ_SIZE = 16 * 1024  # bytes taken from the socket at once while a greenlet reads
_MOST_READ = BUFFER_SIZE - 2 * _RECORD_SIZE  # what this decrypts to, with a held record, fits into the loop's buffer
_PART = 32 * 1024  # bytes that go through the engine at once: its buffers keep their largest size for ever
_SEND_BUDGET = 256 * 1024  # bytes encrypted in one turn
_MOST_OWED = 16 * 1024  # bytes that a peer can make the engine answer before anything is sent
_HTTP_ON_TLS = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 25\r\n\r\nThis port speaks https.\r\n"


def new_context(config: Config) -> ssl.SSLContext | None:
    """What new connections are encrypted with; ``None`` when ``tls_cert`` is not set. TLS 1.2 and later.

    Raises:
        ConfigError: A file is missing, cannot be read or holds something else, or key and certificate do not match.
    """
    if not config.tls_cert:
        if config.tls_key:
            raise ConfigError("tls_key: a key is of no use without its certificate: set tls_cert too")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    # Tickets are of little use for connections that last. They come while a client sends its request, and clients that
    # read and write one SSL socket from two threads, as Python programs do, lose that request now and then.
    context.num_tickets = 0
    for setting, path in (("tls_cert", config.tls_cert), ("tls_key", config.tls_key)):
        _check_readable(setting, path)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key or None, _no_password)
    except ssl.SSLError as error:
        raise ConfigError(_explain(error, config)) from None
    return context


class TlsSocket:
    """An encrypted socket. It is used like the one under it: by a greenlet, which waits, as long as that is gevent's;
    by the network loop after ``leave_greenlet``.

    Args:
        sock: A connected socket of gevent; it belongs to this object from now on.
        context: As of ``new_context``.
    """

    __slots__ = ("_ended", "_held", "_incoming", "_outgoing", "_read", "_socket", "_ssl", "_unsent")

    def __init__(self, sock: Any, context: ssl.SSLContext) -> None:
        self._socket = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._read: Any = self._ssl.read  # into a buffer it returns a number, which its type does not say
        self._unsent: memoryview | None = None  # encrypted bytes that the socket did not take
        self._held = 0  # plain bytes of these that the sender has not been told of
        self._ended = False  # the peer will send nothing more

    # ---- while a greenlet has it

    def do_handshake(self) -> None:
        """Waits for the handshake; the caller sets a limit.

        Raises:
            OSError: It failed; ``ssl.SSLError`` when it was TLS that did.
        """
        while True:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._send_owed()
                self._fill(_READ_SIZE)
                if self._ended:
                    raise ConnectionResetError("the client went away inside the TLS handshake") from None
            except ssl.SSLError as error:
                with suppress(OSError):  # the peer may have gone; else it gets the alert
                    if error.reason == "HTTP_REQUEST":
                        self._socket.sendall(_HTTP_ON_TLS)
                    else:
                        self._send_owed()
                raise
            else:
                self._send_owed()
                return

    def makefile(self, mode: str, buffering: int) -> io.BufferedReader:
        """What gevent's HTTP handler reads from."""
        return io.BufferedReader(_Reader(self))

    def read_into(self, buffer: memoryview) -> int:
        """Some plain bytes, at most as many as ``buffer`` takes; 0 at the end of the stream."""
        while True:
            try:
                return int(self._read(len(buffer), buffer))
            except ssl.SSLWantReadError:
                self._fill(_READ_SIZE)
                if self._ended:
                    return 0
            except ssl.SSLZeroReturnError:
                return 0

    def sendall(self, data: bytes | memoryview) -> None:
        self._ssl.write(data)
        self._send_owed()

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def setblocking(self, flag: bool) -> None:
        self._socket.setblocking(flag)

    def leave_greenlet(self, to_native: Callable[[Any], socket.socket]) -> bytes:
        """From now on the network loop has it, on the native socket that ``to_native`` makes.

        Returns:
            The plain bytes that have arrived already.
        """
        self._socket = to_native(self._socket)
        self._socket.setblocking(False)
        buffer = bytearray(_READ_SIZE + _RECORD_SIZE)
        return bytes(buffer[: self._decrypt_into(memoryview(buffer))])

    # ---- while the loop has it

    def recv_into(self, buffer: bytearray, size: int) -> int:
        """Takes up to ``size`` bytes of the socket and decrypts all of them. What comes out can be more than ``size``,
        by a record that was waiting for its end, but fits into the loop's buffer. So nothing is ever left here that
        the poller does not know of.

        Returns:
            How many plain bytes there are; 0 at the end of the stream.

        Raises:
            BlockingIOError: No whole record has come.
            OSError: The connection is broken.
        """
        data = memoryview(self._socket.recv(min(size, _MOST_READ)))
        view = memoryview(buffer)
        received = 0
        for start in range(0, len(data), _PART):
            self._incoming.write(data[start : start + _PART])
            received += self._decrypt_into(view[received:])
        if not data:
            return 0
        if not received and not self._ended:
            raise BlockingIOError
        return received

    def send(self, data: bytes | memoryview) -> int:
        """Encrypts and sends, up to a turn's worth. What was not taken must come again, the same bytes first: some of
        them are encrypted already.

        Returns:
            How many bytes of ``data`` the sender may forget. All of them only when the socket has taken everything.

        Raises:
            BlockingIOError: The socket takes nothing.
            OSError: The connection is broken.
        """
        view = memoryview(data)
        taken = 0
        while True:
            if self._unsent is None:
                part = view[taken : taken + _PART]
                self._ssl.write(part)
                self._held = len(part)
                encrypted: bytes | memoryview = self._outgoing.read()
            else:
                encrypted = self._unsent
            try:
                sent: int = self._socket.send(encrypted)
            except (BlockingIOError, InterruptedError):
                sent = 0
            if sent < len(encrypted):
                self._unsent = memoryview(encrypted)[sent:]
                told = min(sent, self._held - 1)  # progress shows, but the last byte only when all has gone
                self._held -= told
                return taken + told
            self._unsent = None
            taken += self._held
            self._held = 0
            if taken == len(view) or taken >= _SEND_BUDGET:
                return taken

    # ---- either

    def shutdown(self, how: int) -> None:
        """Ends our half of the stream, with the close_notify of TLS first (RFC 8446 section 6.1)."""
        self._say_goodbye()
        self._socket.shutdown(how)

    def close(self) -> None:
        self._say_goodbye()
        with suppress(OSError):  # what nobody has read would make the system send a reset, which destroys the answer
            self._socket.setblocking(False)
            self._socket.recv(_READ_SIZE)
        self._socket.close()

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def _say_goodbye(self) -> None:
        """Whether the peer hears it is its own affair: a WebSocket has close frames, HTTP has lengths."""
        if self._unsent is not None:
            return  # in the middle of a record nothing can be said
        with suppress(OSError):
            self._socket.setblocking(False)
            with suppress(ssl.SSLError):  # the peer's own close_notify has not come yet
                self._ssl.unwrap()
            self._socket.send(self._outgoing.read())

    def _fill(self, size: int) -> None:
        """From the socket to the engine."""
        data = self._socket.recv(size)
        if data:
            self._incoming.write(data)
        else:
            self._ended = True

    def _decrypt_into(self, view: memoryview) -> int:
        """All plain bytes that there are."""
        received = 0
        try:
            while got := self._read(len(view) - received, view[received:]):
                received += got
        except ssl.SSLWantReadError:
            if self._outgoing.pending > _MOST_OWED:
                raise ConnectionAbortedError("the peer asks for answers of TLS and takes none") from None
            return received
        except ssl.SSLZeroReturnError:
            pass
        self._ended = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)  # else the poller would not report the end that has come inside
        return received

    def _send_owed(self) -> None:
        if self._outgoing.pending:
            self._socket.sendall(self._outgoing.read())


class _Reader(io.RawIOBase):
    """A ``TlsSocket`` as a file."""

    def __init__(self, sock: TlsSocket) -> None:
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._sock.read_into(memoryview(buffer).cast("B"))
        except BlockingIOError:
            return None


def _check_readable(setting: str, path: str) -> None:
    try:
        if path:
            with open(path, "rb"):
                pass
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from None


def _no_password() -> NoReturn:
    raise ConfigError("tls_key: the key is encrypted and nobody is there to ask for its password: store it without one")


def _explain(error: ssl.SSLError, config: Config) -> str:
    key = config.tls_key or config.tls_cert
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"tls_key: the key in {key} does not belong to the certificate in {config.tls_cert}"
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return f"tls_cert: {config.tls_cert} is too weak for this system's OpenSSL ({error.reason})"
    return (
        f"tls_cert: no certificate in {config.tls_cert} with its key in {key}: both must be in PEM form "
        f"({error.reason or error})"
    )
