"""Attacks on the reading of HTTP: slow, huge, endless and ambiguous requests."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

from tests.attacks.support import Attacked, half_written_request, memory
from tests.integration.support import PATIENCE, RawClient, eventually, http_exchange, raw_get, upgrade_request

Attack = Callable[..., Attacked]


def read_all(sock: socket.socket) -> bytes:
    """What the server sends until it ends the stream."""
    received = b""
    with suppress(ConnectionError):
        while data := sock.recv(1 << 16):
            received += data
    return received


def status_of(attacked: Attacked, data: bytes) -> int:
    """The status of the only answer, after which the server must end the connection by itself."""
    with attacked.open() as sock:
        sock.sendall(data)
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 ") == 1, answer[:2000]
    return int(answer.split(b" ", 2)[1])


# ---- slow


def test_slow_handshakes_hold_up_nobody_and_end_in_time(attack: Attack) -> None:
    attacked = attack(handshake_timeout=2.0)
    before = memory()
    with ExitStack() as stack:
        socks = [stack.enter_context(attacked.open()) for _ in range(200)]
        request = half_written_request()
        for letter in request[:3]:
            for sock in socks:
                with suppress(ConnectionError):  # it was cut off already: the machine is slow
                    sock.send(bytes((letter,)))
        attacked.serves_others()
        assert memory() - before < 64 << 20
        eventually(lambda: not attacked.http_connections, what="the slow ones are cut off")
        assert all(b" 408 " in read_all(sock) for sock in socks)


def test_a_request_that_trickles_on_is_cut_off_nevertheless(attack: Attack) -> None:
    attacked = attack(handshake_timeout=0.5)
    with attacked.open() as sock:
        sock.settimeout(0.05)
        deadline = time.monotonic() + PATIENCE
        request = b"GET /page HTTP/1.1\r\nX: "
        received = b""
        while not received:
            assert time.monotonic() < deadline
            with suppress(ConnectionError):
                sock.sendall(request)
            request = b"x"
            with suppress(TimeoutError):
                received = sock.recv(1000)
        assert b" 408 " in received


@pytest.mark.parametrize("size", [100, 1 << 20], ids=["small", "at the limit"])
def test_a_body_that_does_not_come_ends_with_408_and_the_connection(attack: Attack, size: int) -> None:
    attacked = attack(handshake_timeout=0.5)
    assert status_of(attacked, b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nab" % size) == 408


def test_an_announced_body_above_the_limit_is_not_waited_for(attack: Attack) -> None:
    attacked = attack(handshake_timeout=60.0)
    assert status_of(attacked, b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nab") == 413


def test_a_client_that_does_not_read_its_answer_is_cut_off(attack: Attack) -> None:
    attacked = attack(send_timeout=0.5)
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(attacked.client(upgrade=False, receive_buffer=4096))
            client.send(b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.sock.recv(1), "it is being answered"
        attacked.serves_others()
        eventually(lambda: not attacked.http_connections, what="all are cut off")


def test_idle_kept_connections_are_ended(attack: Attack) -> None:
    attacked = attack(keep_alive_timeout=0.3)
    with attacked.open() as sock:
        sock.sendall(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200")


# ---- large


@pytest.mark.parametrize(
    "head",
    [
        b"X: " + b"x" * 100_000 + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (number, b"x" * 900) for number in range(90)),
        b"".join(b"X-%d: y\r\n" % number for number in range(500)),
        b"X: " + b"x" * 10_000_000,
    ],
    ids=["one line", "many lines", "many fields", "endless line"],
)
def test_large_heads_are_refused(attack: Attack, head: bytes) -> None:
    attacked = attack()
    before = memory()
    with attacked.open() as sock:
        with suppress(ConnectionError):
            sock.sendall(b"GET /page HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
        answer = read_all(sock)
    assert not answer or answer.startswith(b"HTTP/1.1 431 "), answer[:200]
    assert memory() - before < 64 << 20


def test_a_long_request_line_is_refused(attack: Attack) -> None:
    attacked = attack()
    with attacked.open() as sock:
        with suppress(ConnectionError):
            sock.sendall(b"GET /" + b"a" * 1_000_000)
        answer = read_all(sock)
    assert not answer or answer.split(b" ", 2)[1] in (b"400", b"414", b"431"), answer[:200]


@pytest.mark.parametrize(
    "header", ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol", "Connection", "Upgrade", "Cookie", "Origin"]
)
def test_long_lists_in_a_handshake_cost_little(attack: Attack, header: str) -> None:
    """They are read on the network loop: a list of 30 KB took 75 ms there, each time."""
    attacked = attack()
    request = upgrade_request("/nothing", (f"{header}: {'a,' * 15_000}websocket",))
    started = time.process_time()
    for _ in range(20):
        with attacked.open() as sock:
            sock.sendall(request)
            sock.recv(1000)
    assert (time.process_time() - started) / 20 < 0.04


# ---- endless bodies


@pytest.mark.parametrize(
    ("begin", "block"),
    [
        (b"0\r\n", (b"a: " + b"b" * 4000 + b"\r\n") * 16),
        (b"", (b"1;" + b"b" * 4000 + b"\r\nx\r\n") * 16),
        (b"", b"1\r\nx\r\n" * 10_000),
    ],
    ids=["trailers", "chunk extensions", "tiny chunks"],
)
def test_a_chunked_body_cannot_stop_the_loop(attack: Attack, begin: bytes, block: bytes) -> None:
    """gevent reads these byte by byte and lets nobody else run meanwhile."""
    attacked = attack()
    stop = threading.Event()

    def send() -> None:
        with suppress(OSError), attacked.open() as sock:
            sock.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + begin)
            while not stop.is_set():
                sock.sendall(block)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        for _ in range(5):
            attacked.serves_others()
    finally:
        stop.set()
        sender.join(PATIENCE)


# ---- ambiguous: a second request in what another reader takes for the body of the first

HIDDEN = b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Content-Length: 4\r\nContent-Length: 0\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: 0_4\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: -4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 4\x00\r\n",
        b"Content-Length : 4\r\n",
        b"no field\r\nContent-Length: 4\r\n",
        b"X: a\rContent-Length: 4\r\n",
        b": x\r\nContent-Length: 4\r\n",
        b" X: folded\r\nContent-Length: 4\r\n",
        b"Content-Length: \r\n",
    ],
)
@pytest.mark.parametrize("kind", ["plain", "upgrade"])
def test_no_request_hides_in_an_ambiguous_body(attack: Attack, fields: bytes, kind: str) -> None:
    attacked = attack()
    head = b"POST /body HTTP/1.1\r\nHost: x\r\n" if kind == "plain" else upgrade_request("/loop")[:-2]
    assert status_of(attacked, head + fields + b"\r\n0\r\n\r\n" + HIDDEN) in (400, 411, 501)


def test_an_upgrade_with_a_body_is_refused_and_its_body_is_no_request(attack: Attack) -> None:
    attacked = attack()
    head = upgrade_request("/loop")[:-2] + b"Content-Length: %d\r\n\r\n" % len(HIDDEN)
    assert status_of(attacked, head + HIDDEN) == 400


def test_a_post_that_offers_another_protocol_is_a_plain_post(attack: Attack) -> None:
    attacked = attack()
    head = b"POST /body HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nabcd"
    answers = http_exchange(attacked.port, head + HIDDEN)
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"4"), (200, b"<p>page")]


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1", b"GET / HTTP/x.y", b"GET / HTTP/2.0", b"GET /", b"GET", b"GET  / HTTP/1.1",
        b"GET\xa0/\xa0HTTP/1.1",
        b"GET\t/\tHTTP/1.1", b"G\x1bT / HTTP/1.1", b"GET /\x00 HTTP/1.1", b"GET /\r HTTP/1.1",
        b"\x16\x03\x01\x02\x00",
    ],
)  # fmt: skip
def test_odd_request_lines_are_refused(attack: Attack, line: bytes) -> None:
    assert status_of(attack(), line + b"\r\nHost: x\r\n\r\n") in (400, 505)


# ---- clients that go away


def test_clients_that_leave_anywhere_in_a_request_leave_nothing(attack: Attack) -> None:
    """No answer to a part of a request, no traceback, no greenlet that waits on."""
    attacked = attack()
    request = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234"
    for stop in range(0, len(request), 3):
        for reset in (False, True):
            with attacked.open() as sock:
                sock.sendall(request[:stop])
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    sock.shutdown(socket.SHUT_WR)
                    assert b" 200 " not in read_all(sock)
    eventually(lambda: not attacked.http_connections)


def test_connects_and_resets(attack: Attack) -> None:
    attacked = attack(ping_interval=60.0)
    before = memory()
    for number in range(1500):
        if number % 3 == 0:
            with attacked.client("/idle") as client:
                client.reset()
        else:
            with attacked.client(upgrade=False) as client:
                client.send(upgrade_request("/idle")[: 200 if number % 3 == 1 else None])
                client.reset()
    attacked.lets_go()
    assert memory() - before < 64 << 20


def test_not_found_floods(attack: Attack) -> None:
    attacked = attack()
    before = memory()
    requests = b"".join(b"GET /nothing/%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(499))
    requests += b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for _ in range(3):
        answers = http_exchange(attacked.port, requests)
        assert [answer.status for answer in answers] == [404] * 500
    assert memory() - before < 64 << 20


def test_more_connections_than_allowed_get_503(attack: Attack) -> None:
    attacked = attack(max_connections=5, ping_interval=60.0)  # they stay though they answer no ping
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(attacked.client("/idle"))
        with RawClient(attacked.port, upgrade=False) as client:
            client.send(upgrade_request("/idle"))
            client.read_head()
            assert client.status == 503
    attacked.lets_go()


# ---- paths, headers, logs


@pytest.mark.parametrize(
    "target",
    [
        b"//page", b"/./page", b"/../page", b"/%2e%2e/page", b"/..%2fpage", b"/folder/../page",
        b"/folder%2f..%2fpage",
        b"/%5c..%5cpage", b"/page%00", b"/page%00.html", b"/page.py", b"/loop.py", b"/loop.py/", b"/LOOP.PY",
        b"/loop%2epy",
        b"/_private/secret.txt", b"/%5fprivate/secret.txt", b"/.hidden", b"/%2ehidden",
        b"/folder/../_private/secret.txt",
        b"/rooms/..", b"/rooms/%2e%2e%2f_private%2fsecret.txt", b"/%ff", b"/%c0%ae%c0%ae/page", b"/%252e%252e/page",
        b"///", b"//evil.example/%2e%2e", b"/folder//", b"/[room]", b"/file:///etc/passwd", b"/C:/x",
        b"/__pycache__/loop.cpython-311.pyc", b"*", b"http:///etc/passwd", b"/" + b"a/" * 2000, b"/" + b"a" * 5000,
    ],
)  # fmt: skip
def test_no_path_leads_out_or_to_what_is_private(attack: Attack, target: bytes) -> None:
    answer = raw_get(attack().port, target)
    assert answer.status in (400, 404, 405, 414), answer
    assert b"secret" not in answer.body
    assert b"class Controller" not in answer.body


@pytest.mark.parametrize("target", [b"/folder", b"/folder?x=//evil.example", b"//folder", b"/%2ffolder", b"/\\folder"])
def test_a_redirect_stays_on_the_site(attack: Attack, target: bytes) -> None:
    answer = raw_get(attack().port, target)
    location = answer.headers.get("location", "/")
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


@pytest.mark.parametrize(
    "value", [b"%0d%0aX-Injected:%20y", b"%0aX-Injected:%20y", b"%0dX-Injected:y", b"/%00", b"%E2%80%A8"]
)
def test_no_header_is_injected_through_a_redirect(
    attack: Attack, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = raw_get(attack().port, b"/to?url=" + value)
    assert answer.status in (302, 500)
    assert "x-injected" not in answer.headers
    caplog.clear()  # a script that redirects to anything is to blame for its 500


@pytest.mark.parametrize("protocol", ["a\r\nX-Injected: y", "a, b\tc", 'a"b', "a b", "\x00", "é", "a,,b", ","])
def test_no_header_is_injected_through_a_subprotocol(attack: Attack, protocol: str) -> None:
    attacked = attack()
    with RawClient(attacked.port, upgrade=False) as client:
        client.send(upgrade_request("/chosen", (f"Sec-WebSocket-Protocol: {protocol}",)))
        client.read_head()
        assert "\r\nX-Injected" not in client.head
        assert client.status in (101, 400)
        if client.status == 101:
            assert protocol.split(",")[0].split("\r\n")[0] in client.head


def test_a_client_forges_no_line_of_the_log(attack: Attack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    attacked = attack()
    for target in (
        b"/\x1b[2J",
        b"/a\rb",
        b"/\x9b",
        b"/\x85x",
        b"/%0aINFO%20forged",
        b"/rooms/%C2%9B2J",
        b"/rooms/%E2%80%A8x",
    ):
        with suppress(AssertionError, IndexError, ValueError):
            raw_get(attacked.port, target)
    for record in caplog.records:
        line = record.getMessage()
        assert not any(ord(character) < 32 or 126 < ord(character) < 160 for character in line), repr(line)


@pytest.mark.parametrize("trusted", ["", "192.0.2.0/24"])
def test_forwarded_headers_of_strangers_do_not_count(attack: Attack, trusted: str) -> None:
    attacked = attack(trusted_proxy=trusted)
    headers = (
        b"X-Forwarded-For: 6.6.6.6", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil.example",
        b"X_Forwarded_For: 6.6.6.6", b"Forwarded: for=6.6.6.6;proto=https",
    )  # fmt: skip
    assert raw_get(attacked.port, b"/client", *headers).body == b"127.0.0.1 http localhost"


ODD_ORIGINS = [
    "null", "", "http://evil.example", "http://localhost.evil.example", "http://evil.example#localhost",
    "http://localhost.",
    "http://localhost:81", "https://localhost", "ws://localhost", "http://user@localhost",
    "http://localhost@evil.example",
    "http://localhost:99999", "http://localhost:x", "http://[::1]", "http://[::1", "http://127.0.0.1",
    "http://localhost/x",
    "http://localhost, http://evil.example", "localhost", "//localhost", "http://", "file://", "http://loca\tlhost",
    "http://evil.example\\@localhost", "http://\xe9", "data:,x", "http://LOCALHOST.",
]  # fmt: skip


def upgrade_status(attacked: Attacked, *headers: str) -> int:
    with RawClient(attacked.port, upgrade=False) as client:
        client.send(upgrade_request("/idle", headers))
        client.read_head()
        return client.status


def test_pages_of_other_origins_are_refused(attack: Attack) -> None:
    attacked = attack()
    passed = [origin for origin in ODD_ORIGINS if upgrade_status(attacked, f"Origin: {origin}") != 403]
    assert not passed


def test_forwarded_headers_do_not_make_an_origin_the_own(attack: Attack) -> None:
    attacked = attack()
    assert upgrade_status(attacked, "Origin: https://evil.example", "X-Forwarded-Host: evil.example",
                          "X-Forwarded-Proto: https") == 403  # fmt: skip


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost", "http://localhost"), ("localhost", "HTTP://LOCALHOST"), ("localhost:80", "http://localhost"),
        ("localhost:8000", "http://localhost:8000"), ("[::1]:8000", "http://[::1]:8000"), ("LocalHost", "http://localhost"),
    ],
)  # fmt: skip
def test_the_own_page_passes_however_its_origin_is_written(attack: Attack, host: str, origin: str) -> None:
    assert upgrade_status(attack(), f"Host: {host}", f"Origin: {origin}") == 101
