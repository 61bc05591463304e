"""Pings, the closing handshake both ways, and what is done about peers that break the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FLAVOURS,
    PING,
    POLLERS,
    PONG,
    TEXT,
    EventEcho,
    Gate,
    HandlerEcho,
    RawClient,
    close_frame,
    eventually,
    frame,
)

Serve = Callable[..., SiteServer]
EVERYWHERE = pytest.mark.parametrize(("flavour", "poller"), [(f, p) for f in FLAVOURS for p in POLLERS])


def remember(base: type[WebsocketsCtrlBase], controllers: list[Any]) -> type[WebsocketsCtrlBase]:
    """A class like ``base`` that notes its instances and counts their ``on_stop``."""

    class Remembered(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.stops: list[Any] = []
            controllers.append(self)

        def on_stop(self) -> None:
            self.stops.append((self.close_code, self.close_reason))
            super().on_stop()

    return Remembered


@EVERYWHERE
def test_ping_is_answered_with_its_payload(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    with RawClient(serve(controller, runs_on=runs_on, poller=poller).port) as client:
        for payload in (b"", b"now?", b"x" * 125):
            client.send_frame(PING, payload)
            pong = client.receive_frame()
            assert (pong.fin, pong.opcode, pong.payload) == (True, PONG, payload)
        client.send(frame(PING, b"a") + frame(PING, b"b"))
        answers = [client.receive_frame().payload]
        if answers == [b"a"]:  # only the most recent ping needs an answer (RFC 6455 section 5.5.3)
            answers.append(client.receive_frame().payload)
        assert answers[-1] == b"b"
        client.send_frame(TEXT, "on")
        client.expect("on")


def test_ping_is_answered_while_the_handler_is_busy(serve: Serve) -> None:
    gate = Gate()

    class Busy(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            gate.wait()

    with RawClient(serve(Busy).port) as client:
        client.send_frame(PING, b"still there?")
        assert client.receive_frame().payload == b"still there?"
        gate.open()
        client.expect_close(1000)


@EVERYWHERE
@pytest.mark.parametrize(
    ("sent", "answered", "code", "reason"),
    [
        (close_frame(1000, "bye"), 1000, 1000, "bye"),
        (close_frame(1001), 1001, 1001, ""),
        (close_frame(4321, "ä" * 61), 4321, 4321, "ä" * 61),
        (close_frame(), None, 1005, ""),
    ],
    ids=["1000", "1001", "4321", "no-code"],
)
def test_client_closes(
    serve: Serve, flavour: str, poller: str, sent: bytes, answered: int | None, code: int, reason: str
) -> None:
    runs_on, base = FLAVOURS[flavour]
    controllers: list[Any] = []
    site = serve(remember(base, controllers), runs_on=runs_on, poller=poller)
    with RawClient(site.port) as client:
        client.send(sent)
        client.expect_close(answered, answer=False)
    (controller,) = controllers
    eventually(lambda: controller.stops)
    assert controller.wait_stopped(10)
    assert controller.stops == [(code, reason)]
    assert controller.should_stop()
    assert controller.push_out_message("late") is False


@EVERYWHERE
def test_server_closes_from_another_thread(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, base = FLAVOURS[flavour]
    controllers: list[Any] = []
    site = serve(remember(base, controllers), runs_on=runs_on, poller=poller)
    with RawClient(site.port) as client:
        client.send_frame(TEXT, "there?")
        client.expect("there?")
        (controller,) = controllers
        controller.close(4000, "enough ä")
        controller.close(4001, "the second does not count")
        assert client.expect_close(4000) == "enough ä"
    eventually(lambda: controller.stops)
    assert controller.stops == [(4000, "enough ä")]


@pytest.mark.parametrize("poller", POLLERS)
def test_messages_behind_our_close_are_not_delivered(serve: Serve, poller: str) -> None:
    """And the peer's close behind them is read, though nobody takes the messages."""
    controllers: list[Any] = []

    class Deaf(WebsocketsCtrlBase):
        max_in_messages = 2

    site = serve(remember(Deaf, controllers), poller=poller)
    with RawClient(site.port) as client:
        (controller,) = controllers
        controller.close(1000, "enough")
        received = client.receive_frame()
        assert received.opcode == CLOSE
        client.send(b"".join(frame(TEXT, str(n)) for n in range(1000)) + close_frame(1000))
        client.expect_end()
    assert controller.pop_in_message() is None


def test_what_was_pushed_comes_before_the_close(serve: Serve) -> None:
    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for number in range(1000):
                self.push_out_message(str(number))
            self.close(3000, "said all")
            assert self.push_out_message("late") is False

    with RawClient(serve(Talker).port) as client:
        messages, code, reason = client.skip_to_close()
        assert messages == [str(number) for number in range(1000)]
        assert (code, reason) == (3000, "said all")
        client.expect_end()


def test_a_peer_that_does_not_answer_our_close_is_cut_off(serve: Serve) -> None:
    class Closes(WebsocketsCtrlBase):
        close_timeout = 0.3

        def on_thread_start(self) -> None:
            self.close(1000)

    site = serve(Closes)
    with RawClient(site.port) as client:
        assert client.receive_frame().opcode == CLOSE
        client.expect_end()


