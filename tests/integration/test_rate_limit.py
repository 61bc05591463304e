"""Clients that send too much to controllers with a rate, in every way to run one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from websockets.sync.client import connect

from krait_ws.rate import Rate
from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import (
    CLOSE,
    FLAVOURS,
    PATIENCE,
    PING,
    POLLERS,
    PONG,
    TEXT,
    RawClient,
    close_frame,
    eventually,
    frame,
)

Serve = Callable[..., SiteServer]
each_flavour = pytest.mark.parametrize("flavour", FLAVOURS)


def limited(flavour: str, limit: tuple[int, float], **attributes: Any) -> type[WebsocketsCtrlBase]:
    """An echo with a rate, which notes when it took each message."""
    kind, base = FLAVOURS[flavour]
    times: list[float] = []

    class Limited(base):  # type: ignore[valid-type,misc]
        def on_in_message_internal(self, message: Any) -> None:
            times.append(time.monotonic())
            super().on_in_message_internal(message)

        def on_thread_start(self) -> None:
            for message in self.messages():
                times.append(time.monotonic())
                self.push_out_message(message)

    if "events" in flavour or flavour == "loop":
        del Limited.on_thread_start
    else:
        del Limited.on_in_message_internal
    for name, value in {"runs_on": kind, "rate_limit": limit, **attributes}.items():
        setattr(Limited, name, value)
    Limited.times = times  # type: ignore[attr-defined]
    return Limited


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each message was let through, by the clock of the rule. A handler's own tells when it got to run, too."""
    times: list[float] = []
    taken = Rate.taken

    def note(self: Rate, full_at: float, now: float, count: int) -> float:
        times.extend([now] * count)
        return taken(self, full_at, now, count)

    monkeypatch.setattr(Rate, "taken", note)
    return times


def keeps_to(passed: list[float], taken: list[float], count: int, seconds: float) -> bool:
    """Whether no span of time has more than a bucket allows, and no handler took a message before it might."""
    rounding = 0.000_1
    return all(before <= after for before, after in zip(passed, taken, strict=True)) and all(
        later - earlier >= (number + 1 - count) * seconds / count - rounding
        for first, earlier in enumerate(passed)
        for number, later in enumerate(passed[first:])
    )


@each_flavour
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_a_burst_waits_and_nothing_is_lost(serve: Serve, passed: list[float], flavour: str, compressed: bool) -> None:
    controller = limited(flavour, (20, 0.2))
    site = serve(controller, compress=compressed)
    sent = [f"{number} " + "x" * (number % 3 * 600) for number in range(80)]
    with connect(f"ws://127.0.0.1:{site.port}/", compression="deflate" if compressed else None, proxy=None) as client:
        started = time.monotonic()
        for message in sent:
            client.send(message)
        assert [client.recv(PATIENCE) for _ in sent] == sent
        assert time.monotonic() - started >= 0.6 - 0.05
    times = controller.times  # type: ignore[attr-defined]
    assert len(times) == 80
    assert keeps_to(passed, times, 20, 0.2)


@each_flavour
def test_a_burst_in_one_packet_with_a_close_behind_it(serve: Serve, passed: list[float], flavour: str) -> None:
    """The close waits behind the messages, in the socket: none of them is lost."""
    controller = limited(flavour, (5, 0.1))
    site = serve(controller)
    with RawClient(site.port) as client:
        client.send(b"".join(frame(TEXT, str(number)) for number in range(20)) + close_frame(1000))
        frames = []
        while not frames or frames[-1].opcode != CLOSE:
            frames.append(client.receive_frame())
        client.expect_end()
    times = controller.times  # type: ignore[attr-defined]
    eventually(lambda: len(times) == 20, what="a handler takes at last what came before the close")
    assert keeps_to(passed, times, 5, 0.1)


@each_flavour
def test_a_strict_one_closes_with_1008(serve: Serve, flavour: str) -> None:
    controller = limited(flavour, (5, 60.0), rate_policy="close")
    site = serve(controller)
    with RawClient(site.port) as client:
        for number in range(5):
            client.send_frame(TEXT, str(number))
            client.expect(str(number))
        client.send(b"".join(frame(TEXT, "more") for _ in range(300)))
        messages, code, reason = client.skip_to_close()
        assert (messages, code, reason) == ([], 1008, "too many messages in a short time")
        client.expect_end()
    assert len(controller.times) == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize("poller", POLLERS)
def test_tcp_makes_the_client_wait(serve: Serve, poller: str) -> None:
    """The server takes what its buffers hold, and no more; a neighbour does not notice."""
    site = serve({"slow": limited("thread", (5, 3600.0)), "free": FLAVOURS["loop"][1]}, poller=poller)
    with RawClient(site.port, "/slow") as client, RawClient(site.port, "/free") as neighbour:
        client.send_until_blocked(frame(TEXT, "x" * 60_000), limit=64 << 20)
        (session,) = (one for one in site.server.sessions if one.route == "/slow")
        eventually(lambda: session.messages_in >= 6)
        neighbour.send_frame(TEXT, "on")
        neighbour.expect("on")
        assert session.messages_in <= 7
        client.reset()
        if poller == "epoll":  # the other one cannot see a hang-up of a socket that it does not read
            eventually(lambda: len(site.server.sessions) == 1, what="the one that is gone is noticed while it waits")


@each_flavour
def test_who_keeps_to_the_rate_is_heard_at_once(serve: Serve, flavour: str) -> None:
    """Also when there is no token left: pings and a close are no messages."""
    site = serve(limited(flavour, (3, 3600.0)))
    with RawClient(site.port) as client:
        for number in range(3):
            client.send_frame(TEXT, str(number))
            client.expect(str(number))
        for number in range(40):
            client.send_frame(PING, str(number))
            pong = client.receive_frame()
            assert (pong.opcode, pong.payload) == (PONG, str(number).encode())
        client.send(close_frame(1000))
        client.expect_close(1000, answer=False)


@pytest.mark.parametrize("flavour", ["thread", "greenlet"])
def test_messages_in_parts(serve: Serve, passed: list[float], flavour: str) -> None:
    sizes: list[int] = []
    times: list[float] = []

    class Parts(WebsocketsCtrlBase):
        runs_on = flavour
        stream_messages = True
        rate_limit = (2, 0.2)

        def on_thread_start(self) -> None:
            for message in self.messages():
                times.append(time.monotonic())
                sizes.append(sum(len(chunk) for chunk in message))
            self.push_out_message("never seen")

    site = serve(Parts)
    with connect(f"ws://127.0.0.1:{site.port}/", compression=None, proxy=None) as client:
        for _ in range(6):
            client.send([b"x" * 50_000] * 4)
        eventually(lambda: sizes == [200_000] * 6)
    assert keeps_to(passed, times, 2, 0.2)
