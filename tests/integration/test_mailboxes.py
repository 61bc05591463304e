"""Bounded mailboxes: whoever does not read makes the other side wait, and nothing is lost but by the policy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import BINARY, POLLERS, TEXT, Gate, RawClient, eventually, frame

Serve = Callable[..., SiteServer]
HANDLERS = pytest.mark.parametrize("runs_on", ["thread", "greenlet"])
EVERY_POLLER = pytest.mark.parametrize("poller", POLLERS)

CHUNK = 16 * 1024
MUCH = 64 << 20
"""Bytes that no socket buffers and mailboxes of these tests hold together."""


def numbered(number: int) -> bytes:
    return frame(BINARY, number.to_bytes(4, "big") + bytes(CHUNK - 4))


def push_back(client: RawClient, gate: Gate) -> int:
    """Sends numbered messages until the server's TCP pushes back, opens the gate, and sends one more. Returns how many
    it sent."""
    client.sock.settimeout(0.5)
    count = 0
    try:
        while count * CHUNK < MUCH:
            data = memoryview(numbered(count))
            count += 1
            while data:
                data = data[client.sock.send(data) :]
        pytest.fail(f"the server took {MUCH} bytes that nobody pops")
    except TimeoutError:
        pass
    finally:
        client.sock.settimeout(20)
    gate.open()
    client.send(data)
    client.send(numbered(count))
    return count + 1


@EVERY_POLLER
@HANDLERS
def test_a_handler_that_does_not_read_stops_the_sender_and_loses_nothing(
    serve: Serve, runs_on: str, poller: str
) -> None:
    gate, numbers = Gate(), []

    class Late(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            gate.wait(60)
            for message in self.messages():
                numbers.append(int.from_bytes(message[:4], "big"))  # type: ignore[arg-type]

    site = serve(Late, runs_on=runs_on, poller=poller, max_in_messages=8)
    with RawClient(site.port) as client:
        count = push_back(client, gate)
        eventually(lambda: len(numbers) == count)
        assert numbers == list(range(count))


@EVERY_POLLER
@HANDLERS
def test_a_hook_that_blocks_stops_the_sender_and_loses_nothing(serve: Serve, runs_on: str, poller: str) -> None:
    gate, numbers = Gate(), []

    class Late(WebsocketsCtrlBase):
        def on_in_message(self, message: Any) -> None:
            gate.wait(60)
            numbers.append(int.from_bytes(message[:4], "big"))

    site = serve(Late, runs_on=runs_on, poller=poller, max_in_bytes=100_000)
    with RawClient(site.port) as client:
        count = push_back(client, gate)
        eventually(lambda: len(numbers) == count)
        assert numbers == list(range(count))


@EVERY_POLLER
def test_other_connections_go_on_while_one_is_paused(serve: Serve, poller: str) -> None:
    gate = Gate()

    class Late(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            gate.wait(60)

    class Echo(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for message in self.messages():
                self.push_out_message(message)

    site = serve({"late": Late, "echo": Echo}, poller=poller, max_in_messages=4)
    with RawClient(site.port, "/late") as late, site.connect("/echo") as echo:
        late.send_until_blocked(numbered(0), MUCH)
        for number in range(100):
            echo.send(str(number))
            echo.expect(str(number))
        gate.open()


@EVERY_POLLER
def test_echo_on_the_loop_stops_reading_from_a_client_that_does_not_read(serve: Serve, poller: str) -> None:
    class Echo(WebsocketsCtrlBase):
        def on_in_message(self, message: Any) -> None:
            self.push_out_message(message)

    site = serve(Echo, runs_on="loop", poller=poller, max_out_bytes=200_000)
    with RawClient(site.port, receive_buffer=4096) as client:
        message = frame(BINARY, bytes(CHUNK))
        count, rest = client.send_until_blocked(message, MUCH)
        sender = threading.Thread(target=client.send, args=(rest,))
        sender.start()
        for _ in range(count):
            client.expect(bytes(CHUNK))
        sender.join()
        client.send_frame(TEXT, "on")
        client.expect("on")


class Pusher(WebsocketsCtrlBase):
    """Pushes numbered messages of 16 KiB until one is refused or the test says enough; notes what each push said."""

    results: list[bool]
    limit = MUCH // CHUNK

    def __init__(self) -> None:
        super().__init__()
        self.results = []
        self.enough = False
        self.under_way = 0

    def on_thread_start(self) -> None:
        while not self.enough and len(self.results) < self.limit:
            self.under_way += 1
            self.results.append(self.push_out_message(len(self.results).to_bytes(4, "big") + bytes(CHUNK - 4)))
            if self.should_stop() and not self.results[-1]:
                break


def serve_pushers(serve: Serve, pushers: list[Pusher], base: type[Pusher] = Pusher, **options: Any) -> SiteServer:
    class Noted(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            pushers.append(self)

    return serve(Noted, **options)


def is_stuck(pusher: Pusher) -> Callable[[], bool]:
    """Whether a push has been waiting over several looks of ``eventually``. Where the machine is so slow that it only
    seems to, the test still holds; it merely tries an easier order."""
    seen = [0, 0]

    def look() -> bool:
        if pusher.under_way != seen[0] or pusher.under_way == len(pusher.results):
            seen[:] = [pusher.under_way, 0]
        else:
            seen[1] += 1
        return seen[1] > 40

    return look


@EVERY_POLLER
@HANDLERS
def test_a_client_that_does_not_read_makes_the_push_wait(serve: Serve, runs_on: str, poller: str) -> None:
    pushers: list[Pusher] = []
    site = serve_pushers(serve, pushers, runs_on=runs_on, poller=poller, max_out_messages=16)
    with RawClient(site.port, receive_buffer=4096) as client:
        (pusher,) = pushers
        eventually(is_stuck(pusher), what="a push that waits")
        before = len(pusher.results)
        pusher.enough = True
        messages, code, _ = client.skip_to_close()
        assert code == 1000
        assert len(pusher.results) > before, "the one that waited has ended"
        assert all(pusher.results)
        assert [int.from_bytes(message[:4], "big") for message in messages] == list(range(len(pusher.results)))  # type: ignore[arg-type]


@EVERY_POLLER
@HANDLERS
def test_push_timeout_closes_with_1013(serve: Serve, runs_on: str, poller: str) -> None:
    pushers: list[Pusher] = []
    site = serve_pushers(serve, pushers, runs_on=runs_on, poller=poller, max_out_bytes=100_000, push_timeout=0.3)
    with RawClient(site.port, receive_buffer=4096) as client:
        (pusher,) = pushers
        assert pusher.wait_stopped(30)
        assert pusher.results[-1] is False
        assert all(pusher.results[:-1])
        assert pusher.close_code == 1013
        messages, code, reason = client.skip_to_close()
        assert code == 1013
        assert reason
        assert len(messages) == len(pusher.results) - 1


@HANDLERS
def test_policy_close(serve: Serve, runs_on: str) -> None:
    pushers: list[Pusher] = []
    site = serve_pushers(serve, pushers, runs_on=runs_on, max_out_messages=16, slow_consumer="close")
    with RawClient(site.port, receive_buffer=4096) as client:
        (pusher,) = pushers
        assert pusher.wait_stopped(30)
        assert pusher.results[-1] is False
        assert pusher.close_code == 1013
        messages, code, _ = client.skip_to_close()
        assert code == 1013
        assert [int.from_bytes(message[:4], "big") for message in messages] == list(range(len(messages)))  # type: ignore[arg-type]
        assert len(messages) == len(pusher.results) - 1


class Few(Pusher):
    """Enough to fill every buffer on the way, but not for ever; then waits until the test has seen it."""

    limit = 2000

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def on_thread_start(self) -> None:
        super().on_thread_start()
        self.gate.wait(60)


@HANDLERS
def test_policy_drop_new(serve: Serve, runs_on: str) -> None:
    pushers: list[Pusher] = []
    site = serve_pushers(serve, pushers, Few, runs_on=runs_on, max_out_messages=16, slow_consumer="drop_new")
    with RawClient(site.port, receive_buffer=4096) as client:
        pusher: Any = pushers[0]
        eventually(lambda: len(pusher.results) == Few.limit)
        assert not pusher.should_stop()
        taken = [number for number, result in enumerate(pusher.results) if result]
        assert 16 <= len(taken) < Few.limit
        pusher.gate.open()
        messages, code, _ = client.skip_to_close()
        assert code == 1000
        assert [int.from_bytes(message[:4], "big") for message in messages] == taken  # type: ignore[arg-type]


@HANDLERS
def test_policy_drop_oldest(serve: Serve, runs_on: str) -> None:
    pushers: list[Pusher] = []
    site = serve_pushers(serve, pushers, Few, runs_on=runs_on, max_out_messages=16, slow_consumer="drop_oldest")
    with RawClient(site.port, receive_buffer=4096) as client:
        pusher: Any = pushers[0]
        eventually(lambda: len(pusher.results) == Few.limit)
        assert all(pusher.results)
        pusher.gate.open()
        messages, code, _ = client.skip_to_close()
        assert code == 1000
        numbers = [int.from_bytes(message[:4], "big") for message in messages]  # type: ignore[arg-type]
        assert numbers == sorted(set(numbers))
        assert len(numbers) < Few.limit
        assert numbers[-16:] == list(range(Few.limit - 16, Few.limit))


@pytest.mark.parametrize(("policy", "result"), [("block", False), ("close", False), ("drop_new", False)])
def test_a_full_mailbox_on_the_loop_never_waits(serve: Serve, policy: str, result: bool) -> None:
    results: list[bool] = []
    controllers: list[WebsocketsCtrlBase] = []

    class Flood(WebsocketsCtrlBase):
        runs_on = "loop"
        slow_consumer = policy
        max_out_messages = 16

        def on_in_message(self, message: Any) -> None:
            controllers.append(self)
            while not results or results[-1]:
                results.append(self.push_out_message(bytes(CHUNK)))

    with RawClient(serve(Flood).port) as client:
        client.send_frame(TEXT, "go")
        eventually(lambda: results and not results[-1])
        assert len(results) == 17
        if policy == "drop_new":
            assert not controllers[0].should_stop()
            controllers[0].close(1000)
        messages, code, _ = client.skip_to_close()
        assert code == (1000 if policy == "drop_new" else 1013)
        assert len(messages) == 16


@HANDLERS
def test_a_blocked_push_wakes_when_the_connection_ends(serve: Serve, runs_on: str) -> None:
    pushers: list[Pusher] = []
    site = serve_pushers(serve, pushers, runs_on=runs_on, max_out_messages=16)
    with RawClient(site.port, receive_buffer=4096) as client:
        (pusher,) = pushers
        eventually(is_stuck(pusher))
        client.reset()
        assert pusher.wait_stopped(10)
        assert pusher.results[-1] is False
        assert pusher.close_code == 1006


def test_pushes_of_many_threads_each_keep_their_order(serve: Serve) -> None:
    class Crowd(WebsocketsCtrlBase):
        max_out_messages = 32

        def on_thread_start(self) -> None:
            def push(name: str) -> None:
                for number in range(500):
                    assert self.push_out_message(f"{name}:{number}")

            threads = [threading.Thread(target=push, args=(str(name),)) for name in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    with RawClient(serve(Crowd).port) as client:
        messages, code, _ = client.skip_to_close()
        assert code == 1000
        for name in range(8):
            assert [m for m in messages if str(m).startswith(f"{name}:")] == [f"{name}:{n}" for n in range(500)]
        assert len(messages) == 4000
