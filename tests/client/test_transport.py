"""How a connection is opened, what an open one can do, and what its faults become."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from krait_ws.client import (
    AuthError,
    ClientError,
    ConnectionBusyError,
    ConnectionClosedError,
    ConnectionUnavailableError,
    Link,
    Transport,
)
from krait_ws.errors import KraitError
from tests.client.proxy import Proxy
from tests.client.servers import PROTOCOL, is_read, websockets_serve
from tests.helpers import Task, until

SOON = 20.0
"""Seconds; what should come at once has not come by then. The machine may be busy."""

QUICK = 9.0
"""Seconds; what has a deadline of its own took less. The usual deadlines are ten seconds and more."""


@contextlib.contextmanager
def linked(port: int, path: str = "/talk", **options: Any) -> Iterator[Link]:
    link = transport(port, path, **options).open()
    try:
        yield link
    finally:
        link.close()


def transport(port: int, path: str = "/talk", **options: Any) -> Transport:
    return Transport(f"ws://127.0.0.1:{port}{path}", **{"proxy": None, "close_timeout": 1.0, **options})


def fill(link: Link) -> None:
    """Sends until it hurts."""
    while True:
        link.send(bytes(1 << 20))


class Token:
    """Credentials that a test looks into."""

    def __init__(self, *values: str) -> None:
        self.values = list(values)
        self.refreshed = 0

    def headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.values[0]}"}

    def refresh(self) -> bool:
        self.refreshed += 1
        if len(self.values) > 1:
            del self.values[0]
            return True
        return False


# ---- in order


@pytest.mark.parametrize("compression", [True, False])
def test_messages_go_there_and_back(server: int, compression: bool) -> None:
    with linked(server, compression=compression) as link:
        for message in ("hello", "", b"", b"\x00\xff", "ä€😀", b"x" * 900_000, "y" * 900_000):
            link.send(message)
            assert link.recv(SOON) == message
        link.send(bytearray(b"array"))
        link.send(memoryview(b"view"))
        assert [link.recv(SOON), link.recv(SOON)] == [b"array", b"view"]


def test_the_order_is_kept(server: int) -> None:
    with linked(server) as link:
        link.send("parts 500")
        assert [link.recv(SOON) for _ in range(501)] == [*(f"part {n}" for n in range(1, 501)), "end"]


def test_the_server_chooses_the_subprotocol(server: int) -> None:
    with linked(server, subprotocols=["talk.v3", PROTOCOL]) as link:
        assert link.subprotocol == PROTOCOL
    with linked(server) as link:
        assert link.subprotocol is None


def test_a_ping_waits_for_its_pong(server: int) -> None:
    with linked(server, ping_interval=None) as link:
        before = time.monotonic()
        assert 0 < link.ping(SOON) < SOON
        assert link.last_frame_at >= before


def test_the_close_of_the_server_is_told(server: int) -> None:
    with linked(server) as link:
        link.send("last words")
        link.send("close 4005 enough")
        assert link.recv(SOON) == "last words"
        for call in (lambda: link.recv(SOON), lambda: link.send("more"), lambda: link.ping(SOON)):
            with pytest.raises(ConnectionClosedError) as closed:
                call()
            assert (closed.value.code, closed.value.reason) == (4005, "enough")
        assert not link.is_open


def test_our_close_is_told_to_the_server_and_wakes_the_reader() -> None:
    codes: list[Any] = []

    def note(connection: Any) -> None:
        with contextlib.suppress(Exception):
            connection.recv()
        codes.append((connection.close_code, connection.close_reason))

    with websockets_serve(note) as port:
        link = transport(port).open()
        reader = Task(link.recv).until_blocked()
        link.close(3001, "going")
        with pytest.raises(ConnectionClosedError) as closed:
            reader.result()
        assert closed.value.code == 3001
        link.close()
        until(lambda: codes, "the server saw it")  # it may be late; the end of the server would come first then
    assert codes == [(3001, "going")]


def test_what_came_before_the_end_can_still_be_received(server: int) -> None:
    with linked(server) as link:
        link.send("parts 3")
        link.send("close 1000 done")
        until(lambda: not link.is_open, "the close came")
        assert [link.recv(SOON) for _ in range(4)] == ["part 1", "part 2", "part 3", "end"]
        with pytest.raises(ConnectionClosedError):
            link.recv(SOON)


def test_a_close_is_quick_although_nobody_reads_what_came(talker: int) -> None:
    link = transport(talker, close_timeout=60).open()
    link.send("parts 3000")
    assert link.recv(SOON) == "part 1"
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < SOON


def test_a_receive_has_a_deadline(talker: int) -> None:
    with linked(talker) as link:
        with pytest.raises(TimeoutError, match=r"no message came within 0\.05 s"):
            link.recv(0.05)
        with pytest.raises(TimeoutError):
            link.recv(0)
        link.send("still there")
        assert link.recv(SOON) == "still there"


def test_there_is_one_reader(talker: int) -> None:
    with linked(talker) as link:
        first = Task(lambda: link.recv(SOON))
        until(lambda: is_read(link), "the first reads")
        with pytest.raises(ConnectionBusyError):
            link.recv(0)
        link.send("for the first")
        assert first.result() == "for the first"


@pytest.mark.parametrize("message", [None, 1, ["a"], {"a": 1}, iter(["a"])])
def test_a_message_is_text_or_bytes(talker: int, message: Any) -> None:
    with linked(talker) as link, pytest.raises(TypeError, match="str or bytes-like"):
        link.send(message)


@pytest.mark.parametrize(
    ("code", "reason"), [(999, ""), (1005, ""), (1006, ""), (2999, ""), (5000, ""), (1000, "é" * 62)]
)
def test_a_close_that_cannot_be_sent_is_a_mistake(talker: int, code: int, reason: str) -> None:
    with linked(talker) as link:
        with pytest.raises(ValueError):
            link.close(code, reason)
        assert link.is_open


# ---- refusals


def test_a_refusal_is_an_auth_error(server: int) -> None:
    with pytest.raises(AuthError, match="answered 403: no") as refused:
        transport(server, "/closed").open()
    assert refused.value.status == 403
    with pytest.raises(AuthError, match=r"answered 401: who are you\?") as refused:
        transport(server, "/private").open()
    assert refused.value.status == 401


def test_another_answer_makes_it_unavailable(talker: int) -> None:
    with pytest.raises(ConnectionUnavailableError, match="answered 404") as refused:
        transport(talker, "/nowhere").open()
    assert (refused.value.status, refused.value.retry_after) == (404, None)


def test_credentials_are_sent(server: int) -> None:
    with linked(server, "/private", auth=Token("good")) as link:
        link.send("in")
        assert link.recv(SOON) == "in"
    with linked(server, "/private", headers={"Authorization": "Bearer good"}) as link:
        assert link.is_open


def test_credentials_are_refreshed_once_after_a_401(server: int) -> None:
    token = Token("old", "good")
    with linked(server, "/private", auth=token):
        assert token.refreshed == 1
    token = Token("old", "older", "good")
    with pytest.raises(AuthError) as refused:
        transport(server, "/private", auth=token).open()
    assert (refused.value.status, token.refreshed) == (401, 1)


def test_no_other_credentials_means_no_second_try(proxy: Proxy) -> None:
    token = Token("old")
    with pytest.raises(AuthError):
        transport(proxy.port, "/private", auth=token).open()
    assert (token.refreshed, proxy.accepted) == (1, 1)


def test_a_403_is_final(proxy: Proxy) -> None:
    token = Token("old", "good")
    with pytest.raises(AuthError):
        transport(proxy.port, "/closed", auth=token).open()
    assert (token.refreshed, proxy.accepted) == (0, 1)


def test_credentials_that_raise_or_hang_are_told(talker: int) -> None:
    class Broken(Token):
        def headers(self) -> Mapping[str, str]:
            raise OSError("the login server is away")

    with pytest.raises(ConnectionUnavailableError, match="the login server is away"):
        transport(talker, auth=Broken()).open()

    released = threading.Event()

    class Hanging(Token):
        def headers(self) -> Mapping[str, str]:
            released.wait(SOON)
            return {}

    began = time.monotonic()
    with pytest.raises(ConnectionUnavailableError, match=r"not open after 0\.2 s"):
        transport(talker, auth=Hanging(), open_timeout=0.2).open()
    assert time.monotonic() - began < QUICK
    released.set()


def test_503_then_fine(proxy: Proxy) -> None:
    proxy.answer("503 Service Unavailable", headers="Retry-After: 7\r\n")
    with pytest.raises(ConnectionUnavailableError, match="answered 503") as refused:
        transport(proxy.port).open()
    assert (refused.value.status, refused.value.retry_after) == (503, 7.0)
    with linked(proxy.port) as link:
        assert link.is_open


def test_a_redirect_takes_no_credentials_anywhere(proxy: Proxy, talker: int) -> None:
    """The package would follow it, and strip only the headers that usually carry credentials."""
    with Proxy(talker) as elsewhere:
        there = f"127.0.0.1:{elsewhere.port}/talk"
        for location in (
            f"ws://{there}?q=S3CRET",
            f"//{there}",
            f"http://u:S3CRET@{there}",
            "#S3CRET",
            "?S3CRET",
            "//[",
        ):
            proxy.answer("302 Found", headers=f"Location: {location}\r\n")
            with pytest.raises(ConnectionUnavailableError, match="answered 302") as refused:
                transport(proxy.port, headers={"X-Key": "S3CRET"}).open()
            assert refused.value.status == 302
            assert "S3CRET" not in str(refused.value)
            assert ("points to" in str(refused.value)) is (location != "//[")
        assert elsewhere.accepted == 0


def test_the_words_of_a_server_stay_in_one_line() -> None:
    with pytest.raises(ConnectionClosedError, match=r"4000 all well ERROR not at all$"):
        raise ConnectionClosedError(4000, "all well\r\nERROR not\x1b at all")


# ---- faults on the way


def test_refused(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionUnavailableError, match="refused"):
        transport(proxy.port).open()
    proxy.accept()
    with linked(proxy.port) as link:
        assert link.is_open


def test_an_unknown_name() -> None:
    with pytest.raises(ConnectionUnavailableError, match=r"nowhere\.invalid"):
        Transport("ws://nowhere.invalid/", proxy=None).open()


def test_an_unanswered_upgrade_has_a_deadline(proxy: Proxy) -> None:
    proxy.stall()
    began = time.monotonic()
    with pytest.raises(ConnectionUnavailableError, match=r"not open after 0\.2 s"):
        transport(proxy.port, open_timeout=0.2).open()
    assert time.monotonic() - began < QUICK


def test_a_name_server_that_hangs_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: released.wait(SOON) and [])
    began = time.monotonic()
    with pytest.raises(ConnectionUnavailableError, match=r"not open after 0\.2 s"):
        Transport("ws://slow.invalid/", proxy=None, open_timeout=0.2).open()
    assert time.monotonic() - began < QUICK
    released.set()


def test_an_upgrade_byte_by_byte_has_one_deadline(proxy: Proxy) -> None:
    proxy.slow(1, 0.05)
    began = time.monotonic()
    with pytest.raises(ConnectionUnavailableError, match=r"not open after 0\.3 s"):
        transport(proxy.port, open_timeout=0.3).open()
    assert time.monotonic() - began < QUICK


def test_an_upgrade_can_be_given_up(proxy: Proxy) -> None:
    proxy.stall()
    dial = transport(proxy.port, open_timeout=60).dial()
    waiter = Task(dial.wait).until_blocked()
    dial.give_up()
    with pytest.raises(ConnectionUnavailableError, match="given up"):
        waiter.result(SOON)
    dial.give_up()
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "krait-client-dial"], "it ended")


def test_a_dial_that_was_given_up_leaves_no_connection(proxy: Proxy) -> None:
    for pause in (0.0, 0.001, 0.003, 0.01):
        dial = transport(proxy.port).dial()
        time.sleep(pause)
        dial.give_up()
    until(lambda: proxy.open == 0, "every connection was cut")


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b"\x00" * 70_000]
)
def test_an_answer_that_is_none(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65536)
                with contextlib.suppress(OSError):
                    peer.sendall(answer)

        server = Task(take)
        with pytest.raises(ConnectionUnavailableError):
            transport(listener.getsockname()[1]).open()
        server.result()


@pytest.mark.parametrize("fault", ["cut", "reset"])
def test_a_cut_wakes_the_reader(proxy: Proxy, fault: str) -> None:
    with linked(proxy.port) as link:
        link.send("one")
        assert link.recv(SOON) == "one"
        reader = Task(link.recv).until_blocked()
        getattr(proxy, fault)()
        with pytest.raises(ConnectionClosedError) as closed:
            reader.result(SOON)
        assert closed.value.code == 1006
        assert closed.value.reason
        with pytest.raises(ConnectionClosedError):
            link.send("two")
        assert not link.is_open


@pytest.mark.parametrize("fault", ["stall", "half_open"])
def test_a_dead_link_is_noticed_by_pings(proxy: Proxy, fault: str) -> None:
    """The options count: sidekick-py ignored them; pyisyox never noticed."""
    with linked(proxy.port, ping_interval=0.1, ping_timeout=0.2, close_timeout=0.2) as link:
        reader = Task(link.recv)  # on a busy machine its pings may end it before the fault does
        getattr(proxy, fault)()
        began = time.monotonic()
        with pytest.raises(ConnectionClosedError, match="ping"):
            reader.result(SOON)
        assert time.monotonic() - began < QUICK


def test_without_pings_none_are_sent(proxy: Proxy) -> None:
    with linked(proxy.port, ping_interval=None) as link:
        proxy.half_open()
        with pytest.raises(TimeoutError):
            link.recv(0.5)
        with pytest.raises(TimeoutError, match=r"no pong came within 0\.1 s"):
            link.ping(0.1)
        assert link.is_open


def test_a_send_to_a_server_that_does_not_read_has_a_deadline(proxy: Proxy) -> None:
    with linked(proxy.port, send_timeout=0.3, ping_interval=None) as link:
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(ConnectionClosedError) as closed:
            fill(link)
        assert closed.value.code == 1006
        assert time.monotonic() - began < QUICK


def test_an_abort_wakes_a_send_that_is_stuck(proxy: Proxy) -> None:
    link = transport(proxy.port, send_timeout=60, ping_interval=None).open()
    proxy.stall()

    sender = Task(lambda: fill(link)).until_blocked()
    began = time.monotonic()
    link.abort()
    with pytest.raises(ConnectionClosedError):
        sender.result(SOON)
    assert time.monotonic() - began < QUICK
    link.abort()
    link.close()


def test_a_close_has_its_deadline_although_a_send_is_stuck(proxy: Proxy) -> None:
    link = transport(proxy.port, send_timeout=60, ping_interval=None, close_timeout=0.3).open()
    proxy.stall()
    sender = Task(lambda: fill(link)).until_blocked()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no pong"):
        link.ping(0.2)
    link.close()
    assert time.monotonic() - began < QUICK
    with pytest.raises(ConnectionClosedError):
        sender.result(SOON)


def test_what_was_under_way_at_the_end_is_no_error(
    leaves_nothing: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package logged a traceback, which a program without logging sees on its standard error."""
    monkeypatch.setattr(logging.getLogger("websockets.client"), "disabled", False)

    def flood(connection: Any) -> None:
        while True:
            connection.send(b"x" * 20_000)

    with websockets_serve(flood) as port:
        for number in range(30):
            link = transport(port, compression=False).open()
            link.recv(SOON)
            reader = Task(lambda link=link: [link.recv(SOON) for _ in range(1_000_000)])
            time.sleep(0.002)
            (link.abort if number % 2 else link.close)()
            with pytest.raises(ConnectionClosedError):
                reader.result()
        link._websocket.protocol.receive_data(b"\x82\x00")
        link._websocket.process_event(Frame(Opcode.BINARY, b""))
    assert "internal error" not in caplog.text


