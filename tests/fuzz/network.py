"""Fuzzes a real server on the loopback interface with broken requests and frames."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import socket
import struct
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from krait_ws.testing import SiteServer
from tests.fuzz.checks import SETUPS, cut
from tests.fuzz.common import OFFERS, minimal, report
from tests.fuzz.handshake import ODD
from tests.fuzz.inputs import Frames

_SITE = {
    "loop.py": """
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
class Echo(WebsocketsCtrlBase):
    runs_on = "loop"
    slow_consumer = "close"
    def __init__(self):
        super().__init__(use_in_message_queue=False)
    def on_in_message(self, message):
        self.push_out_message(message)
def websocket(request):
    return WebsocketsResponse(Echo(), (request.protocols or [None])[0])
""",
    "handler.py": """
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
class Echo(WebsocketsCtrlBase):
    def on_thread_start(self):
        for message in self.messages():
            self.push_out_message(message)
def websocket(request):
    return WebsocketsResponse(Echo())
""",
    "pieces.py": """
from krait_ws.errors import ConnectionEndedError
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsResponse
class Count(WebsocketsCtrlBase):
    runs_on = "greenlet"
    stream_messages = True
    def on_thread_start(self):
        try:
            for message in self.messages():
                self.push_out_message(str(sum(len(chunk) for chunk in message)))
        except ConnectionEndedError:
            pass
def websocket(request):
    return WebsocketsResponse(Count())
""",
    "body.py": "import krait_ws\ndef http(request):\n    return krait_ws.Response(str(len(request.get_data())))\n",
    "[any].py": """
import krait_ws
def http(request):
    return krait_ws.ResponseRedirect("/" + request.params["any"])
""",
    "folder/index.html": "<p>folder",
    "page.html": "<p>page",
}
_PATHS = (
    "/loop", "/handler", "/pieces", "/body", "/page", "/folder", "/", "//loop", "/%2e%2e/x", "/%00", "/%0d%0aX:y",
    "/loop.py",    "/\\x", "*", "http://localhost/page", "/a?b=%ff", "/" + "a" * 5000, "/%ff", "/..%2f..%2fetc", "/é",
)  # fmt: skip


def _request(source: random.Random) -> bytes:
    method = source.choice((b"GET", b"GET", b"GET", b"POST", b"HEAD", b"OPTIONS", b"get", b"G\x1bT", b""))
    version = source.choice(
        (b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1", b"HTTP/9.9", b"HTTP/x.y", b"")
    )
    lines = [method + b" " + source.choice(_PATHS).encode() + b" " + version, b"Host: localhost"]
    if source.random() < 0.6:
        lines += [b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"]
        lines.append(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        if source.random() < 0.5:
            lines.append(b"Sec-WebSocket-Extensions: " + source.choice(OFFERS).encode())
    body = b""
    if source.random() < 0.3:
        body = source.choice(
            (b"", b"abcd", b"4\r\nabcd\r\n0\r\n\r\n", b"zz\r\n", b"5;x=y\r\nabcde\r\n0\r\nT: u\r\n\r\n")
        )
        lines += source.sample(
            [b"Content-Length: 4", b"Content-Length: 0_4", b"Transfer-Encoding: chunked", b"Content-Length : 4",
             b"Transfer-Encoding: gzip, chunked", b"Expect: 100-continue", b"Content-Length: 99999999999999"], 1,
        )  # fmt: skip
    for _ in range(source.choice((0, 0, 1, 2))):
        name = source.choice(
            ("Origin", "Cookie", "Range", "If-None-Match", "X-Forwarded-For", "Sec-WebSocket-Protocol")
        )
        lines.append(f"{name}: ".encode() + source.choice(ODD).replace("\r\n", "").encode())
    if source.random() < 0.1:
        lines.insert(
            source.randrange(1, len(lines)), source.choice((b"garbage", b" folded", b"A: b\rC: d", b": x", b"\x00: x"))
        )
    return b"\r\n".join([*lines, b"", b""]) + body


def fuzz_network(seconds: float, seed: int) -> bool:
    source = random.Random(seed)
    frames = Frames(source)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    for name in ("krait_ws.network", "krait_ws.session", "krait_ws.site", "krait_ws.server"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False
    printed = io.StringIO()
    recent: list[bytes] = []
    deadline = time.monotonic() + seconds
    cases = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _SITE.items():
            file = Path(folder, name)
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        limits = {"handshake_timeout": 1.0, "close_timeout": 1.0, "stop_timeout": 2.0, "max_message_size": 10_000}
        with contextlib.redirect_stderr(printed), SiteServer(folder, compress=True, **limits) as server:
            while time.monotonic() < deadline:
                data = _attack(source, frames)
                recent = [*recent[-30:], data]
                _send(server.port, data, source)
                cases += 1
                if cases % 30 == 0:
                    problem = _network_problem(server, log, printed)
                    if problem:
                        report(problem, seed, _reproduction(server, recent, log, printed))
                        return False
    print(f"network: {cases} connections")
    return True


def _reproduction(server: SiteServer, recent: list[bytes], *logs: io.StringIO) -> str:
    """Which of the last connections it was, as short as it can be made."""

    def fails(data: bytes) -> bool:
        for log in logs:
            log.truncate(0)
            log.seek(0)
        for number in range(8):
            _send(server.port, data, random.Random(number))
        return bool(_network_problem(server, *logs))

    for data in recent:
        if fails(data):
            return f"    {minimal(fails, data)!r}"
    return "    one of these connections, or several:\n" + "\n".join(f"    {one[:600]!r}" for one in recent)


def _attack(source: random.Random, frames: Frames) -> bytes:
    data = _request(source)
    if source.random() < 0.7:
        data += b"".join(frames.make(source.choice(SETUPS)) for _ in range(source.choice((1, 1, 4))))
    if source.random() < 0.2:
        data += _request(source)
    match source.randrange(10):
        case 0:
            data = source.randbytes(source.choice((1, 100, 5000)))
        case 1:
            data = frames.broken(data)
        case 2:
            data = data[: source.randrange(len(data))]
    return data


def _send(port: int, data: bytes, source: random.Random) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        for chunk in cut(data, source) if source.random() < 0.1 else [data]:
            sock.sendall(chunk)
        end = source.randrange(4)
        if end == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == 1:
            sock.shutdown(socket.SHUT_WR)
        if end < 3:
            sock.settimeout(0.02)
            sock.recv(1 << 16)


def _network_problem(server: Any, log: io.StringIO, printed: io.StringIO) -> str | None:
    for stream in (log, printed):
        text = stream.getvalue()
        if "Traceback" in text or "error of krait-ws" in text:
            return text[-3000:]
    try:
        for path in ("/loop", "/handler"):
            with server.connect(path) as client:
                client.send("still there?")
                client.expect("still there?")
        if server.get("/page").status != 200:
            return "the page is not served any more"
    except Exception:
        return traceback.format_exc()
    return None
