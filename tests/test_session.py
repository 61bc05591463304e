"""A session on a loop and a connection of the test's own: beginning, the one close path, flow control, abandonment."""

from __future__ import annotations

import contextvars
import logging
from typing import Any

import pytest

from krait_ws.config import Config
from krait_ws.errors import ConfigError
from krait_ws.session import Session
from krait_ws.waiting import Signal
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import DEADLINE, HandLoop, RecordingTransport, Task, upgrade_request


class Run:
    """A controller that was accepted, its loop, its connection, and what was told when it was over."""

    def __init__(self, controller: WebsocketsCtrlBase, *, attach: bool = True, **options: Any) -> None:
        self.controller = controller
        self.session: Session = controller._krait
        self.loop = HandLoop()
        self.over: list[Session] = []
        self.transport = RecordingTransport(self.session)
        self.session.accept(self.loop, Config(**options), upgrade_request("/chat"), "chat", self.over.append)
        if attach:
            self.session.attach(self.transport)

    def until_closed(self) -> list[tuple[int, str]]:
        self.loop.run_until(lambda: self.transport.closed, "the connection was told to close")
        return self.transport.closed

    def until_over(self) -> None:
        self.loop.run_until(lambda: self.over, "the session reported its end")
        assert self.over == [self.session]

    def finish(self) -> None:
        """The client is gone."""
        self.session.transport_gone(1006)
        self.until_over()


class Waits(WebsocketsCtrlBase):
    """Waits for its end; counts its stops."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0
        self.code_at_stop: int | None = None
        self.stopped = Signal()

    def on_thread_start(self) -> None:
        self.wait_stop()

    def on_stop(self) -> None:
        super().on_stop()
        self.stops += 1
        self.code_at_stop = self.close_code
        self.stopped.set()


class Stuck(WebsocketsCtrlBase):
    """A handler that does not end until the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.release = Signal()
        self.started = Signal()

    def on_thread_start(self) -> None:
        self.started.set()
        self.release.wait(DEADLINE)


class Pushes(WebsocketsCtrlBase):
    """Pushes ten messages and returns."""

    def on_thread_start(self) -> None:
        for number in range(10):
            self.push_out_message(str(number))


class Event(WebsocketsCtrlBase):
    """Event model."""

    def __init__(self, use_in_message_queue: bool = True) -> None:
        super().__init__(use_in_message_queue)
        self.seen: list[Any] = []

    def on_in_message(self, message: Any) -> None:
        self.seen.append(message)


# ---- beginning


def test_accept_binds_request_protocol_and_settings() -> None:
    run = Run(Waits(), max_out_messages=7)
    assert run.controller.request is run.session.request
    assert run.controller.request is not None
    assert run.controller.request.path == "/chat"
    assert run.controller.protocol == "chat"
    assert run.controller.remote_addr == "192.0.2.7"
    assert run.session.config.max_out_messages == 7
    run.finish()


def test_the_settings_of_the_class_win() -> None:
    class Own(Waits):
        max_out_messages = 3
        slow_consumer = "drop_new"

    run = Run(Own(), max_out_messages=7, max_in_messages=9)
    assert run.session.config.max_out_messages == 3
    assert run.session.config.max_in_messages == 9
    assert [run.controller.push_out_message("x") for _ in range(4)] == [True, True, True, False]
    run.finish()


def test_a_setting_of_the_class_that_cannot_be_used_is_refused() -> None:
    class Bad(WebsocketsCtrlBase):
        runs_on = "fibre"

    with pytest.raises(ConfigError, match=r"Bad.*runs_on.*'fibre'.*thread"):
        Bad()


def test_what_on_start_raises_comes_out_of_accept() -> None:
    class Fails(WebsocketsCtrlBase):
        def on_start(self) -> None:
            raise LookupError("no such room")

    with pytest.raises(LookupError, match="no such room"):
        Run(Fails())


