"""TLS, with the clients that people use and with peers that no polite client is."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websocket
from websockets.asyncio.client import connect as connect_asyncio
from websockets.sync.client import connect

from krait_ws.config import Config
from krait_ws.errors import ConfigError
from krait_ws.network.server import Server
from krait_ws.network.tls import TlsSocket, new_context
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    FLAVOURS,
    PATIENCE,
    POLLERS,
    TEXT,
    HandlerEcho,
    close_frame,
    eventually,
    frame,
    upgrade_request,
)
from tests.operations.conftest import Certificate, make_certificate

Serve = Callable[..., SiteServer]

SIZES = [0, 1, 125, 16_000, 16_384, 65_535, 65_536, 300_000, 3_000_000]


def wss(site: SiteServer) -> str:
    return site.url.replace("https", "wss", 1)


def tls_client(site: SiteServer, certificate: Certificate, **options: Any) -> ssl.SSLSocket:
    """A raw connection inside TLS."""
    sock = socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE)
    return certificate.context().wrap_socket(sock, server_hostname="localhost", **options)


def shake_hands(client: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, sock: socket.socket) -> None:
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
        else:
            sock.sendall(outgoing.read())
            return


def read_head(client: ssl.SSLSocket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(65536)
        assert data, head
        head += data
    return head


@pytest.fixture(params=[(flavour, poller) for flavour in FLAVOURS for poller in POLLERS], ids="-".join)
def site(request: Any, serve: Serve, certificate: Certificate) -> SiteServer:
    flavour, poller = request.param
    runs_on, controller = FLAVOURS[flavour]
    large = {"max_message_size": 4 << 20, "max_in_bytes": 8 << 20, "max_out_bytes": 8 << 20}
    return serve(controller, runs_on=runs_on, poller=poller, **large, **certificate.settings)


def test_the_websockets_package(site: SiteServer, certificate: Certificate) -> None:
    assert site.url.startswith("https://")
    with connect(wss(site), ssl=certificate.context(), proxy=None, max_size=None) as client:
        for size in SIZES:
            message = random.randbytes(size)
            client.send(message)
            assert client.recv(PATIENCE) == message
        for number in range(500):
            client.send(str(number))
        assert [client.recv(PATIENCE) for _ in range(500)] == [str(number) for number in range(500)]
    assert client.close_code == 1000


def test_the_websockets_package_on_asyncio(site: SiteServer, certificate: Certificate) -> None:
    async def talk() -> None:
        async with connect_asyncio(wss(site), ssl=certificate.context(), proxy=None, max_size=None) as client:
            for size in SIZES:
                message = random.randbytes(size)
                await client.send(message)
                assert await client.recv() == message
            await (await client.ping())

    asyncio.run(asyncio.wait_for(talk(), 2 * PATIENCE))


def test_aiohttp(serve: Serve, certificate: Certificate) -> None:
    site = serve(HandlerEcho, **certificate.settings)

    async def talk() -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(site.url, ssl=certificate.context(), max_msg_size=0) as client,
        ):
            for size in SIZES[:-1]:
                message = random.randbytes(size)
                await client.send_bytes(message)
                assert await client.receive_bytes() == message
        while site.server.sessions:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.25)  # as its documentation asks: its TLS transports are closed a moment later

    asyncio.run(asyncio.wait_for(talk(), 2 * PATIENCE))


def test_websocket_client(serve: Serve, certificate: Certificate) -> None:
    site = serve(HandlerEcho, **certificate.settings)
    client = websocket.create_connection(wss(site), sslopt={"ca_certs": str(certificate.cert)}, timeout=PATIENCE)
    try:
        client.send("hello")
        assert client.recv() == "hello"
    finally:
        client.close()


def test_pages_and_files(serve_files: Serve, certificate: Certificate) -> None:
    large = random.randbytes(3_000_000)
    script = "import krait_ws\ndef http(request):\n    return krait_ws.Response(request.url)\n"
    site = serve_files({"index.html": "home", "large.bin": large, "where.py": script}, **certificate.settings)

    def get(path: str) -> bytes:
        with urllib.request.urlopen(site.url + path, context=certificate.context(), timeout=PATIENCE) as answer:
            body: bytes = answer.read()
            return body

    assert get("/") == b"home"
    assert get("/large.bin") == large
    assert get("/where") == f"{site.url}/where".encode()


def test_the_own_origin_is_https(serve: Serve, certificate: Certificate) -> None:
    schemes: list[str] = []

    def answer(request: Any) -> WebsocketsCtrlBase:
        schemes.append(request.http.scheme)
        return HandlerEcho()

    site = serve(answer, **certificate.settings)
    with connect(wss(site), ssl=certificate.context(), proxy=None, origin=site.url):  # type: ignore[arg-type]
        assert schemes in (["https"], ["wss"])
    other: Any = site.url.replace("https", "http")
    with pytest.raises(Exception, match="403"):
        connect(wss(site), ssl=certificate.context(), proxy=None, origin=other)


@pytest.mark.browser
def test_chromium(serve_files: Serve, certificate: Certificate) -> None:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    page_text = "<script>const s = new WebSocket(location.href.replace('https', 'wss') + 'echo');"
    page_text += "s.onopen = () => s.send('from the page'); s.onmessage = e => document.title = e.data</script>"
    echo = "from tests.integration.support import HandlerEcho\nfrom krait_ws.websockets import WebsocketsResponse\n"
    echo += "def websocket(request):\n    return WebsocketsResponse(HandlerEcho())\n"
    site = serve_files({"index.html": page_text, "echo.py": echo}, **certificate.settings)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.goto(site.url)
        page.wait_for_function("document.title == 'from the page'", timeout=PATIENCE * 1000)
        browser.close()


@pytest.mark.parametrize(
    ("flag", "passes"), [("-tls1", False), ("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)]
)
def test_versions(serve: Serve, certificate: Certificate, flag: str, passes: bool) -> None:
    site = serve(HandlerEcho, **certificate.settings)
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{site.port}", flag, "-cipher", "ALL:@SECLEVEL=0"],
        input=b"",
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (b"Cipher is (NONE)" not in done.stdout) is passes, done.stdout
    assert (done.returncode == 0) is passes


def test_renegotiation_is_refused(serve: Serve, certificate: Certificate) -> None:
    site = serve(HandlerEcho, **certificate.settings)
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{site.port}", "-tls1_2"],
        input=b"R\n",
        capture_output=True,
        timeout=PATIENCE,
    )
    assert b"no renegotiation" in done.stderr, done.stderr


# ---- peers that are late, slow or wrong


def test_a_client_that_never_shakes_hands_is_cut_and_stalls_nobody(serve: Serve, certificate: Certificate) -> None:
    def connect_silent(site: SiteServer) -> list[socket.socket]:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port), PATIENCE)) for _ in range(20)]
        for number, sock in enumerate(silent):
            with suppress(OSError):  # on a busy machine it may have been cut already
                sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00"[: number % 8])  # the beginning of a ClientHello
        return silent

    def is_cut(sock: socket.socket) -> bool:
        try:
            return sock.recv(100) == b""
        except ConnectionResetError:  # it sent the rest after that
            return True

    with ExitStack() as stack:
        # Two servers: a client that is to be served must not have to hurry, on a busy machine.
        patient = serve(HandlerEcho, handshake_timeout=60, **certificate.settings)
        connect_silent(patient)
        eventually(lambda: len(patient.server.greeting) == 20, what="the silent are accepted")
        with connect(wss(patient), ssl=certificate.context(), proxy=None) as client:
            client.send("hello")
            assert client.recv(PATIENCE) == "hello"
        assert len(patient.server.greeting) == 20
        strict = serve(HandlerEcho, handshake_timeout=0.5, **certificate.settings)
        assert all(map(is_cut, connect_silent(strict)))


def test_a_head_that_never_comes_is_cut(serve: Serve, certificate: Certificate) -> None:
    site = serve(HandlerEcho, handshake_timeout=0.3, **certificate.settings)

    def is_told() -> bool:
        """Not when this machine is so busy that even the TLS handshake, or what follows it, comes too late."""
        got = b""
        with suppress(OSError), tls_client(site, certificate) as client:
            client.sendall(b"GET / HT")
            while data := client.recv(4096):
                got += data
        return b" 408 " in got

    eventually(is_told, what="the answer")


def test_plain_http_is_told(serve: Serve, certificate: Certificate) -> None:
    site = serve(HandlerEcho, **certificate.settings)
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"https" in client.recv(4096)


def test_garbage_inside_a_connection_ends_that_one_only(serve: Serve, certificate: Certificate) -> None:
    site = serve(HandlerEcho, **certificate.settings)
    with connect(wss(site), ssl=certificate.context(), proxy=None) as other, tls_client(site, certificate) as client:
        client.sendall(upgrade_request())
        assert b" 101 " in read_head(client)
        sock = socket.socket(fileno=client.detach())
        with sock:
            sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            sock.settimeout(PATIENCE)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionResetError:
                pass
        other.send("still here")
        assert other.recv(PATIENCE) == "still here"
        eventually(lambda: len(site.server.sessions) == 1)


@pytest.mark.parametrize("poller", POLLERS)
def test_frames_behind_the_handshake_in_small_records(serve: Serve, certificate: Certificate, poller: str) -> None:
    """What is decrypted already, or waits in the engine, at the hand-over is not lost."""
    site = serve(HandlerEcho, poller=poller, **certificate.settings)
    with tls_client(site, certificate) as client:
        client.sendall(upgrade_request() + frame(TEXT, "a" * 20_000))
        for number in range(50):
            client.sendall(frame(TEXT, str(number)))
        answers = b"\x81\x7e" + (20_000).to_bytes(2, "big") + b"a" * 20_000
        answers += b"".join(b"\x81" + bytes([len(str(n))]) + str(n).encode() for n in range(50))
        got = b""
        while len(got.partition(b"\r\n\r\n")[2]) < len(answers):
            data = client.recv(65536)
            assert data
            got += data
        assert got.partition(b"\r\n\r\n")[2] == answers


@pytest.mark.parametrize("poller", POLLERS)
def test_a_close_notify_without_a_fin_ends_the_connection(serve: Serve, certificate: Certificate, poller: str) -> None:
    site = serve(HandlerEcho, poller=poller, **certificate.settings)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificate.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", site.port), timeout=PATIENCE) as sock:
        shake_hands(client, incoming, outgoing, sock)
        client.write(upgrade_request())
        sock.sendall(outgoing.read())
        eventually(lambda: len(site.server.sessions) == 1)
        client.write(frame(TEXT, "last"))
        with pytest.raises(ssl.SSLError):
            client.unwrap()  # the server's own close_notify has not come
        sock.sendall(outgoing.read())  # the message and the end in one packet, and TCP stays open
        eventually(lambda: not site.server.sessions)


def test_the_server_says_close_notify(serve: Serve, certificate: Certificate) -> None:
    site = serve(HandlerEcho, **certificate.settings)
    with tls_client(site, certificate, suppress_ragged_eofs=False) as client:
        client.sendall(upgrade_request() + close_frame(1000))
        got = read_head(client)
        while not got.endswith(b"\x88\x02\x03\xe8"):
            data = client.recv(100)
            assert data, got
            got += data
        assert client.recv(100) == b""  # an end without close_notify would raise
    with tls_client(site, certificate, suppress_ragged_eofs=False) as client:
        client.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while client.recv(4096):
            pass


def test_a_slow_reader_gets_everything(serve: Serve, certificate: Certificate) -> None:
    """The socket takes parts of records: what is sent again must go on where it stopped."""
    message = random.randbytes(3_000_000)

    class Pusher(WebsocketsCtrlBase):
        max_out_bytes = 64 << 20

        def on_thread_start(self) -> None:
            for number in range(4):
                self.push_out_message(bytes([number]) + message)
            self.wait_stop()

    site = serve(Pusher, **certificate.settings)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", site.port))
    with certificate.context().wrap_socket(sock, server_hostname="localhost") as client:
        client.sendall(upgrade_request())
        time.sleep(0.2)  # until the server's side is full
        got = bytearray(read_head(client).partition(b"\r\n\r\n")[2])
        one = 10 + 1 + len(message)
        while len(got) < 4 * one:
            data = client.recv(65536)
            assert data
            got += data
        for number in range(4):
            head = b"\x82\x7f" + (1 + len(message)).to_bytes(8, "big") + bytes([number])
            assert got[number * one : (number + 1) * one] == head + message


def test_many_clients_at_once(serve: Serve, certificate: Certificate) -> None:
    """On asyncio: before Python 3.13 two threads must not read and write one SSL socket."""
    site = serve(HandlerEcho, **certificate.settings)
    context = certificate.context()

    async def talk(seed: int) -> None:
        chance = random.Random(seed)
        async with connect_asyncio(wss(site), ssl=context, proxy=None, compression=None) as client:
            for _ in range(30):
                message = chance.randbytes(chance.choice((1, 100, 5_000, 40_000, 200_000)))
                await client.send(message)
                assert await client.recv() == message

    async def talk_all() -> None:
        await asyncio.gather(*map(talk, range(20)))

    asyncio.run(asyncio.wait_for(talk_all(), 2 * PATIENCE))


# ---- the sending side alone: a socket that takes what it likes


class Grudging:
    """Takes a random number of bytes, or none."""

    def __init__(self, sock: socket.socket, seed: int) -> None:
        self._sock = sock
        self._chance = random.Random(seed)
        self.taken = bytearray()

    def send(self, data: Any) -> int:
        if self._chance.random() < 0.3:
            raise BlockingIOError
        size = self._chance.randint(1, max(1, len(data)))
        self.taken += data[:size]
        return min(size, len(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("seed", range(5))
def test_send_tells_all_only_when_the_socket_has_all(certificate: Certificate, seed: int) -> None:
    context = new_context(Config(**certificate.settings))  # type: ignore[arg-type]
    assert context is not None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tls = TlsSocket(ours, context)
        shaking = threading.Thread(target=tls.do_handshake)
        shaking.start()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = certificate.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        shake_hands(client, incoming, outgoing, theirs)
        shaking.join(PATIENCE)
        theirs.settimeout(PATIENCE)
        grudging = Grudging(ours, seed)
        tls._socket = grudging
        chance = random.Random(seed)
        sent = b""
        decrypted = b""
        for _ in range(20):
            chunk = chance.randbytes(chance.choice((1, 2, 100, 30_000, 40_000, 600_000)))
            sent += chunk
            rest = memoryview(chunk)
            while rest:
                try:
                    rest = rest[tls.send(rest) :]
                except BlockingIOError:
                    continue
            incoming.write(grudging.taken)
            grudging.taken.clear()
            while len(decrypted) < len(sent):
                decrypted += client.read(65536)
            assert decrypted == sent
            assert not incoming.pending


# ---- files


def test_the_key_may_be_in_the_certificates_file(serve: Serve, certificate: Certificate, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.cert.read_bytes() + certificate.key.read_bytes())
    site = serve(HandlerEcho, tls_cert=str(both))
    with connect(wss(site), ssl=certificate.context(), proxy=None) as client:
        client.send("hello")
        assert client.recv(PATIENCE) == "hello"


def test_files_that_cannot_be_used(certificates: tuple[Certificate, Certificate], tmp_path: Path) -> None:
    first, second = certificates
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    locked = make_certificate(tmp_path, "locked", "-passout", "pass:secret")
    for settings, named in [
        ({"tls_cert": str(tmp_path / "none.pem")}, "none.pem: No such file"),
        ({"tls_cert": str(first.cert), "tls_key": str(tmp_path / "none.pem")}, "tls_key: cannot read .*none.pem"),
        ({"tls_cert": str(tmp_path)}, "Is a directory"),
        ({"tls_key": str(first.key)}, "set tls_cert too"),
        ({"tls_cert": str(first.cert)}, "no certificate in .* with its key"),
        ({"tls_cert": str(junk), "tls_key": str(first.key)}, "junk.pem"),
        ({"tls_cert": str(first.cert), "tls_key": str(junk)}, "junk.pem"),
        ({"tls_cert": str(first.cert), "tls_key": str(second.key)}, "does not belong to the certificate"),
        (locked.settings, "store it without one"),
    ]:
        with pytest.raises(ConfigError, match=named) as caught:
            new_context(Config(**settings))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_server_with_a_bad_certificate_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem"):
        Server(tmp_path, Config(port=0, tls_cert=str(tmp_path / "none.pem")))
