"""Peers that are slow, on purpose or not: bytes that drip, clients that read little, clients that say nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from krait_ws.testing import Client, Refused, SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    BINARY,
    PATIENCE,
    POLLERS,
    HandlerEcho,
    RawClient,
    eventually,
    frame,
    upgrade_request,
)

Serve = Callable[..., SiteServer]
C = TypeVar("C", Client, RawClient)


def in_time(seconds: float, connect: Callable[[], C]) -> C:
    """What ``connect`` gives, at last in less than ``seconds``: on a busy machine a client may take longer than it has
    for its handshake."""
    deadline = time.monotonic() + PATIENCE
    while True:
        started = time.monotonic()
        try:
            client = connect()
        except Refused:
            if time.monotonic() - started < seconds:
                raise
        else:
            if time.monotonic() - started < seconds:
                return client
            client.close()
        assert time.monotonic() < deadline, f"it never took less than {seconds:g} s"


def drip(client: RawClient, data: bytes, pause: float = 0.02) -> bytes:
    """Sends byte after byte until the server answers or ends the stream; returns all that it said."""
    client.sock.settimeout(pause)
    said = b""
    deadline = time.monotonic() + PATIENCE
    try:
        for n in range(len(data)):
            client.sock.send(data[n : n + 1])
            try:
                said = client.sock.recv(1 << 16)
                break
            except TimeoutError:
                assert time.monotonic() < deadline
        client.sock.settimeout(PATIENCE)
        while more := client.sock.recv(1 << 16):
            said += more
    except (ConnectionResetError, BrokenPipeError):
        pass
    return said


ENDLESS = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + b"x" * 10_000


@pytest.mark.parametrize(
    "data", [ENDLESS, b"GET /" + b"x" * 5000, upgrade_request()[:-4] + b"\r\nX: " + b"y" * 5000], ids=["a", "b", "c"]
)
def test_a_handshake_that_drips_is_ended(serve: Serve, data: bytes) -> None:
    site = serve(HandlerEcho, handshake_timeout=0.5)
    with in_time(0.5, lambda: site.connect("/")) as other:
        started = time.monotonic()
        with RawClient(site.port, upgrade=False) as client:
            said = drip(client, data)
        assert time.monotonic() - started >= 0.4
        assert said == b"" or said.startswith(b"HTTP/1.1 408 ")
        other.send("on")
        other.expect("on")


def test_a_client_that_says_nothing_is_ended(serve: Serve) -> None:
    site = serve(HandlerEcho, handshake_timeout=0.3)
    clients = [RawClient(site.port, upgrade=False) for _ in range(50)]
    try:
        for client in clients:
            said = b""
            while data := client.sock.recv(1000):
                said += data
            assert said == b"" or said.startswith(b"HTTP/1.1 408 ")
    finally:
        for client in clients:
            client.close()


def test_a_second_request_that_drips_is_ended(serve_files: Serve) -> None:
    site = serve_files({"page.html": "page"}, handshake_timeout=0.5)

    def ask() -> RawClient:
        client = RawClient(site.port, upgrade=False)
        client.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return client

    with in_time(0.5, ask) as client:
        assert client.read_answer().body == b"page"
        said = drip(client, ENDLESS)
        assert said == b"" or said.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_drips_is_ended(serve_files: Serve) -> None:
    """Also when the client never stops to drip, and announces more than anybody would wait for."""
    site = serve_files(
        {"post.py": "import krait_ws\ndef http(request):\n    return krait_ws.Response('done')\n"},
        handshake_timeout=0.5,
    )
    with RawClient(site.port, upgrade=False) as client:
        client.send(b"POST /post HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert drip(client, b"x" * 100_000).startswith(b"HTTP/1.1 408 ")


def test_a_handshake_that_drips_but_is_in_time_is_accepted(serve: Serve) -> None:
    site = serve(HandlerEcho)
    with RawClient(site.port, upgrade=False) as client:
        for byte in upgrade_request():
            client.send(bytes([byte]))
        client.read_head()
        assert client.status == 101
        client.send_frame(BINARY, b"on")
        client.expect(b"on")


@pytest.mark.parametrize("runs_on", ["thread", "greenlet"])
@pytest.mark.parametrize("poller", POLLERS)
def test_a_client_that_reads_little_by_little_gets_everything(serve: Serve, poller: str, runs_on: str) -> None:
    class Talks(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for number in range(200):
                assert self.push_out_message(number.to_bytes(2, "big") * 4000)

    site = serve(Talks, runs_on=runs_on, poller=poller, max_out_bytes=100_000)
    with RawClient(site.port, receive_buffer=4096) as client:
        received = bytearray(client.buffered())
        while len(received) < 200 * 8004:
            received += client.sock.recv(3001)
        for number in range(200):
            part = received[number * 8004 : (number + 1) * 8004]
            assert part == b"\x82\x7e" + (8000).to_bytes(2, "big") + number.to_bytes(2, "big") * 4000


@pytest.mark.parametrize("poller", POLLERS)
def test_a_client_that_never_reads_does_not_keep_our_close(serve: Serve, poller: str) -> None:
    """close_timeout is for the whole of the end: what was pushed, the close frame and its answer."""

    class Talks(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for _ in range(1000):
                self.push_out_message(bytes(16 * 1024))

    site = serve(Talks, poller=poller, close_timeout=0.5, max_out_messages=2000, max_out_bytes=64 << 20)
    with RawClient(site.port, receive_buffer=4096) as client:
        client.receive_frame()
        eventually(lambda: not site.server.sessions)


def test_others_are_served_while_one_client_floods(serve: Serve) -> None:
    class Sink(WebsocketsCtrlBase):
        def __init__(self) -> None:
            super().__init__(use_in_message_queue=False)

    site = serve({"sink": Sink, "echo": HandlerEcho})
    enough = threading.Event()

    def flood() -> None:
        message = frame(BINARY, bytes(100_000))
        with RawClient(site.port, "/sink") as client:
            while not enough.is_set():
                client.send(message)

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        with site.connect("/echo") as client:
            for number in range(200):
                client.send(str(number))
                client.expect(str(number))
    finally:
        enough.set()
        flooder.join()
