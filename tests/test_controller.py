"""The public contract of controllers: every method, attribute and ending, on threads, on greenlets and on the loop.

Nothing here has a socket. The tests of threads and greenlets run in a thread of their own; what they wait with is
``Signal``, on which both may wait.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gevent
import pytest

from krait_ws import config
from krait_ws.errors import ConfigError
from krait_ws.testing import Driver, drive
from krait_ws.waiting import Signal
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import DEADLINE, Task, own_thread

kinds = pytest.mark.parametrize("kind", ["thread", "greenlet"])


class Base(WebsocketsCtrlBase):
    """What the controllers here have in common: a place to note things and a signal to end with."""

    def __init__(self, use_in_message_queue: bool = True) -> None:
        super().__init__(use_in_message_queue)
        self.noted: list[Any] = []
        self.go = Signal()
        self.here = Signal()


def controller(kind: str, handler: Callable[[Any], Any] | None = None, **members: Any) -> Any:
    """An instance of a class with this handler."""
    if handler is not None:
        members["on_thread_start"] = handler
    return type("Controller", (Base,), {"runs_on": kind, **members})()


def waits(self: Base) -> None:
    self.wait_stop()


def echoes(self: Base) -> None:
    for message in self.messages():
        self.push_out_message(message)


# ---- beginning


def test_what_is_there_before_the_connection() -> None:
    alone = WebsocketsCtrlBase()
    assert alone.request is None
    assert alone.protocol is None
    assert alone.remote_addr is None
    assert alone.close_code is None
    assert alone.close_reason == ""
    assert alone.latency is None
    assert alone.should_stop() is False
    assert alone.pop_in_message() is None
    assert alone.pop_out_message() is None
    assert alone.wait_stopped(0) is True
    assert alone.ping() is None


def test_ids_differ() -> None:
    ids = {WebsocketsCtrlBase().id for _ in range(100)}
    assert len(ids) == 100
    assert all(isinstance(name, str) and name for name in ids)


@own_thread
def test_request_protocol_and_address_are_those_of_the_upgrade() -> None:
    with drive(WebsocketsCtrlBase(), "/chat/lobby?name=ann", params={"room": "lobby"}, protocol="v1") as driver:
        request = driver.controller.request
        assert request is not None
        assert request.path == "/chat/lobby"
        assert request.query["name"] == "ann"
        assert request.params == {"room": "lobby"}
        assert driver.controller.protocol == "v1"


@kinds
@own_thread
def test_on_start_runs_the_handler(kind: str) -> None:
    with drive(controller(kind, lambda self: self.push_out_message("started"))) as driver:
        driver.expect("started")


@kinds
@own_thread
def test_an_override_of_on_start_decides_when_the_handler_starts(kind: str) -> None:
    def on_start(self: Base) -> None:
        self.noted.append("before")
        WebsocketsCtrlBase.on_start(self)

    with drive(controller(kind, lambda self: self.push_out_message(str(self.noted)), on_start=on_start)) as driver:
        driver.expect("['before']")


@kinds
@own_thread
def test_on_start_a_second_time_is_refused(kind: str) -> None:
    with drive(controller(kind, waits)) as driver, pytest.raises(RuntimeError, match="one connection"):
        driver.controller.on_start()


def test_only_one_attribute_of_an_instance_is_taken() -> None:
    """A subclass may use any other name for its own."""
    assert [name for name in vars(WebsocketsCtrlBase()) if not name.startswith("__")] == ["_krait"]


def test_every_setting_that_a_class_can_override_is_an_attribute_of_the_base_class() -> None:
    settings = {option.name for option in config.options() if option.metadata["per_controller"]}
    assert {name for name in settings if getattr(WebsocketsCtrlBase, name, "missing") is not None} == set()


def test_the_public_names() -> None:
    names = {name for name in dir(WebsocketsCtrlBase) if not name.startswith("_")}
    assert {
        "on_start", "on_thread_start", "on_in_message", "on_in_message_internal", "on_stop", "pop_in_message",
        "messages", "push_out_message", "pop_out_message", "should_stop", "wait_stop", "wait_stopped", "close",
        "close_code", "close_reason", "request", "protocol", "remote_addr", "id", "runs_on", "slow_consumer",
    } <= names  # fmt: skip


@pytest.mark.parametrize(
    ("method", "defaults"),
    [
        ("__init__", {"use_in_message_queue": True}),
        ("pop_in_message", {"timeout": 0}),
        ("wait_stop", {"timeout": None}),
        ("wait_stopped", {"timeout": None}),
        ("close", {"code": 1000, "reason": ""}),
    ],
)
def test_defaults(method: str, defaults: dict[str, Any]) -> None:
    parameters = inspect.signature(getattr(WebsocketsCtrlBase, method)).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


# ---- messages in


@kinds
@own_thread
def test_pop_in_message_gives_messages_in_order(kind: str) -> None:
    with drive(controller(kind, waits)) as driver:
        for message in ("a", b"b", "", b""):
            driver.send(message)
        assert [driver.controller.pop_in_message() for _ in range(5)] == ["a", b"b", "", b"", None]


@kinds
@pytest.mark.parametrize("timeout", [None, 30])
@own_thread
def test_pop_in_message_waits_for_a_message(kind: str, timeout: float | None) -> None:
    def handler(self: Base) -> None:
        self.here.set()
        self.push_out_message(f"got {self.pop_in_message(timeout)}")

    with drive(controller(kind, handler)) as driver:
        assert driver.controller.here.wait(DEADLINE)
        driver.send("a")
        driver.expect("got a")


@kinds
@own_thread
def test_pop_in_message_gives_none_after_its_timeout(kind: str) -> None:
    def handler(self: Base) -> None:
        started = time.monotonic()
        self.push_out_message(f"{self.pop_in_message(0.02)} {time.monotonic() - started >= 0.02}")

    with drive(controller(kind, handler)) as driver:
        driver.expect("None True")


@kinds
@pytest.mark.parametrize("timeout", [None, 30])
@own_thread
def test_the_end_wakes_a_pop(kind: str, timeout: float | None) -> None:
    def handler(self: Base) -> None:
        self.here.set()
        self.noted.append(self.pop_in_message(timeout))

    with drive(controller(kind, handler)) as driver:
        assert driver.controller.here.wait(DEADLINE)
        driver.close()
        assert driver.controller.wait_stopped(DEADLINE)
        assert driver.controller.noted == [None]


@kinds
@own_thread
def test_what_had_arrived_can_be_popped_after_the_end(kind: str) -> None:
    def handler(self: Base) -> None:
        self.wait_stop()
        self.noted.extend(self.messages())

    with drive(controller(kind, handler)) as driver:
        driver.send("a")
        driver.send("b")
        driver.close()
        assert driver.controller.wait_stopped(DEADLINE)
        assert driver.controller.noted == ["a", "b"]


@kinds
@own_thread
def test_what_had_arrived_can_be_popped_after_the_end_through_a_hook_that_queues_too(kind: str) -> None:
    """Failed: what the hook had not seen when the connection ended was dropped when it queued it."""

    def on_in_message(self: Base, message: Any) -> None:
        self.here.set()
        self.go.wait(DEADLINE)
        WebsocketsCtrlBase.on_in_message(self, message)

    def handler(self: Base) -> None:
        self.noted.extend(self.messages())

    with drive(controller(kind, handler, on_in_message=on_in_message)) as driver:
        driver.send("a")
        driver.send("b")
        assert driver.controller.here.wait(DEADLINE)
        driver.close()
        driver.controller.go.set()
        assert driver.controller.wait_stopped(DEADLINE)
        # The end woke the handler's wait; what the hook queued after that is there all the same.
        late = iter(driver.controller.pop_in_message, None)
        assert [*driver.controller.noted, *late] == ["a", "b"]


@kinds
@own_thread
def test_a_last_message_is_not_overtaken_by_the_end(kind: str) -> None:
    """The client sends and closes at once; the handler is anywhere."""
    for _ in range(50):
        with drive(controller(kind, lambda self: self.noted.extend(self.messages()))) as driver:
            driver.send("a")
            driver.send("last")
            driver.close()
            assert driver.controller.wait_stopped(DEADLINE)
            assert driver.controller.noted == ["a", "last"]


@kinds
@own_thread
def test_messages_ends_with_the_connection(kind: str) -> None:
    with drive(controller(kind, echoes)) as driver:
        driver.send("a")
        driver.expect("a")
        driver.send(b"\xff")
        driver.expect(b"\xff")
    assert driver.controller.close_code == 1000


@kinds
@own_thread
def test_without_a_queue_popping_is_an_error(kind: str) -> None:
    instance = type("Controller", (Base,), {"runs_on": kind, "on_thread_start": waits})(use_in_message_queue=False)
    with drive(instance) as driver:
        driver.send("discarded")
        for timeout in (0, None, 1):
            with pytest.raises(RuntimeError, match="on_in_message"):
                instance.pop_in_message(timeout)
        with pytest.raises(RuntimeError, match="use_in_message_queue"):
            next(instance.messages())


@kinds
@pytest.mark.parametrize("queue", [True, False])
@own_thread
def test_the_event_model(kind: str, queue: bool) -> None:
    def on_in_message(self: Base, message: Any) -> None:
        self.push_out_message(f"saw {message}")

    instance = type("Controller", (Base,), {"runs_on": kind, "on_in_message": on_in_message})(queue)
    with drive(instance) as driver:
        for number in range(3):
            driver.send(str(number))
        for number in range(3):
            driver.expect(f"saw {number}")
        assert not instance.should_stop(), "it stays open"


@own_thread
def test_the_event_model_on_the_loop() -> None:
    def on_in_message(self: Base, message: Any) -> None:
        self.push_out_message(message)

    with drive(controller("loop", on_in_message=on_in_message)) as driver:
        driver.send("a")
        assert driver.receive(0) == "a", "it has been called when the message has arrived"
        assert not driver.controller.should_stop()


@kinds
@own_thread
def test_a_hook_and_a_handler_in_one_controller(kind: str) -> None:
    def on_in_message(self: Base, message: Any) -> None:
        WebsocketsCtrlBase.on_in_message(self, message.upper())

    with drive(controller(kind, echoes, on_in_message=on_in_message)) as driver:
        driver.send("a")
        driver.expect("A")


@kinds
@own_thread
def test_hooks_are_called_one_at_a_time(kind: str) -> None:
    def on_in_message(self: Base, message: Any) -> None:
        self.noted.append(f"begin {message}")
        self.go.wait(0.005)
        self.noted.append(f"end {message}")
        if message == "3":
            self.here.set()

    with drive(controller(kind, on_in_message=on_in_message)) as driver:
        for number in range(4):
            driver.send(str(number))
        assert driver.controller.here.wait(DEADLINE)
    expected = [f"{what} {number}" for number in range(4) for what in ("begin", "end")]
    assert driver.controller.noted == expected


@kinds
@own_thread
def test_popping_inside_of_on_in_message_does_not_deadlock(kind: str) -> None:
    """The in-lock is re-entrant (a fault of the original krait)."""

    def on_in_message(self: Base, message: Any) -> None:
        WebsocketsCtrlBase.on_in_message(self, message)
        self.push_out_message(f"popped {self.pop_in_message()}")

    with drive(controller(kind, on_in_message=on_in_message)) as driver:
        driver.send("a")
        driver.expect("popped a")


@own_thread
def test_popping_inside_of_on_in_message_does_not_deadlock_on_the_loop() -> None:
    def on_in_message(self: Base, message: Any) -> None:
        WebsocketsCtrlBase.on_in_message(self, message)
        self.push_out_message(f"popped {self.pop_in_message()}")

    with drive(controller("loop", on_in_message=on_in_message)) as driver:
        driver.send("a")
        driver.expect("popped a")


@kinds
@own_thread
def test_the_in_lock_is_held_while_a_message_is_taken_and_can_be_taken_again(kind: str) -> None:
    def on_in_message(self: Base, message: Any) -> None:
        if message == "outer":
            self.on_in_message_internal("inner")
        self.push_out_message(message)

    with drive(controller(kind, on_in_message=on_in_message)) as driver:
        driver.send("outer")
        driver.expect("inner")
        driver.expect("outer")


def test_on_in_message_internal_excludes_other_threads() -> None:
    instance = controller(
        "thread",
        on_in_message=lambda self, message: (self.here.set(), self.go.wait(DEADLINE), self.noted.append(message)),
    )
    first = Task(lambda: instance.on_in_message_internal("first"))
    assert instance.here.wait(DEADLINE)
    second = Task(lambda: instance.on_in_message_internal("second")).until_blocked()
    assert instance.noted == []
    instance.go.set()
    first.result()
    second.result()
    assert instance.noted == ["first", "second"]


# ---- messages out


@pytest.mark.parametrize(
    ("pushed", "queued"),
    [
        ("text", "text"),
        ("", ""),
        ("größer €", "größer €"),
        (b"bytes", b"bytes"),
        (b"", b""),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
        (memoryview(b"every second")[::2], b"eeyscn"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_be_pushed(pushed: Any, queued: str | bytes) -> None:
    instance = WebsocketsCtrlBase()
    assert instance.push_out_message(pushed) is True
    popped = instance.pop_out_message()
    assert popped == queued
    assert type(popped) is type(queued)
    assert instance.pop_out_message() is None


@pytest.mark.parametrize(
    "message", [None, 1, 1.5, ["a"], {"a": 1}, object()], ids=lambda message: type(message).__name__
)
def test_another_type_is_refused_by_name(message: Any) -> None:
    instance = WebsocketsCtrlBase()
    with pytest.raises(TypeError, match=f"not {type(message).__name__}"):
        instance.push_out_message(message)
    assert instance.pop_out_message() is None


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        WebsocketsCtrlBase().push_out_message("\ud83d")


def test_a_buffer_can_be_used_again_after_the_push() -> None:
    instance = WebsocketsCtrlBase()
    buffer = bytearray(b"before")
    instance.push_out_message(buffer)
    buffer[:] = b"after!"
    assert instance.pop_out_message() == b"before"


def test_pop_out_message_gives_them_in_order() -> None:
    instance = WebsocketsCtrlBase()
    for number in range(3):
        instance.push_out_message(str(number))
    assert [instance.pop_out_message() for _ in range(4)] == ["0", "1", "2", None]


@own_thread
def test_any_thread_may_push() -> None:
    with drive(controller("thread", waits)) as driver:
        tasks = [
            Task(lambda pusher=pusher: [driver.controller.push_out_message(f"{pusher} {n}") for n in range(100)])
            for pusher in range(8)
        ]
        assert all(all(task.result()) for task in tasks)
        received = [driver.receive() for _ in range(800)]
    for pusher in range(8):
        assert [message for message in received if message.startswith(f"{pusher} ")] == [  # type: ignore[arg-type]
            f"{pusher} {n}" for n in range(100)
        ]


@kinds
@own_thread
def test_a_message_pushed_after_the_end_is_refused(kind: str) -> None:
    """It was accepted and lost (a fault of the original krait)."""
    with drive(controller(kind, waits)) as driver:
        driver.close()
        assert driver.controller.push_out_message("late") is False
        assert driver.controller.pop_out_message() is None


@kinds
@own_thread
def test_a_message_pushed_after_on_stop_is_refused(kind: str) -> None:
    with drive(controller(kind, waits)) as driver:
        driver.controller.on_stop()
        assert driver.controller.push_out_message("late") is False


@pytest.mark.parametrize(
    ("policy", "pushed", "left"),
    [
        ("drop_new", [True, True, False, False], ["0", "1"]),
        ("drop_oldest", [True, True, True, True], ["2", "3"]),
    ],
)
def test_the_policies_that_drop(policy: str, pushed: list[bool], left: list[str]) -> None:
    instance = controller("thread", slow_consumer=policy, max_out_messages=2)
    assert [instance.push_out_message(str(number)) for number in range(4)] == pushed
    assert [instance.pop_out_message() for _ in range(3)] == [*left, None]
    assert not instance.should_stop()


@pytest.mark.parametrize("settings", [{"slow_consumer": "close"}, {"slow_consumer": "block", "push_timeout": 0.01}])
def test_the_policies_that_close_use_1013(settings: dict[str, Any]) -> None:
    instance = controller("thread", max_out_messages=2, **settings)
    assert [instance.push_out_message(str(number)) for number in range(4)] == [True, True, False, False]
    assert instance.close_code == 1013
    assert instance.should_stop()


def test_block_is_the_default_and_waits_for_room() -> None:
    instance = controller("thread", max_out_messages=1)
    instance.push_out_message("first")
    pushing = Task(lambda: instance.push_out_message("second")).until_blocked()
    assert instance.pop_out_message() == "first"
    assert pushing.result() is True
    assert instance.pop_out_message() == "second"


def test_the_end_wakes_a_blocked_push() -> None:
    instance = controller("thread", max_out_messages=1)
    instance.push_out_message("first")
    pushing = Task(lambda: instance.push_out_message("second")).until_blocked()
    instance.close(4000)
    assert pushing.result() is False
    assert instance.close_code == 4000


# ---- life


@kinds
@own_thread
def test_a_handler_that_returns_closes_with_1000_and_what_it_pushed_is_there(kind: str) -> None:
    with drive(controller(kind, lambda self: [self.push_out_message(str(n)) for n in range(3)])) as driver:
        driver.expect_close(1000)
        for number in range(3):
            driver.expect(str(number))


@kinds
@own_thread
def test_a_handler_that_raises_closes_with_1011_and_is_logged_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def handler(self: Base) -> None:
        raise KeyError("a secret")

    with drive(controller(kind, handler)) as driver:
        assert driver.expect_close(1011) == "", "the peer learns no detail"
        assert driver.controller.wait_stopped(DEADLINE)
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert driver.controller.id in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


@kinds
@own_thread
def test_an_exception_in_the_handler_sets_should_stop(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """It stayed False (a fault of the original krait), and whoever looked at it went on for ever."""

    def handler(self: Base) -> None:
        raise KeyError

    with drive(controller(kind, handler)) as driver:
        assert driver.controller.wait_stop(DEADLINE) is True
        assert driver.controller.should_stop() is True


@kinds
@own_thread
def test_a_hook_that_raises_closes_with_1011(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def on_in_message(self: Base, message: Any) -> None:
        self.noted.append(message)
        raise ValueError(message)

    with drive(controller(kind, on_in_message=on_in_message)) as driver:
        driver.send("a")
        driver.send("b")
        driver.expect_close(1011)
        assert driver.controller.wait_stopped(DEADLINE)
    assert driver.controller.noted == ["a"]
    assert len(caplog.records) == 1


@kinds
@own_thread
def test_a_hook_that_raises_stops_the_handler_too(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def on_in_message(self: Base, message: Any) -> None:
        raise ValueError(message)

    with drive(controller(kind, waits, on_in_message=on_in_message)) as driver:
        driver.send("a")
        driver.expect_close(1011)
        assert driver.controller.wait_stopped(DEADLINE)


@kinds
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1008, "no"), (3000, "größer"), (4999, "r" * 123)])
@own_thread
def test_close_ends_with_code_and_reason(kind: str, code: int, reason: str) -> None:
    with drive(controller(kind, waits)) as driver:
        driver.controller.close(code, reason)
        assert driver.expect_close(code) == reason
        assert (driver.controller.close_code, driver.controller.close_reason) == (code, reason)
        assert driver.controller.should_stop()
        assert driver.controller.wait_stopped(DEADLINE)


@kinds
@own_thread
def test_close_from_the_handler_and_from_a_hook(kind: str) -> None:
    with drive(controller(kind, lambda self: self.close(4000, "from the handler"))) as driver:
        assert driver.expect_close(4000) == "from the handler"
    with drive(controller(kind, on_in_message=lambda self, message: self.close(4001, message))) as driver:
        driver.send("from a hook")
        assert driver.expect_close(4001) == "from a hook"


def test_the_first_close_counts() -> None:
    instance = WebsocketsCtrlBase()
    instance.close(4000, "first")
    instance.close(4001, "second")
    assert (instance.close_code, instance.close_reason) == (4000, "first")


@pytest.mark.parametrize(
    ("code", "reason"),
    [(0, ""), (999, ""), (1004, ""), (1005, ""), (1006, ""), (1015, ""), (2999, ""), (5000, ""), (1000, "r" * 124),
     (1000, "é" * 62)],
)  # fmt: skip
def test_a_close_that_cannot_be_sent_is_refused(code: int, reason: str) -> None:
    instance = WebsocketsCtrlBase()
    with pytest.raises(ValueError, match="close"):
        instance.close(code, reason)
    assert instance.close_code is None
    assert not instance.should_stop()


@kinds
@own_thread
def test_close_does_not_wait_for_the_handler(kind: str) -> None:
    with drive(controller(kind, lambda self: self.go.wait(DEADLINE) and None)) as driver:
        driver.controller.close(4000)
        assert driver.controller.wait_stopped(0) is False
        driver.controller.go.set()
        assert driver.controller.wait_stopped(DEADLINE) is True


@kinds
@own_thread
def test_wait_stop_sleeps_until_its_timeout(kind: str) -> None:
    def handler(self: Base) -> None:
        started = time.monotonic()
        self.noted.append(self.wait_stop(0.02))
        self.noted.append(time.monotonic() - started >= 0.02)

    with drive(controller(kind, handler)) as driver:
        assert driver.controller.wait_stopped(DEADLINE)
        assert driver.controller.noted == [False, True]


@kinds
@pytest.mark.parametrize("timeout", [None, 30])
@own_thread
def test_wait_stop_wakes_at_the_stop(kind: str, timeout: float | None) -> None:
    def handler(self: Base) -> None:
        self.here.set()
        self.noted.append(self.wait_stop(timeout))

    with drive(controller(kind, handler)) as driver:
        assert driver.controller.here.wait(DEADLINE)
        driver.controller.on_stop()
        assert driver.controller.wait_stopped(DEADLINE)
        assert driver.controller.noted == [True]


@kinds
@own_thread
def test_on_stop_sets_the_flag_and_wakes_everything(kind: str) -> None:
    def handler(self: Base) -> None:
        self.noted += [self.should_stop(), self.pop_in_message(None), self.should_stop()]

    with drive(controller(kind, handler)) as driver:
        driver.controller.on_stop()
        assert driver.controller.wait_stopped(DEADLINE)
        assert driver.controller.noted[1:] == [None, True]


@pytest.mark.parametrize("kind", ["thread", "greenlet", "loop"])
@own_thread
def test_on_stop_by_the_user_ends_the_connection_with_1000(kind: str) -> None:
    with drive(controller(kind, None if kind == "loop" else waits)) as driver:
        driver.controller.on_stop()
        driver.controller.on_stop()
        assert driver.controller.wait_stopped(DEADLINE)
        assert driver.controller.close_code == 1000


@own_thread
def test_a_handler_that_stops_at_once_has_not_ended_yet() -> None:
    """Failed: the handler ran before its session knew it, and the connection was closed while it went on."""

    def handler(self: Base) -> None:
        self.on_stop()
        self.noted.append(self.close_code)

    for _ in range(20):
        with drive(controller("thread", handler)) as driver:
            assert driver.controller.wait_stopped(DEADLINE)
            driver.expect_close(1000)
            assert driver.controller.noted == [None]


@own_thread
def test_expect_close_waits_for_the_code_after_on_stop() -> None:
    """Failed: the stop flag was there, the code was not yet, and ``expect_close`` took that for a wrong code."""

    def handler(self: Base) -> None:
        self.here.wait(DEADLINE)
        self.on_stop()
        self.go.wait(DEADLINE)

    with drive(controller("thread", handler)) as driver:
        driver.controller.here.set()
        assert driver.controller.wait_stop(DEADLINE)
        expecting = Task(lambda: driver.expect_close(1000)).until_blocked()
        driver.controller.go.set()
        assert expecting.result() == ""


@kinds
@own_thread
def test_on_stop_is_called_once(kind: str) -> None:
    def on_stop(self: Base) -> None:
        self.noted.append(self.close_code)
        WebsocketsCtrlBase.on_stop(self)
        self.here.set()

    with drive(controller(kind, waits, on_stop=on_stop)) as driver:
        driver.controller.close(4000)
        driver.controller.close(4001)
        driver.close()
        assert driver.controller.here.wait(DEADLINE)
        assert driver.controller.wait_stopped(DEADLINE)
    assert driver.controller.noted == [4000]


@kinds
@own_thread
def test_on_stop_that_the_user_called_is_not_called_again(kind: str) -> None:
    def on_stop(self: Base) -> None:
        self.noted.append("stop")
        WebsocketsCtrlBase.on_stop(self)

    with drive(controller(kind, waits, on_stop=on_stop)) as driver:
        driver.controller.on_stop()
        assert driver.controller.wait_stopped(DEADLINE)
        driver.expect_close(1000)
    assert driver.controller.noted == ["stop"]


@kinds
@own_thread
def test_wait_stopped_needs_no_timeout(kind: str) -> None:
    """It raised TypeError without one (a fault of the original krait)."""
    with drive(controller(kind, lambda self: None)) as driver:
        assert driver.controller.wait_stopped() is True


@kinds
@own_thread
def test_wait_stopped_gives_up_after_its_timeout(kind: str) -> None:
    with drive(controller(kind, lambda self: self.go.wait(DEADLINE) and None)) as driver:
        started = time.monotonic()
        assert driver.controller.wait_stopped(0.02) is False
        assert time.monotonic() - started >= 0.02
        assert driver.controller.wait_stopped(0) is False
        driver.controller.go.set()
        assert driver.controller.wait_stopped() is True


@kinds
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("timeout", [None, 0, 30])
@own_thread
def test_a_handler_that_waits_for_itself_is_refused(kind: str, timeout: float | None, at_once: bool) -> None:
    """Failed at once, on a thread: the handler ran before its session knew it, and was told that it had ended."""

    def handler(self: Base) -> None:
        if not at_once:
            self.go.wait(DEADLINE)
        try:
            self.wait_stopped(timeout)
        except RuntimeError as error:
            self.push_out_message(str(error))

    with drive(controller(kind, handler)) as driver:
        driver.controller.go.set()
        assert "own end" in str(driver.receive())


@kinds
@pytest.mark.parametrize("with_handler", [True, False], ids=["with a handler", "event model"])
@own_thread
def test_a_hook_that_waits_for_itself_is_refused(kind: str, with_handler: bool) -> None:
    """Failed with a handler beside it: the hook joined the handler first, without a timeout for as long as it ran."""

    def on_in_message(self: Base, message: Any) -> None:
        try:
            self.push_out_message(f"returned {self.wait_stopped(0.01)}")
        except RuntimeError as error:
            self.push_out_message(str(error))

    with drive(controller(kind, waits if with_handler else None, on_in_message=on_in_message)) as driver:
        driver.send("a")
        assert "own end" in str(driver.receive())


@kinds
@own_thread
def test_every_wait_wakes_at_the_end(kind: str) -> None:
    """A pop, a sleep and a join, all without a timeout, in threads beside the handler."""
    with drive(controller(kind, waits)) as driver:
        instance = driver.controller
        waiting = [
            Task(wait) for wait in (lambda: instance.pop_in_message(None), instance.wait_stop, instance.wait_stopped)
        ]
        for task in waiting:
            task.until_blocked()
        driver.close()
        assert driver.controller.wait_stopped(DEADLINE)
        assert [task.result() for task in waiting] == [None, True, True]


def test_a_handler_that_has_called_gevent_can_wait() -> None:
    """A library that the handler uses may be built on gevent: its thread then has a hub of its own.

    Failed: the next wait without a timeout ended with LoopExit, and the connection with 1011.
    """

    def handler(self: Base) -> None:
        gevent.sleep(0)
        self.here.set()
        for message in self.messages():
            self.push_out_message(message)

    with drive(controller("thread", handler)) as driver:
        assert driver.controller.here.wait(DEADLINE)
        assert not driver.controller.wait_stop(0.1), "the handler ended instead of waiting"
        driver.send("a")
        driver.expect("a")


@kinds
@own_thread
def test_many_connections_at_once(kind: str) -> None:
    with ExitStack() as exits:
        drivers: list[Driver] = [exits.enter_context(drive(controller(kind, echoes))) for _ in range(100)]
        for number, driver in enumerate(drivers):
            driver.send(str(number))
        for number, driver in enumerate(drivers):
            driver.expect(str(number))


@own_thread
def test_an_infinite_push_timeout_is_refused_or_works() -> None:
    """Failed: the configuration took it and the push ended with OverflowError."""
    try:
        instance = controller("thread", max_out_messages=1, push_timeout=float("inf"))
    except ConfigError:
        return
    instance.push_out_message("first")
    pushing = Task(lambda: instance.push_out_message("second")).until_blocked()
    instance.pop_out_message()
    assert pushing.result() is True
