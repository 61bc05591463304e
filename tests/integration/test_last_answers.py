"""After a fault of its peer a handler may answer what came before, for a tenth of a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws import session
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import BINARY, CONTINUATION, FLAVOURS, POLLERS, TEXT, RawClient, eventually, frame

Serve = Callable[..., SiteServer]
EVERYWHERE = pytest.mark.parametrize(("flavour", "poller"), [(f, p) for f in FLAVOURS for p in POLLERS])
HANDLERS = pytest.mark.parametrize("runs_on", ["thread", "greenlet"])
AMPLE = 15.0
"""Seconds in the place of the tenth, so that a busy machine changes nothing: answers must still come at once."""

FAULTS = {
    "opcode": (frame(0x3, b"x"), 1002),
    "reserved bit": (frame(TEXT, "x", reserved=4), 1002),
    "no mask": (frame(TEXT, "x", masked=False), 1002),
    "no message begun": (frame(CONTINUATION, b"x"), 1002),
    "no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "too large": (frame(BINARY, b"x" * 2000), 1009),
}


@pytest.fixture
def ample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LAST_ANSWERS", AMPLE)


@EVERYWHERE
@pytest.mark.usefixtures("ample")
def test_what_came_before_the_fault_is_answered_before_the_close(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    site = serve(controller, runs_on=runs_on, poller=poller, max_message_size=1000)
    for name, (fault, code) in FAULTS.items():
        with RawClient(site.port) as client:
            messages = [f"{name} {number}" for number in range(20)]
            started = time.monotonic()
            client.send(b"".join(frame(TEXT, message) for message in messages) + fault + frame(TEXT, "behind it"))
            for message in messages:
                client.expect(message)
            client.expect_close(code)
            assert time.monotonic() - started < AMPLE, "the close waited although all was answered"


@HANDLERS
@pytest.mark.usefixtures("ample")
def test_a_handler_that_is_at_work_when_the_fault_comes(serve: Serve, runs_on: str) -> None:
    """It is not told to stop before it has answered."""
    seen: list[bool] = []

    class Slow(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            for message in self.messages():
                if message == "slow":
                    self.wait_stop(0.3)  # work that takes its time; the fault is there long before its end
                seen.append(self.should_stop())
                self.push_out_message(f"{message} answered")

    with RawClient(serve(Slow, runs_on=runs_on).port) as client:
        client.send(frame(TEXT, "slow") + frame(TEXT, "next") + frame(0x3))
        client.expect("slow answered")
        client.expect("next answered")
        client.expect_close(1002)
    assert seen == [False, False]


@HANDLERS
@pytest.mark.usefixtures("ample")
def test_a_handler_that_ends_does_not_hold_up_the_close(serve: Serve, runs_on: str) -> None:
    """The code is the handler's or the fault's, whichever is first."""

    class Once(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.push_out_message(f"{self.pop_in_message(None)} answered")

    with RawClient(serve(Once, runs_on=runs_on).port) as client:
        started = time.monotonic()
        client.send(frame(TEXT, "one") + frame(0x3))
        messages, code, _ = client.skip_to_close()
        client.expect_end()
        assert time.monotonic() - started < AMPLE
    assert messages == ["one answered"]
    assert code in (1000, 1002)


@HANDLERS
@pytest.mark.parametrize("poller", POLLERS)
@pytest.mark.parametrize("before", [0, 3], ids=["nothing to answer", "three messages"])
def test_a_handler_that_never_pops_delays_the_close_a_little(
    serve: Serve, before: int, poller: str, runs_on: str
) -> None:
    stopped: list[Any] = []

    class Deaf(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.wait_stop()
            stopped.append((self.close_code, self.pop_in_message()))

    site = serve(Deaf, runs_on=runs_on, poller=poller, stop_timeout=60, close_timeout=60, ping_interval=60)
    with RawClient(site.port) as client:
        started = time.monotonic()
        client.send(frame(TEXT, "unheard") * before + frame(0x3))
        client.expect_close(1002)
        elapsed = time.monotonic() - started
    assert 0.09 <= elapsed < AMPLE, f"{elapsed:.2f} s; every other limit is a minute"
    eventually(lambda: stopped)
    assert stopped == [(1002, "unheard" if before else None)]


@EVERYWHERE
@pytest.mark.usefixtures("ample")
def test_a_fault_while_the_handler_waits_closes_at_once(serve: Serve, flavour: str, poller: str) -> None:
    runs_on, controller = FLAVOURS[flavour]
    with RawClient(serve(controller, runs_on=runs_on, poller=poller).port) as client:
        client.send_frame(TEXT, "there?")
        client.expect("there?")
        started = time.monotonic()
        client.send(frame(0x3))
        client.expect_close(1002)
        assert time.monotonic() - started < AMPLE


@HANDLERS
@pytest.mark.usefixtures("ample")
def test_a_peer_that_leaves_after_its_fault(serve: Serve, runs_on: str) -> None:
    """It is gone: nothing waits for a handler that does not answer."""
    stopped: list[int | None] = []

    class Deaf(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            self.wait_stop()
            stopped.append(self.close_code)

    site = serve(Deaf, runs_on=runs_on)
    started = time.monotonic()
    with RawClient(site.port) as client:
        client.send(frame(TEXT, "unheard") + frame(0x3))
        client.reset()
    eventually(lambda: stopped)
    assert time.monotonic() - started < AMPLE
    assert stopped[0] in (1002, 1006)
