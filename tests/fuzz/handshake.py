"""Fuzzes the checks of an upgrade request with odd values in its environ."""

from __future__ import annotations

import random
import time
import traceback

from krait_ws.config import Config
from krait_ws.errors import HandshakeError
from krait_ws.protocol import handshake
from krait_ws.protocol.deflate import negotiate
from tests.fuzz.common import Failure, no_hang, report

ODD = (
    "", " ", ",", ",,,", "websocket", "WebSocket", "websocket, h2c", "h2c", "websocket/13", "upgrade",
    "keep-alive, Upgrade", "13", "8", "13, 8", "013", "+13", "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ",
    "=" * 24, "A" * 24, "chat", "chat, superchat", "chat,,chat", 'a="b"', "a;b=c",
    "permessage-deflate", "permessage-deflate; x=y",
    "permessage-deflate; server_max_window_bits=8, permessage-deflate; client_max_window_bits=15",
    "permessage-deflate; client_max_window_bits=99999999999999999999",
    'permessage-deflate; client_max_window_bits="12"',
    "null", "http://localhost", "http://localhost:80", "HTTP://LOCALHOST", "https://localhost", "http://user@localhost",
    "http://localhost.", "http://[::1]:80", "http://[::1", "http://localhost:99999", "http://localhost:x", "http://\u2100",
    "//", "http://", "localhost", "localhost:0", "[::1]", "a, b", "\r\nX: y", "\x00", "\xff\xfe", "é", "\x85", '"' * 50,
    '"\\' * 500, "a," * 2000, "a;" * 2000, "(" * 2000, "a" * 30_000,
)  # fmt: skip
_NAMES = (
    "HTTP_HOST", "HTTP_UPGRADE", "HTTP_CONNECTION", "HTTP_SEC_WEBSOCKET_VERSION", "HTTP_SEC_WEBSOCKET_KEY",
    "HTTP_ORIGIN", "HTTP_SEC_WEBSOCKET_PROTOCOL", "HTTP_SEC_WEBSOCKET_EXTENSIONS", "HTTP_TRANSFER_ENCODING",
    "CONTENT_LENGTH",
)  # fmt: skip


def odd_environ(source: random.Random) -> dict[str, str]:
    environ = {
        "REQUEST_METHOD": source.choice(("GET", "GET", "GET", "POST", "get", "")),
        "SERVER_PROTOCOL": source.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/1.9")),
        "wsgi.url_scheme": source.choice(("http", "https")),
        "HTTP_HOST": "localhost",
        "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for name in source.sample(_NAMES, source.choice((0, 1, 1, 2, 3, len(_NAMES)))):
        value = source.choice(ODD)
        if source.random() < 0.2:
            value = "".join(chr(source.choice((source.randrange(256), 44, 59, 61, 34, 97))) for _ in range(20))
        elif source.random() < 0.2:
            value += source.choice((",", ";", " ", "\t")) + source.choice(ODD)
        if source.random() < 0.1:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ


def check_handshake(environ: dict[str, str], config: Config) -> None:
    """No exception but the one that carries the answer, which must be sendable."""
    handshake.tries_upgrade(environ)
    try:
        handshake.check_upgrade(environ)
        handshake.check_origin(environ, frozenset({"https://example.org"}))
    except HandshakeError as error:
        int(error.status[:3])
        error.reason.encode()
        return
    negotiated = negotiate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", ""), config)
    offered = handshake.parse_subprotocols(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")) or [None]
    for name, value in handshake.accept_headers(environ, offered[0], negotiated[1] if negotiated else None):
        if any(ord(character) < 32 or ord(character) > 126 for character in name + value):
            raise Failure(f"answers {name}: {value!r}")


def fuzz_handshake(seconds: float, seed: int) -> bool:
    source = random.Random(seed)
    deadline = time.monotonic() + seconds
    configs = [Config(compress=True, compress_window_bits=bits, compress_context=bits > 9) for bits in (9, 12, 15)]
    cases = 0
    while time.monotonic() < deadline:
        environ = odd_environ(source)
        cases += 1
        try:
            with no_hang():
                check_handshake(environ, source.choice(configs))
        except Exception:
            report(traceback.format_exc(), seed, f"    check_handshake({environ!r}, Config(compress=True))")
            return False
    print(f"handshake: {cases} requests")
    return True