def test_a_handler_sees_the_context_of_its_route_script() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen = []

    class Reads(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            seen.append(variable.get("nothing"))

    context = contextvars.copy_context()
    context.run(variable.set, "of the script")
    run = context.run(Run, Reads())
    run.until_closed()
    assert seen == ["of the script"]
    run.finish()


def test_what_was_pushed_before_the_connection_came_is_sent_when_it_comes() -> None:
    run = Run(Pushes(), attach=False)
    assert run.controller.wait_stopped(DEADLINE)
    run.loop.run()
    run.session.attach(run.transport)
    run.loop.run()
    assert run.transport.messages == [str(number) for number in range(10)]
    assert run.transport.closed == [(1000, "")]
    run.finish()


def test_a_connection_that_never_comes_ends_the_session() -> None:
    run = Run(Waits(), attach=False)
    run.finish()
    assert run.controller.close_code == 1006
    assert run.controller.should_stop()


# ---- the end


def test_a_handler_that_returns_is_flushed_and_closed_with_1000() -> None:
    run = Run(Pushes())
    assert run.until_closed() == [(1000, "")]
    assert run.transport.messages == [str(number) for number in range(10)]
    run.finish()
    assert run.controller.close_code == 1000


def test_the_end_is_reported_once_when_connection_and_handler_are_gone() -> None:
    run = Run(Stuck())
    assert run.controller.started.wait(DEADLINE)
    run.session.transport_gone(1001, "away")
    run.loop.run()
    assert run.over == [], "the handler still runs"
    run.controller.release.set()
    run.until_over()
    run.session.transport_gone(1006)
    run.loop.run()
    assert len(run.over) == 1
    assert (run.controller.close_code, run.controller.close_reason) == (1001, "away")


def test_the_end_is_not_reported_while_the_connection_is_there() -> None:
    run = Run(Pushes())
    run.until_closed()
    assert run.controller.wait_stopped(DEADLINE)
    run.loop.run()
    assert run.over == []
    run.finish()


def test_the_first_end_counts() -> None:
    run = Run(Waits())
    assert run.session.end(4000, "first") is True
    assert run.session.end(4001, "second") is False
    run.session.transport_gone(1006, "third")
    run.until_over()
    assert (run.controller.close_code, run.controller.close_reason) == (4000, "first")


def test_of_many_ends_at_once_one_counts_and_on_stop_is_called_once() -> None:
    for _ in range(20):
        run = Run(Waits())
        go = Signal()
        codes = range(4000, 4010)

        def end(code: int, run: Run = run, go: Signal = go) -> bool:
            go.wait(DEADLINE)
            return run.session.end(code)

        tasks = [Task(lambda code=code: end(code)) for code in codes]
        go.set()
        won = [code for code, task in zip(codes, tasks, strict=True) if task.result()]
        run.finish()
        assert won == [run.controller.close_code]
        assert run.transport.closed in ([], [(won[0], "")])
        assert run.controller.stops == 1


@pytest.mark.parametrize(
    ("how", "runs_on"),
    [(how, runs_on) for how in ("client", "close", "loss") for runs_on in ("thread", "loop")] + [("handler", "thread")],
)
def test_on_stop_is_called_once_with_the_code_whatever_ended_it(how: str, runs_on: str) -> None:
    class Noted(Waits):
        pass

    if runs_on == "loop":
        Noted.runs_on = "loop"
        Noted.on_thread_start = WebsocketsCtrlBase.on_thread_start  # type: ignore[method-assign]
    elif how == "handler":
        Noted.on_thread_start = lambda self: None  # type: ignore[method-assign]
    run = Run(Noted())
    expected = {"client": 1001, "close": 4000, "loss": 1006, "handler": 1000}[how]
    if how == "client":
        run.session.end(1001)
    elif how == "close":
        run.controller.close(4000)
    elif how == "loss":
        run.session.transport_gone(1006)
    run.loop.run_until(run.controller.stopped.is_set, "on_stop was called")
    run.finish()
    assert run.controller.stops == 1
    assert run.controller.code_at_stop == expected


def test_an_on_stop_that_forgets_the_base_class_cannot_keep_anything_waiting() -> None:
    class Forgets(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.popped = self.pop_in_message(None)

        def on_stop(self) -> None:
            """Does not call super()."""

    run = Run(Forgets())
    run.session.transport_gone(1006)
    run.until_over()
    assert run.controller.popped is None
    assert run.controller.should_stop()


def test_an_on_stop_that_raises_is_logged_once_and_hurts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Raises(Waits):
        def on_stop(self) -> None:
            super().on_stop()
            raise OSError("disk full")

    run = Run(Raises())
    run.session.end(1001)
    run.finish()
    assert run.controller.close_code == 1001
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [OSError]


def test_an_on_stop_that_blocks_does_not_hold_up_the_one_who_ends() -> None:
    class Blocks(Waits):
        release = Signal()

        def on_stop(self) -> None:
            super().on_stop()
            Blocks.release.wait(DEADLINE)

    run = Run(Blocks())
    assert run.session.end(1001) is True
    assert run.until_closed() == [(1001, "")]
    Blocks.release.set()
    run.finish()


def test_a_handler_that_raises_is_logged_once_with_the_connection_and_closed_with_1011(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Raises(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.push_out_message("before")
            raise ZeroDivisionError("a secret")

    run = Run(Raises())
    assert run.until_closed() == [(1011, "")], "the peer learns no detail"
    assert run.transport.messages == ["before"]
    run.finish()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert run.controller.id in record.getMessage()
    assert record.exc_info is not None
    assert "a secret" in str(record.exc_info[1])


def test_a_handler_that_leaves_with_sys_exit_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    class Leaves(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            raise SystemExit

    run = Run(Leaves())
    assert run.until_closed() == [(1000, "")]
    run.finish()
    assert not caplog.records


@pytest.mark.parametrize("is_given_up", [False, True], ids=["by the timer first", "by the server first"])
def test_a_handler_that_does_not_end_is_abandoned_and_logged_with_its_stack(
    caplog: pytest.LogCaptureFixture, is_given_up: bool
) -> None:
    class StuckInHere(Stuck):
        def on_thread_start(self) -> None:
            self.this_is_where_it_is_stuck()

        def this_is_where_it_is_stuck(self) -> None:
            super().on_thread_start()

    run = Run(StuckInHere(), stop_timeout=3)
    assert run.controller.started.wait(DEADLINE)
    run.session.end(1001)
    run.loop.run()
    assert [seconds for seconds, _ in run.loop.timers] == [3]
    if is_given_up:
        run.session.give_up()
    run.loop.fire_timers()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    run.session.give_up()  # the server ends just then
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == [record], "once"
    assert run.controller.id in record.getMessage()
    assert "StuckInHere" in record.getMessage()
    assert "this_is_where_it_is_stuck" in record.getMessage()
    run.controller.release.set()
    run.finish()


def test_no_stop_timer_is_left_when_the_handler_ends_in_time() -> None:
    run = Run(Stuck(), stop_timeout=3)
    assert run.controller.started.wait(DEADLINE)
    run.session.end(1001)
    run.loop.run()
    run.controller.release.set()
    run.finish()
    assert run.loop.timers == []


def test_the_event_model_stays_open_until_somebody_closes() -> None:
    run = Run(Event())
    run.session.receive(["a"])
    run.loop.run_until(lambda: run.controller.seen == ["a"], "the hook was called")
    assert not run.controller.should_stop()
    assert run.transport.closed == []
    run.controller.close(4000, "done")
    assert run.until_closed() == [(4000, "done")]
    run.finish()


def test_a_controller_without_any_hook_stays_open_until_somebody_closes() -> None:
    run = Run(WebsocketsCtrlBase())
    run.session.receive(["a"])
    run.loop.run()
    assert run.transport.closed == []
    assert run.controller.pop_in_message() == "a"
    run.controller.close()
    assert run.until_closed() == [(1000, "")]
    run.finish()


# ---- messages and flow


def test_pushing_tells_the_connection_once() -> None:
    run = Run(Waits())
    run.controller.push_out_message("a")
    run.controller.push_out_message(b"b")
    run.loop.run()
    assert run.transport.messages == ["a", b"b"]
    run.finish()


def test_receive_says_when_to_stop_reading_and_the_connection_is_told_when_there_is_room() -> None:
    run = Run(Waits(), max_in_messages=4)
    assert run.session.receive(["a", "b", "c"]) is True
    assert run.session.receive(["d"]) is False
    assert not run.session.receive([])
    assert [run.controller.pop_in_message() for _ in range(2)] == ["a", "b"]
    run.loop.run()
    assert run.transport.resumed == 1
    assert run.session.receive([])
    run.finish()


def test_a_slow_event_hook_stops_the_reading_too() -> None:
    class Slow(Event):
        go = Signal()

        def on_in_message(self, message: Any) -> None:
            Slow.go.wait(DEADLINE)
            super().on_in_message(message)

    run = Run(Slow(), max_in_messages=4)
    assert run.session.receive([str(number) for number in range(10)]) is False
    Slow.go.set()
    run.loop.run_until(lambda: run.transport.resumed, "the connection was told to read on")
    run.loop.run_until(lambda: len(run.controller.seen) == 10, "all were seen")
    assert run.controller.seen == [str(number) for number in range(10)]
    run.finish()


def test_a_hook_that_queues_waits_for_the_one_who_pops() -> None:
    """on_in_message is overridden and passes on: both boxes are bounded."""

    class Passes(WebsocketsCtrlBase):
        def on_in_message(self, message: Any) -> None:
            super().on_in_message(message)

    run = Run(Passes(), max_in_messages=4)
    sent = [str(number) for number in range(100)]
    popped: list[Any] = []
    for message in sent:
        while not run.session.receive([]):
            message_popped = run.controller.pop_in_message(DEADLINE)
            assert message_popped is not None
            popped.append(message_popped)
            run.loop.run()
        run.session.receive([message])
        run.loop.run()  # wakes the thread that delivers
    while len(popped) < len(sent):
        popped.append(run.controller.pop_in_message(DEADLINE))
    assert popped == sent
    run.finish()


def test_on_the_loop_hooks_are_called_where_the_messages_arrive() -> None:
    class OnLoop(Event):
        runs_on = "loop"

        def on_in_message(self, message: Any) -> None:
            super().on_in_message(message)
            self.push_out_message(message)

    run = Run(OnLoop())
    run.session.receive(["a", b"b"])
    assert run.controller.seen == ["a", b"b"]
    run.loop.run()
    assert run.transport.messages == ["a", b"b"]
    run.controller.close()
    assert run.until_closed() == [(1000, "")]
    assert run.controller.wait_stopped(0) is True
    run.finish()


def test_on_the_loop_a_hook_that_raises_closes_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    class OnLoop(Event):
        runs_on = "loop"

        def on_in_message(self, message: Any) -> None:
            super().on_in_message(message)
            raise ValueError(message)

    run = Run(OnLoop())
    run.session.receive(["a", "b"])
    assert run.controller.seen == ["a"], "after the end no hook is called"
    assert run.until_closed() == [(1011, "")]
    assert len(caplog.records) == 1
    run.finish()


def test_on_the_loop_a_full_out_mailbox_stops_the_reading() -> None:
    class OnLoop(Event):
        runs_on = "loop"

        def on_in_message(self, message: Any) -> None:
            self.push_out_message(message)

    run = Run(OnLoop(), max_out_messages=10)
    assert run.session.receive(["x"] * 5) is True
    assert run.session.receive(["x"] * 2) is False
    run.loop.run()
    assert run.session.receive([])
    run.finish()


def test_a_handler_on_the_loop_is_refused() -> None:
    class Wrong(WebsocketsCtrlBase):
        runs_on = "loop"

        def on_thread_start(self) -> None:
            """Would stall every connection."""

    with pytest.raises(ConfigError, match=r"Wrong.*loop.*on_in_message"):
        Run(Wrong())


@pytest.mark.parametrize("policy", ["block", "close"])
def test_a_client_that_does_not_read_is_closed_with_1013(policy: str) -> None:
    run = Run(Waits(), attach=False, slow_consumer=policy, max_out_messages=2, push_timeout=0.01)
    assert [run.controller.push_out_message("x") for _ in range(4)] == [True, True, False, False]
    assert run.controller.close_code == 1013
    run.session.attach(run.transport)
    assert run.transport.closed[0][0] == 1013
    run.finish()


# ---- pings


def test_a_ping_waits_for_its_pong_and_gives_the_round_trip() -> None:
    run = Run(Waits())
    assert run.controller.latency is None
    pinging = Task(lambda: run.controller.ping(DEADLINE))
    run.loop.run_until(lambda: run.transport.pings, "a ping was sent")
    run.session.pong_received(0.25)
    assert pinging.result() == 0.25
    assert run.controller.latency == 0.25
    run.finish()


def test_a_ping_without_a_wait_only_sends() -> None:
    run = Run(Waits())
    assert run.controller.ping() is None
    run.loop.run()
    assert run.transport.pings == 1
    run.finish()


def test_a_ping_that_is_not_answered_in_time_gives_none() -> None:
    run = Run(Waits())
    assert run.controller.ping(0.01) is None
    run.finish()


@pytest.mark.parametrize("timeout", [None, 30])
def test_the_end_of_the_connection_ends_a_ping(timeout: float | None) -> None:
    run = Run(Waits())
    pinging = Task(lambda: run.controller.ping(timeout)).until_blocked()
    run.session.transport_gone(1006)
    assert pinging.result() is None
    run.until_over()
    assert run.controller.ping(timeout) is None