BROKEN = {
    "unmasked": (frame(TEXT, "x", masked=False), 1002),
    "reserved bit": (frame(TEXT, "x", reserved=4), 1002),
    "unknown data opcode": (frame(3, "x"), 1002),
    "unknown control opcode": (frame(11, "x"), 1002),
    "fragmented ping": (frame(PING, "x", fin=False), 1002),
    "long ping": (frame(PING, "x" * 126), 1002),
    "continuation of nothing": (frame(CONTINUATION, "x"), 1002),
    "message in a message": (frame(TEXT, "x", fin=False) + frame(TEXT, "y"), 1002),
    "length not minimal": (b"\x81\xfe\x00\x05" + b"\0" * 9, 1002),
    "length not minimal, 8 bytes": (b"\x81\xff" + (65_535).to_bytes(8, "big") + b"\0" * 4, 1002),
    "length with its highest bit": (b"\x82\xff" + b"\xff" * 8 + b"\0" * 4, 1002),
    "close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "close 1005": (close_frame(1005), 1002),
    "close 999": (close_frame(999), 1002),
    "close reason not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "text not UTF-8": (frame(TEXT, b"\xc3\x28"), 1007),
    "text cut in a character": (frame(TEXT, b"\xc3"), 1007),
    "surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "bad byte in the first fragment": (frame(TEXT, b"ok\xff", fin=False), 1007),
}


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_broken_frames_close(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, base = FLAVOURS[flavour]
    controllers: list[Any] = []
    site = serve(remember(base, controllers), runs_on=runs_on, poller=poller)
    for name, (broken, code) in BROKEN.items():
        with RawClient(site.port) as client:
            client.send_frame(TEXT, "before")
            client.expect("before")
            client.send(broken + frame(TEXT, "behind"))
            received = client.receive_frame()
            assert received.opcode == CLOSE, name
            assert int.from_bytes(received.payload[:2], "big") == code, name
            client.expect_end()
            controller = controllers[-1]
            eventually(lambda controller=controller: controller.stops)
            assert [stop[0] for stop in controller.stops] == [code], name


def test_good_messages_before_a_broken_frame_arrive(serve: Serve) -> None:
    controllers: list[Any] = []
    site = serve(remember(WebsocketsCtrlBase, controllers))
    with RawClient(site.port) as client:
        client.send(frame(TEXT, "one") + frame(BINARY, b"two") + BROKEN["unmasked"][0])
        client.expect_close(1002)
    (controller,) = controllers
    assert list(controller.messages()) == ["one", b"two"]


@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_oversize_message_closes(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    site = serve(controller, runs_on=runs_on, poller=poller, max_message_size=1000)
    oversize = [
        frame(BINARY, b"x" * 1001),
        frame(TEXT, "x" * 1001),
        frame(BINARY, b"x" * 600, fin=False) + frame(CONTINUATION, b"x" * 401),
        b"\x82\xff" + (1 << 40).to_bytes(8, "big"),  # as soon as it is announced
    ]
    for data in oversize:
        with RawClient(site.port) as client:
            client.send_frame(BINARY, b"y" * 1000)
            client.expect(b"y" * 1000)
            client.send(data)
            client.expect_close(1009)


def test_size_limit_is_one_mebibyte_by_default_and_a_class_can_change_it(serve: Serve) -> None:
    class Small(HandlerEcho):
        max_message_size = 10

    class Large(EventEcho):
        max_message_size = 3 << 20

    site = serve({"default": HandlerEcho, "small": Small, "large": Large})
    with RawClient(site.port, "/default") as client:
        client.send(frame(BINARY, b"x" * ((1 << 20) + 1)))
        client.expect_close(1009)
    with RawClient(site.port, "/small") as client:
        client.send(frame(TEXT, "x" * 11))
        client.expect_close(1009)
    with RawClient(site.port, "/large") as client:
        client.send(frame(BINARY, b"x" * (3 << 20)))
        client.expect(b"x" * (3 << 20))


def test_close_checks_its_arguments(serve: Serve) -> None:
    controllers: list[Any] = []
    site = serve(remember(WebsocketsCtrlBase, controllers))
    with RawClient(site.port) as client:
        (controller,) = controllers
        for code, reason in [(999, ""), (1005, ""), (1006, ""), (1015, ""), (2999, ""), (5000, ""), (1000, "ä" * 62)]:
            with pytest.raises(ValueError):
                controller.close(code, reason)
        assert not controller.should_stop()
        controller.close(1000, "ä" * 61)
        assert client.expect_close(1000) == "ä" * 61


def test_a_client_that_leaves_tcp_open_after_its_close_holds_nothing_up(serve: Serve) -> None:
    """RFC 6455 section 7.1.1: the server closes TCP, and it may as soon as both close frames have gone."""

    class Closes(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.close(4000, "enough")

    site = serve(Closes, close_timeout=60.0)
    with RawClient(site.port) as client:
        client.expect_close(4000)  # answers, and keeps its socket
        client.expect_end()
        eventually(lambda: not site.server.sessions)
