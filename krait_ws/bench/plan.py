"""What a load consists of: where to, how much, and the bytes that go out and must come back."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from krait_ws.errors import ConfigError
from krait_ws.protocol.frames import BINARY, FIN, TEXT, head

RECEIVE_SIZE = 256 * 1024
"""Bytes that one read of a socket may bring."""

_MASK = b"\x12\x34\x56\x78"  # a load has no secrets to hide from a proxy: one mask will do
_CYCLE_BYTES = 4 << 20
_MAX_VARIANTS = 16
_PORTS = {"ws": 80, "http": 80, "wss": 443, "https": 443}
_OWN_HEADERS = {"host", "upgrade", "connection", "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol"}


@dataclass(frozen=True)
class Target:
    """Where a URL leads."""

    url: str
    host: str
    port: int
    resource: str
    is_secure: bool

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_secure else 80) else f"{host}:{self.port}"


def target_of(url: str) -> Target:
    """The parts of a ``ws://``, ``wss://``, ``http://`` or ``https://`` URL.

    Raises:
        ConfigError: It is no such URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ConfigError(f"{url!r} is no WebSocket URL: write it like ws://127.0.0.1:8000/echo")
    if not url.isascii() or any(character <= " " for character in url):
        raise ConfigError(f"{url!r} has characters that a URL may not have: write them with %")
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    is_secure = parts.scheme in ("wss", "https")
    return Target(url, parts.hostname, port or _PORTS[parts.scheme], resource, is_secure)


@dataclass(frozen=True)
class Plan:
    """What ``krait-ws bench`` was asked for.

    Attributes:
        connections: Connections that are open at once.
        in_flight: Messages that a connection has sent and not got back; with ``rate`` it does not count.
        size: Bytes of a message's payload.
        seconds: Time that is measured, from when all connections are open.
        ramp: Seconds over which the connections are opened.
        rate: Messages a second, of all connections together, on a fixed schedule; 0 sends the next one when one has
            come back.
        is_push: Only receive.
        hello: Text that is sent once after opening, to subscribe.
        timeout: Seconds that a handshake, an echo and a close may take.
    """

    target: Target
    connections: int = 100
    in_flight: int = 1
    size: int = 32
    seconds: float = 5.0
    ramp: float = 0.0
    rate: float = 0.0
    is_push: bool = False
    is_binary: bool = False
    hello: str = ""
    subprotocol: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    timeout: float = 10.0
    tls: ssl.SSLContext | None = field(default=None, compare=False)

    def request(self, key: str) -> bytes:
        """The upgrade request."""
        lines = [
            f"GET {self.target.resource} HTTP/1.1",
            f"Host: {self.target.authority}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *([f"Sec-WebSocket-Protocol: {self.subprotocol}"] if self.subprotocol else []),
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


def header_of(text: str) -> tuple[str, str]:
    """Name and value of ``Name: value``.

    Raises:
        ConfigError: It is no header, or one that the handshake itself sets.
    """
    name, colon, value = text.partition(":")
    if not colon or not name.strip() or any(sign in text for sign in "\r\n\0"):
        raise ConfigError(f"{text!r} is no header: write it like 'Name: value'")
    if name.strip().lower() in _OWN_HEADERS:
        raise ConfigError(f"{name.strip()}: this header is set by the handshake itself")
    return name.strip(), value.strip()


class Messages:
    """The messages of a load, made once: as they are sent and as they must come back.

    They differ, in turn, so that an echo in a wrong order is seen. Both forms are one long run of bytes with the
    messages in their order, a cycle and as much more as one read or one send can take from it.

    Attributes:
        outgoing: Masked frames.
        expected: The frames of a server that echoes, unmasked and whole.
        frame_size: Bytes of one of ``expected``.
        sent_size: Bytes of one of ``outgoing``.
        count: Messages of a cycle.
    """

    def __init__(self, size: int, at_once: int, *, is_binary: bool) -> None:
        self.opcode = BINARY if is_binary else TEXT
        self.count = max(2, min(_MAX_VARIANTS, _CYCLE_BYTES // (size + 14)))
        self.payloads = [_payload(number, size) for number in range(self.count)]
        answers = [head(FIN | self.opcode, size) + payload for payload in self.payloads]
        frames = [client_frame(self.opcode, payload) for payload in self.payloads]
        self.frame_size, self.sent_size = len(answers[0]), len(frames[0])
        self.cycle = self.frame_size * self.count
        self.expected = b"".join(_repeated(answers, self.cycle + RECEIVE_SIZE))
        self.outgoing = memoryview(b"".join(_repeated(frames, (self.count + at_once) * self.sent_size)))


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame of a client (RFC 6455 section 5.3)."""
    first, *rest = head(FIN | opcode, len(payload))
    masks = _MASK * (len(payload) // 4 + 1)
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(masks[: len(payload)], "big")
    return bytes((first, rest[0] | 0x80, *rest[1:])) + _MASK + masked.to_bytes(len(payload), "big")


def _payload(number: int, size: int) -> bytes:
    letters = bytes(97 + (number + place) % 26 for place in range(26))
    return (letters * (size // 26 + 1))[:size]


def _repeated(frames: list[bytes], size: int) -> list[bytes]:
    return (frames * (size // (len(frames[0]) * len(frames)) + 1))[: size // len(frames[0]) + 1]
