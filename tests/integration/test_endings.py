"""Every way to end: ``on_stop`` is called once, every wait wakes, what had arrived can still be popped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import SiteServer, drive
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import BINARY, PING, POLLERS, TEXT, Gate, RawClient, close_frame, eventually, frame

Serve = Callable[..., SiteServer]
HANDLERS = pytest.mark.parametrize("runs_on", ["thread", "greenlet"])
EVERY_RUNS_ON = pytest.mark.parametrize("runs_on", ["thread", "greenlet", "loop"])
EVERY_POLLER = pytest.mark.parametrize("poller", POLLERS)


class Noted(WebsocketsCtrlBase):
    """Notes its instances and every ``on_stop``. ``serve_noted`` gives each test a class, and so a list, of its own."""

    instances: list[Any]

    def __init__(self) -> None:
        super().__init__()
        self.stops: list[int | None] = []
        self.instances.append(self)

    def on_stop(self) -> None:
        self.stops.append(self.close_code)
        super().on_stop()


class NotedHandler(Noted):
    """A handler that a text commands: ``return``, ``raise`` or ``close``."""

    def on_thread_start(self) -> None:
        for message in self.messages():
            self.obey(message)
            if message == "return":
                return

    def obey(self, message: Any) -> None:
        if message == "raise":
            raise ValueError("the secret of the handler")
        if message == "exit":
            raise SystemExit
        if message == "close":
            self.close(3001, "as told")
        if message == "stop":
            self.on_stop()


class NotedEvents(NotedHandler):
    on_thread_start = WebsocketsCtrlBase.on_thread_start

    def on_in_message(self, message: Any) -> None:
        self.obey(message)


def noted(base: type[Noted], runs_on: str) -> type[Any]:
    return type("Noted" + base.__name__, (base,), {"instances": [], "runs_on": runs_on})


def model(runs_on: str) -> type[Noted]:
    return NotedEvents if runs_on == "loop" else NotedHandler


# ---- what the peer sees


@EVERY_POLLER
@HANDLERS
def test_a_handler_that_returns_has_its_messages_sent_then_1000(serve: Serve, runs_on: str, poller: str) -> None:
    class Talks(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for number in range(3000):
                self.push_out_message(str(number))

    with RawClient(serve(Talks, runs_on=runs_on, poller=poller).port) as client:
        messages, code, reason = client.skip_to_close()
        assert messages == [str(number) for number in range(3000)]
        assert (code, reason) == (1000, "")
        client.expect_end()


@EVERY_POLLER
@EVERY_RUNS_ON
def test_a_hook_that_raises_closes_with_1011_and_is_logged_once(
    serve: Serve, caplog: pytest.LogCaptureFixture, runs_on: str, poller: str
) -> None:
    controller_class = noted(model(runs_on), runs_on)
    site = serve(controller_class, poller=poller, slow_hook=0)  # a busy machine makes a slow one of every hook
    with RawClient(site.port) as client:
        client.send_frame(TEXT, "raise")
        assert client.expect_close(1011) == ""
    site.close()
    (controller,) = controller_class.instances
    assert controller.stops == [1011]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.levelno == logging.ERROR
    assert controller.id in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    assert "the secret of the handler" in caplog.text
    assert "in obey" in caplog.text


@EVERY_RUNS_ON
def test_what_was_pushed_before_the_exception_is_sent(
    serve: Serve, caplog: pytest.LogCaptureFixture, runs_on: str
) -> None:
    class Fails(WebsocketsCtrlBase):
        def on_in_message(self, message: Any) -> None:
            for number in range(100):
                self.push_out_message(str(number))
            raise KeyError(message)

    with RawClient(serve(Fails, runs_on=runs_on).port) as client:
        client.send_frame(TEXT, "go")
        messages, code, reason = client.skip_to_close()
        assert messages == [str(number) for number in range(100)]
        assert (code, reason) == (1011, "")
        client.expect_end()
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


@HANDLERS
def test_other_connections_survive_a_handler_that_raises(
    serve: Serve, caplog: pytest.LogCaptureFixture, runs_on: str
) -> None:
    class Echo(NotedHandler):
        def obey(self, message: Any) -> None:
            super().obey(message)
            self.push_out_message(message)

    site = serve(noted(Echo, runs_on))
    with RawClient(site.port) as other:
        for _ in range(5):
            with RawClient(site.port) as client:
                client.send_frame(TEXT, "raise")
                client.expect_close(1011)
            other.send_frame(TEXT, "on")
            other.expect("on")
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 5


@EVERY_POLLER
@EVERY_RUNS_ON
def test_an_event_controller_stays_open_until_somebody_closes(serve: Serve, runs_on: str, poller: str) -> None:
    controller_class = noted(NotedEvents, runs_on)
    site = serve(controller_class, poller=poller)
    with RawClient(site.port) as client:
        for number in range(50):
            client.send_frame(TEXT, str(number))
            client.send_frame(PING, str(number))
            assert client.receive_frame().payload == str(number).encode()
        (controller,) = controller_class.instances
        assert not controller.should_stop()
        client.send_frame(TEXT, "close")
        assert client.expect_close(3001) == "as told"
    site.close()
    assert controller.stops == [3001]


@EVERY_RUNS_ON
def test_a_controller_without_any_hook_stays_open(serve: Serve, runs_on: str) -> None:
    class Plain(Noted):
        pass

    controller_class = noted(Plain, runs_on)
    with RawClient(serve(controller_class).port) as client:
        client.send_frame(TEXT, "kept")
        client.send_frame(PING, "there?")
        assert client.receive_frame().payload == b"there?"
        (controller,) = controller_class.instances
        assert eventually(controller.pop_in_message) == "kept"
        assert controller.push_out_message("from outside")
        client.expect("from outside")
        client.send(close_frame(1000))
        client.expect_close(1000, answer=False)


# ---- on_stop once


def end_by_close_frame(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.send(close_frame(4000))
    client.expect_close(4000, answer=False)
    return 4000


def end_by_reset(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.reset()
    return 1006


def end_by_end_of_stream(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.half_close()
    client.expect_end()
    return 1006


def end_by_return(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.send_frame(TEXT, "return")
    client.expect_close(1000)
    return 1000


def end_by_exception(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.send_frame(TEXT, "raise")
    client.expect_close(1011)
    return 1011


def end_by_close_in_the_handler(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.send_frame(TEXT, "close")
    client.expect_close(3001)
    return 3001


def end_by_close_from_many_threads(site: SiteServer, client: RawClient, controller: Any) -> int:
    threads = [threading.Thread(target=controller.close, args=(4000 + number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, code, _ = client.skip_to_close()
    client.expect_end()
    assert code is not None
    assert 4000 <= code < 4020
    return code


def end_by_protocol_error(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.send_frame(TEXT, "x", masked=False)
    client.expect_close(1002)
    return 1002


def end_by_oversize(site: SiteServer, client: RawClient, controller: Any) -> int:
    client.send_frame(BINARY, bytes((1 << 20) + 1))
    client.expect_close(1009)
    return 1009


def end_by_server_stop(site: SiteServer, client: RawClient, controller: Any) -> int:
    site.server.request_stop()
    client.expect_close(1001)
    return 1001


ENDINGS = [function for name, function in list(globals().items()) if name.startswith("end_by_")]


@pytest.mark.parametrize(
    ("end", "runs_on"),
    [
        pytest.param(end, runs_on, id=f"{end.__name__}-{runs_on}")
        for end in ENDINGS
        for runs_on in ("thread", "greenlet", "loop")
        if (end, runs_on) != (end_by_return, "loop")  # nothing runs there that could return
    ],
)
@EVERY_POLLER
def test_on_stop_is_called_once(serve: Serve, poller: str, runs_on: str, end: Callable[..., int]) -> None:
    controller_class = noted(model(runs_on), runs_on)
    site = serve(controller_class, poller=poller)
    with RawClient(site.port) as client:
        (controller,) = controller_class.instances
        code = end(site, client, controller)
        eventually(lambda: controller.stops)
        assert controller.wait_stopped(10)
    site.close()
    assert controller.stops == [code]
    assert controller.close_code == code
    assert controller.should_stop()
    assert controller.wait_stop(0)
    assert controller.push_out_message("late") is False


@EVERY_RUNS_ON
def test_on_stop_called_by_the_user_is_not_called_again(serve: Serve, runs_on: str) -> None:
    controller_class = noted(model(runs_on), runs_on)
    site = serve(controller_class)
    with RawClient(site.port) as client:
        client.send_frame(TEXT, "stop")
        client.expect_close(1000)
    site.close()
    (controller,) = controller_class.instances
    assert len(controller.stops) == 1


@EVERY_RUNS_ON
def test_an_on_stop_that_forgets_the_base_class_still_wakes_every_wait(serve: Serve, runs_on: str) -> None:
    stopped: list[Any] = []

    class Forgets(model(runs_on)):  # type: ignore[misc]
        def on_stop(self) -> None:
            stopped.append(self)

    controller_class = noted(Forgets, runs_on)
    with RawClient(serve(controller_class).port) as client:
        (controller,) = controller_class.instances
        client.send(close_frame(1000))
        client.expect_close(1000, answer=False)
        assert controller.wait_stop(10)
        assert controller.wait_stopped(10)
    eventually(lambda: stopped)
    assert stopped == [controller]


@EVERY_RUNS_ON
def test_an_on_stop_that_raises_is_logged_once_and_changes_nothing(
    serve: Serve, caplog: pytest.LogCaptureFixture, runs_on: str
) -> None:
    class Fails(model(runs_on)):  # type: ignore[misc]
        def on_stop(self) -> None:
            super().on_stop()
            raise ValueError("in on_stop")

    controller_class = noted(Fails, runs_on)
    site = serve(controller_class)
    with RawClient(site.port) as client:
        client.send(close_frame(4000))
        client.expect_close(4000, answer=False)
    site.close()
    (controller,) = controller_class.instances
    assert controller.close_code == 4000
    assert controller.stops == [4000]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert controller.id in caplog.text


@HANDLERS
def test_on_stop_may_block_without_stalling_anybody(serve: Serve, runs_on: str) -> None:
    gate = Gate()

    class Slow(NotedHandler):
        def on_stop(self) -> None:
            super().on_stop()
            gate.wait()

    class Echo(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for message in self.messages():
                self.push_out_message(message)

    site = serve({"slow": noted(Slow, runs_on), "echo": Echo})
    with RawClient(site.port, "/slow") as slow, site.connect("/echo") as echo:
        slow.send(close_frame(1000))
        slow.expect_close(1000, answer=False)
        for number in range(20):
            echo.send(str(number))
            echo.expect(str(number))
        gate.open()


# ---- waits


@HANDLERS
def test_every_blocked_wait_wakes_at_the_end(serve: Serve, runs_on: str) -> None:
    results: dict[str, Any] = {}
    waiting: list[Any] = []

    class Waits(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            waiting.append(self)
            results["pop"] = self.pop_in_message(None)
            results["wait_stop"] = self.wait_stop()
            results["messages"] = list(self.messages())
            results["timed pop"] = self.pop_in_message(30)

    with RawClient(serve(Waits, runs_on=runs_on).port) as client:
        eventually(lambda: waiting)
        threads = [
            threading.Thread(target=lambda: results.update(outside_pop=waiting[0].pop_in_message(None))),
            threading.Thread(target=lambda: results.update(outside_stop=waiting[0].wait_stop())),
            threading.Thread(target=lambda: results.update(outside_join=waiting[0].wait_stopped())),
        ]
        for thread in threads:
            thread.start()
        client.reset()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert results == {
        "pop": None,
        "wait_stop": True,
        "messages": [],
        "timed pop": None,
        "outside_pop": None,
        "outside_stop": True,
        "outside_join": True,
    }


@HANDLERS
def test_pop_with_a_timeout_and_wait_stop_with_a_timeout_return_in_time(serve: Serve, runs_on: str) -> None:
    class Waits(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.push_out_message(
                f"{self.pop_in_message()} {self.pop_in_message(0.05)} {self.wait_stop(0.05)} {self.should_stop()}"
            )
            self.push_out_message(f"{self.pop_in_message(timeout=20)}")

    with RawClient(serve(Waits, runs_on=runs_on).port) as client:
        client.expect("None None False False")
        client.send_frame(TEXT, "came")
        client.expect("came")
        client.expect_close(1000)


@HANDLERS
def test_a_handler_cannot_join_itself(serve: Serve, runs_on: str) -> None:
    class Joins(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            with pytest.raises(RuntimeError):
                self.wait_stopped(1)
            self.push_out_message("refused")

    with RawClient(serve(Joins, runs_on=runs_on).port) as client:
        client.expect("refused")
        client.expect_close(1000)


@pytest.mark.parametrize("rude", [False, True], ids=["close frame", "reset"])
@EVERY_RUNS_ON
@EVERY_POLLER
def test_messages_that_had_arrived_can_be_popped_after_the_end(
    serve: Serve, poller: str, runs_on: str, rude: bool
) -> None:
    instances: list[Any] = []

    class Keeps(WebsocketsCtrlBase):
        def __init__(self) -> None:
            super().__init__()
            instances.append(self)

    with RawClient(serve(Keeps, runs_on=runs_on, poller=poller).port) as client:
        (controller,) = instances
        client.send(b"".join(frame(TEXT, str(number)) for number in range(100)))
        if rude:
            client.send_frame(PING, "all there?")  # what a reset overtakes has not arrived
            assert client.receive_frame().payload == b"all there?"
            client.reset()
        else:
            client.send(close_frame(1000))
            client.expect_close(1000, answer=False)
        assert controller.wait_stop(10)
        assert controller.close_code == (1006 if rude else 1000)
        assert [controller.pop_in_message() for _ in range(100)] == [str(number) for number in range(100)]
        assert controller.pop_in_message() is None
        assert controller.pop_in_message(None) is None


class Slow(WebsocketsCtrlBase):
    gate: Gate
    got: list[Any]

    def on_thread_start(self) -> None:
        self.gate.wait()
        self.got.extend(self.messages())


class SlowEvents(Slow):
    on_thread_start = WebsocketsCtrlBase.on_thread_start

    def on_in_message(self, message: Any) -> None:
        self.gate.wait()
        self.got.append(message)


@pytest.mark.parametrize("base", [Slow, SlowEvents])
@HANDLERS
def test_a_slow_handler_gets_every_message_that_had_arrived(serve: Serve, runs_on: str, base: type[Slow]) -> None:
    controller_class: Any = type("Slow", (base,), {"gate": Gate(), "got": []})
    with RawClient(serve(controller_class, runs_on=runs_on).port) as client:
        client.send(b"".join(frame(TEXT, str(number)) for number in range(50)) + close_frame(1000))
        client.expect_close(1000, answer=False)
        controller_class.gate.open()
        eventually(lambda: len(controller_class.got) == 50)
        assert controller_class.got == [str(number) for number in range(50)]


def test_queue_that_is_disabled_cannot_be_popped(serve: Serve) -> None:
    class Events(WebsocketsCtrlBase):
        def __init__(self) -> None:
            super().__init__(use_in_message_queue=False)

        def on_in_message(self, message: Any) -> None:
            with pytest.raises(RuntimeError):
                self.pop_in_message()
            self.push_out_message("refused")

    for runs_on in ("thread", "greenlet", "loop"):
        site = serve(Events, runs_on=runs_on)
        with site.connect("/") as client:
            client.send("x")
            client.expect("refused")
        site.close()


@EVERY_RUNS_ON
def test_an_override_may_pop_under_the_in_lock(serve: Serve, runs_on: str) -> None:
    class Pops(WebsocketsCtrlBase):
        def on_in_message(self, message: Any) -> None:
            super().on_in_message(message)
            while (popped := self.pop_in_message()) is not None:
                self.push_out_message(popped)

    with RawClient(serve(Pops, runs_on=runs_on).port) as client:
        for number in range(20):
            client.send_frame(TEXT, str(number))
            client.expect(str(number))


def test_waiting_on_the_loop_is_refused(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """It would stall every connection; the controller learns it as an error of its own."""

    class Waits(WebsocketsCtrlBase):
        runs_on = "loop"

        def on_in_message(self, message: Any) -> None:
            self.pop_in_message(timeout=5)

    with RawClient(serve(Waits).port) as client:
        client.send_frame(TEXT, "x")
        client.expect_close(1011)
    assert "RuntimeError" in caplog.text


# ---- without a socket


@pytest.mark.parametrize("runs_on", ["thread"])
def test_driven_controllers_end_in_the_same_ways(runs_on: str, caplog: pytest.LogCaptureFixture) -> None:
    for command, code in [("return", 1000), ("raise", 1011), ("close", 3001)]:
        controller = noted(NotedHandler, runs_on)()
        with drive(controller) as driver:
            driver.send(command)
            driver.expect_close(code)
        eventually(lambda controller=controller: controller.stops)
        assert controller.stops == [code]
    controller = noted(NotedHandler, runs_on)()
    with drive(controller) as driver:
        driver.close(4000, "the client")
        assert driver.expect_close(4000) == "the client"
    eventually(lambda: controller.stops)
    assert controller.stops == [4000]
