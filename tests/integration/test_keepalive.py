"""Peers that fall silent, stop to read or vanish: who is pinged, who is lost, and who must not be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    BINARY,
    FLAVOURS,
    PATIENCE,
    PING,
    POLLERS,
    PONG,
    TEXT,
    Gate,
    HandlerEcho,
    RawClient,
    ServerIsGone,
    eventually,
    frame,
)

Serve = Callable[..., SiteServer]
HANDLERS = pytest.mark.parametrize("runs_on", ["thread", "greenlet"])


def noted(base: type[WebsocketsCtrlBase]) -> type[Any]:
    """A class like ``base`` that notes its instances."""

    class Noted(base):  # type: ignore[misc, valid-type]
        instances: list[Any] = []  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.instances.append(self)

    return Noted


def expect_loss(client: RawClient) -> None:
    """Pings at most, then the end of the stream without a close frame."""
    while True:
        try:
            received = client.receive_frame()
        except (ServerIsGone, ConnectionResetError):
            return
        assert received.opcode == PING, received


def expect(client: RawClient, message: str) -> None:
    """The next message, behind pings at most: where the machine is slow the client has been silent meanwhile."""
    deadline = time.monotonic() + PATIENCE
    while (received := client.receive_frame()).opcode == PING:
        assert time.monotonic() < deadline, "nothing but pings"
        client.send_frame(PONG, received.payload)
    assert (received.opcode, received.payload) == (TEXT, message.encode())


# ---- silence


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_silent_client_is_pinged_and_lives_when_it_answers(serve: Serve, flavour: str) -> None:
    runs_on, base = FLAVOURS[flavour]
    controller_class = noted(base)
    site = serve(controller_class, runs_on=runs_on, ping_interval=0.1)
    with RawClient(site.port) as client:
        (controller,) = controller_class.instances
        ping = client.receive_frame()
        assert (ping.opcode, ping.fin) == (PING, True)
        client.send_frame(PONG, ping.payload)
        eventually(lambda: controller.latency is not None)
        assert 0 <= controller.latency < 20
        client.send_frame(TEXT, "on")
        expect(client, "on")
        assert controller.close_code is None


def test_a_client_that_answers_is_pinged_again_and_again(serve: Serve) -> None:
    site = serve(HandlerEcho, ping_interval=0.1, ping_timeout=10)
    with RawClient(site.port) as client:
        payloads = set()
        for _ in range(3):
            ping = client.receive_frame()
            assert ping.opcode == PING
            payloads.add(ping.payload)
            client.send_frame(PONG, ping.payload)
        assert len(payloads) == 3, "each ping can be told from the others"
        client.send_frame(TEXT, "on")
        expect(client, "on")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_client_that_does_not_answer_is_lost_with_1006(serve: Serve, flavour: str) -> None:
    runs_on, base = FLAVOURS[flavour]
    controller_class = noted(base)
    site = serve(controller_class, runs_on=runs_on, ping_interval=0.1, ping_timeout=0.2)
    started = time.monotonic()
    with RawClient(site.port) as client:
        expect_loss(client)
        assert time.monotonic() - started >= 0.28
        (controller,) = controller_class.instances
        assert controller.wait_stop(20)
        assert (controller.close_code, controller.close_reason) == (1006, "")
        assert controller.wait_stopped(20)
        assert controller.push_out_message("late") is False
    eventually(lambda: not site.server.sessions)


def test_each_of_many_silent_clients_is_lost(serve: Serve) -> None:
    controller_class = noted(HandlerEcho)
    site = serve(controller_class, runs_on="greenlet", ping_interval=0.1, ping_timeout=0.2)
    clients = [RawClient(site.port) for _ in range(30)]
    try:
        eventually(lambda: not site.server.sessions)
        assert {controller.close_code for controller in controller_class.instances} == {1006}
    finally:
        for client in clients:
            client.close()


def test_without_an_interval_nobody_is_pinged(serve: Serve) -> None:
    """A server with the shortest interval beside it serves as the clock."""
    quiet = serve({"quiet": HandlerEcho}, ping_interval=0)
    eager = serve({"eager": HandlerEcho}, ping_interval=0.05, ping_timeout=0.1)
    with RawClient(quiet.port, "/quiet") as client:
        for _ in range(2):
            with RawClient(eager.port, "/eager") as clock:
                expect_loss(clock)
        client.send_frame(TEXT, "on")
        client.expect("on")


# ---- controller.ping


@HANDLERS
@pytest.mark.parametrize("poller", POLLERS)
def test_ping_measures_the_round_trip(serve: Serve, poller: str, runs_on: str) -> None:
    said: list[Any] = []

    class Pinging(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            said.append(self.latency)
            said.append(self.ping(20))
            said.append(self.latency)
            self.push_out_message("measured")
            self.wait_stop()

    with RawClient(serve(Pinging, runs_on=runs_on, poller=poller).port) as client:
        ping = client.receive_frame()
        assert ping.opcode == PING
        threading.Event().wait(0.05)  # the latency to be measured, not a wait for something
        client.send_frame(PONG, b"not this one")
        client.send_frame(PONG, ping.payload)
        client.expect("measured")
    before, returned, after = said
    assert before is None
    assert 0.04 <= returned < 20
    assert after == returned


def test_ping_on_the_loop_does_not_wait(serve: Serve) -> None:
    class Pinging(WebsocketsCtrlBase):
        runs_on = "loop"

        def on_in_message(self, message: Any) -> None:
            if message == "ping":
                assert self.ping() is None
            else:
                self.push_out_message(f"{self.latency is not None}")

    with RawClient(serve(Pinging).port) as client:
        client.send_frame(TEXT, "latency")
        client.expect("False")
        client.send_frame(TEXT, "ping")
        ping = client.receive_frame()
        assert ping.opcode == PING
        client.send_frame(PONG, ping.payload)
        client.send_frame(TEXT, "latency")
        client.expect("True")


@HANDLERS
def test_ping_without_an_answer(serve: Serve, runs_on: str) -> None:
    class Pinging(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.push_out_message(repr(self.ping(0.05)))
            self.push_out_message(repr(self.latency))
            self.pop_in_message(None)  # a connection that is over by the time the loop has it is not pinged

    with RawClient(serve(Pinging, runs_on=runs_on).port) as client:
        received = [client.receive_frame() for _ in range(3)]  # the loop may be slow to send the ping
        assert [one.opcode for one in received].count(PING) == 1
        assert [one.payload for one in received if one.opcode == TEXT] == [b"None", b"None"]
        client.send_frame(TEXT, "enough")
        client.expect_close(1000)


@HANDLERS
def test_a_ping_that_waits_ends_with_the_connection(serve: Serve, runs_on: str) -> None:
    said: list[Any] = []

    class Pinging(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            said.append(self.ping(None))
            said.append(self.ping(None))

    with RawClient(serve(Pinging, runs_on=runs_on).port) as client:
        assert client.receive_frame().opcode == PING
    eventually(lambda: len(said) == 2)
    assert said == [None, None]


def test_pings_of_many_threads(serve: Serve) -> None:
    """One that waits for a ping that another one replaced is answered by that one's pong."""
    said: list[Any] = []

    class Pinging(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            threads = [threading.Thread(target=lambda: said.append(self.ping(20))) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    with RawClient(serve(Pinging).port) as client:
        while (received := client.receive_frame()).opcode == PING:
            client.send_frame(PONG, received.payload)
    assert len(said) == 8
    assert all(latency is not None for latency in said)


# ---- reading is paused


@HANDLERS
@pytest.mark.parametrize("poller", POLLERS)
def test_paused_reading_kills_nobody(serve: Serve, poller: str, runs_on: str) -> None:
    """Silent clients that come and are lost meanwhile are the clock."""
    gate = Gate()
    got: list[bytes] = []

    class Late(WebsocketsCtrlBase):
        max_in_messages = 2

        def on_thread_start(self) -> None:
            gate.wait()
            for message in self.messages():
                got.append(message)
                self.push_out_message(str(len(got)))

    paused_class = noted(Late)
    site = serve(
        {"late": paused_class, "echo": HandlerEcho},
        runs_on=runs_on, poller=poller, ping_interval=0.1, ping_timeout=0.2,
    )  # fmt: skip
    # Behind the handshake, so that reading is paused before there can be a silence.
    messages = b"".join(frame(BINARY, bytes([number])) for number in range(20))
    with RawClient(site.port, "/late", behind=messages) as client:
        (controller,) = paused_class.instances
        eventually(lambda: controller._krait.arrivals.is_full)
        for _ in range(2):
            with RawClient(site.port, "/echo") as silent:
                expect_loss(silent)
        assert controller.close_code is None
        site.server._keepalive._timeout = 60.0  # it is read again from now on, and we may be slow to answer pings
        gate.open()
        answers = []
        while len(answers) < 20:
            received = client.receive_frame()
            if received.opcode == PING:
                client.send_frame(PONG, received.payload)
            else:
                answers.append(received.payload)
    assert got == [bytes([number]) for number in range(20)]


@HANDLERS
def test_a_peer_that_hangs_up_while_reading_is_paused_is_lost_after_the_timeout(serve: Serve, runs_on: str) -> None:
    """It cannot be read that the stream has ended, and silence says nothing while reading is paused: before, the
    session, its thread and its descriptor stayed for ever."""

    class Deaf(WebsocketsCtrlBase):
        max_in_messages = 2

        def on_thread_start(self) -> None:
            self.wait_stop()

    controller_class = noted(Deaf)
    site = serve(controller_class, runs_on=runs_on, poller="epoll", ping_interval=0.1, ping_timeout=0.4)
    for leave in (RawClient.half_close, RawClient.close):
        # Behind the handshake: reading is paused before there is a ping, which would be unread when the client leaves
        # and make a reset of its end.
        with RawClient(site.port, behind=frame(TEXT, "x") * 100) as client:
            controller = controller_class.instances[-1]
            eventually(lambda controller=controller: controller._krait.arrivals.is_full)
            left_at = time.monotonic()
            leave(client)
            assert controller.wait_stop(20)
            assert time.monotonic() - left_at >= 0.35
            assert controller.close_code == 1006
            assert controller.wait_stopped(20)
    eventually(lambda: not site.server.sessions)


@HANDLERS
def test_the_last_words_of_a_peer_that_hung_up_can_be_taken_in_time(serve: Serve, runs_on: str) -> None:
    gate = Gate()
    got: list[str] = []

    class Late(WebsocketsCtrlBase):
        max_in_messages = 2

        def on_thread_start(self) -> None:
            gate.wait()
            got.extend(self.messages())

    controller_class = noted(Late)
    site = serve(controller_class, runs_on=runs_on, poller="epoll", ping_interval=0.1, ping_timeout=60)
    # Behind the handshake: see the test before.
    with RawClient(site.port, behind=frame(TEXT, "first") * 2) as client:
        (controller,) = controller_class.instances
        eventually(lambda: controller._krait.arrivals.is_full)
        client.send(b"".join(frame(TEXT, str(number)) for number in range(100)))
        client.close()
        gate.open()
        assert controller.wait_stop(20)
        assert controller.wait_stopped(20)
    assert got == ["first"] * 2 + [str(number) for number in range(100)]
    assert controller.close_code == 1006


# ---- peers that do not read


@HANDLERS
@pytest.mark.parametrize("poller", POLLERS)
def test_a_peer_that_takes_nothing_is_lost_though_it_speaks(serve: Serve, poller: str, runs_on: str) -> None:
    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            while self.push_out_message(bytes(64 * 1024)):
                self.pop_in_message()

    controller_class = noted(Talker)
    site = serve(
        controller_class, runs_on=runs_on, poller=poller, max_in_messages=100_000, ping_interval=0.1, ping_timeout=0.5
    )
    with RawClient(site.port, receive_buffer=4096) as client:
        (controller,) = controller_class.instances

        def speak_and_look() -> bool:
            try:
                client.send_frame(TEXT, "I am here")
            except OSError:
                return True
            return controller.should_stop()

        eventually(speak_and_look)
        assert controller.wait_stop(20)
        assert controller.close_code == 1006
        assert controller.wait_stopped(20)
    eventually(lambda: not site.server.sessions)


def test_a_peer_that_reads_slowly_is_not_lost(serve: Serve) -> None:
    """What it takes, however little of it, keeps it alive, though the system reports room only now and then."""
    size = 64 * 1024

    class Talker(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for _ in range(100):
                self.push_out_message(bytes(size))
            self.wait_stop()

    controller_class = noted(Talker)
    site = serve(controller_class, ping_interval=0.1, ping_timeout=3)
    with RawClient(site.port, receive_buffer=size) as client:
        started = time.monotonic()
        while time.monotonic() - started < 4:  # which is longer than the timeout
            assert client.sock.recv(4096), "it was lost"
            threading.Event().wait(0.02)  # its slowness
        (controller,) = controller_class.instances
        assert controller.close_code is None