def test_a_close_that_is_not_answered_has_a_deadline(proxy: Proxy) -> None:
    link = transport(proxy.port, close_timeout=0.3).open()
    proxy.half_open()
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < QUICK
    assert not link.is_open


@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_a_byte_at_a_time(proxy: Proxy, chunk: int) -> None:
    proxy.slow(chunk)
    with linked(proxy.port, compression=False) as link:
        for message in ("", "ä€😀", b"\x00" * 200, "parts 3"):
            link.send(message)
        assert [link.recv(SOON) for _ in range(7)] == ["", "ä€😀", b"\x00" * 200, "part 1", "part 2", "part 3", "end"]


def test_a_message_that_is_too_long_ends_the_connection(talker: int) -> None:
    with linked(talker, max_message_size=1000) as link:
        link.send(b"x" * 1000)
        assert link.recv(SOON) == b"x" * 1000
        link.send(b"x" * 1001)
        with pytest.raises(ConnectionClosedError) as closed:
            link.recv(SOON)
        assert closed.value.code == 1009


# ---- mistakes


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://127.0.0.1/", {}),
        ("127.0.0.1", {}),
        ("ws:///path", {}),
        ("ws://a/#fragment", {}),
        ("ws://a/", {"ssl": ssl.create_default_context()}),
        ("ws://a/", {"open_timeout": 0}),
        ("ws://a/", {"send_timeout": -1}),
        ("ws://a/", {"close_timeout": 0}),
        ("ws://a/", {"ping_interval": 0}),
        ("ws://a/", {"ping_timeout": -0.1}),
        ("ws://a/", {"max_message_size": 0}),
        ("ws://a/", {"headers": {"A": "b\r\nC: d"}}),
    ],
)
def test_what_cannot_work_is_told_at_once(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Transport(url, **options)


def test_no_secret_is_shown(talker: int) -> None:
    secret = Transport(f"ws://user:S3CRET@127.0.0.1:{talker}/closed?token=S3CRET", headers={"X": "S3CRET"}, proxy=None)
    with pytest.raises(ClientError) as refused:
        secret.open()
    assert "S3CRET" not in repr(secret) + str(secret) + repr(refused.value)
    with pytest.raises(ValueError) as wrong:
        Transport("http://user:S3CRET@127.0.0.1/?token=S3CRET")
    assert "S3CRET" not in str(wrong.value)


def test_no_secret_of_a_proxy_is_shown(talker: int) -> None:
    for proxy in ("ftp://user:S3CRET@127.0.0.1/", "http://user:S3CRET@127.0.0.1:1/", "http://user:S3CRET@/"):
        with pytest.raises(ConnectionUnavailableError) as refused:
            transport(talker, proxy=proxy).open()
        assert "S3CRET" not in str(refused.value)


def test_credentials_cannot_smuggle_a_header(talker: int) -> None:
    with pytest.raises(ConnectionUnavailableError, match="line break"):
        transport(talker, auth=Token("good\r\nX-Admin: yes")).open()


def test_one_root() -> None:
    assert issubclass(ClientError, KraitError)
