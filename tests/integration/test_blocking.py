"""What blocks in one place stalls nobody elsewhere. Order is tested here, not speed: benchmarks/ measures that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import Client, Refused, SiteServer
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsRequest
from tests.integration.support import POLLERS, HandlerEcho, RawClient, eventually, made, raw_get, upgrade_request

Serve = Callable[..., SiteServer]


def echo_often(client: Any, times: int = 200) -> None:
    for number in range(times):
        client.send(str(number))
        client.expect(str(number))


@pytest.mark.parametrize("poller", POLLERS)
def test_a_route_script_that_blocks_stalls_nobody(serve: Serve, poller: str) -> None:
    inside, leave = threading.Event(), threading.Event()

    def blocks(request: WebsocketsRequest) -> WebsocketsCtrlBase:
        inside.set()
        assert leave.wait(30)
        return HandlerEcho()

    site = serve({"slow": blocks, "echo": HandlerEcho}, poller=poller)
    accepted: list[RawClient] = []
    upgrade = threading.Thread(target=lambda: accepted.append(RawClient(site.port, "/slow")))
    with site.connect("/echo") as echo:
        upgrade.start()
        assert inside.wait(10)
        try:
            echo_often(echo)
            with site.connect("/echo") as another:
                echo_often(another, 10)
            assert raw_get(site.port, b"/echo").status == 426
            assert not accepted
        finally:
            leave.set()
            upgrade.join()
    (client,) = accepted
    client.close()


def test_a_route_script_that_sleeps_a_second(serve_files: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep: list[int] = []
    through = threading.Event()

    def sleep() -> None:
        asleep.append(1)
        time.sleep(1)
        while not through.is_set():  # however long the others take
            time.sleep(0.05)

    monkeypatch.setitem(made, "sleep", sleep)
    sleepy = (
        "import krait_ws\nfrom tests.integration.support import made\nmade['sleep']()\n"
        "krait_ws.response = krait_ws.Response('slept')\n"
    )
    echo = (
        "from krait_ws import websockets\nfrom tests.integration.support import HandlerEcho\n"
        "if websockets.request:\n    websockets.response = websockets.WebsocketsResponse(HandlerEcho())\n"
    )
    site = serve_files({"sleepy.py": sleepy, "echo.py": echo})
    done: list[bytes] = []
    askers = [threading.Thread(target=lambda: done.append(raw_get(site.port, b"/sleepy").body)) for _ in range(10)]
    with site.connect("/echo") as client:
        for asker in askers:
            asker.start()
        try:
            eventually(lambda: len(asleep) == 10)
            echo_often(client)
            assert not done
        finally:
            through.set()
            for asker in askers:
                asker.join()
    assert done == [b"slept"] * 10


def test_a_hundred_handlers_in_sleep_stall_nobody(serve: Serve) -> None:
    asleep: list[Any] = []
    awake = threading.Event()

    class Sleeps(WebsocketsCtrlBase):
        def on_thread_start(self) -> None:
            asleep.append(self)
            while not awake.is_set():
                time.sleep(0.25)

    site = serve({"sleeps": Sleeps, "echo": HandlerEcho})
    sleepers = [RawClient(site.port, "/sleeps") for _ in range(100)]
    try:
        eventually(lambda: len(asleep) == 100)
        with site.connect("/echo") as echo:
            echo_often(echo)
        assert all(not controller.should_stop() for controller in asleep)
    finally:
        awake.set()
        for sleeper in sleepers:
            sleeper.close()


def test_more_upgrades_than_script_threads_wait_for_their_turn(serve: Serve) -> None:
    running: list[int] = []
    most: list[int] = []

    def counts(request: WebsocketsRequest) -> WebsocketsCtrlBase:
        running.append(1)
        most.append(len(running))
        time.sleep(0.01)
        running.pop()
        return HandlerEcho()

    site = serve(counts, script_threads=4)
    clients: list[RawClient] = []
    threads = [threading.Thread(target=lambda: clients.append(RawClient(site.port))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 40
    assert max(most) <= 4
    for client in clients:
        client.close()


def test_a_script_that_does_not_answer_in_time_gets_503(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    leave = threading.Event()
    late: list[Any] = []

    class Late(WebsocketsCtrlBase):
        def __init__(self) -> None:
            super().__init__()
            late.append(self)

        def on_thread_start(self) -> None:
            self.wait_stop()

    def blocks(request: WebsocketsRequest) -> WebsocketsCtrlBase:
        assert leave.wait(30)
        return Late()

    site = serve({"slow": blocks, "echo": HandlerEcho}, script_timeout=0.2)
    client = RawClient(site.port, upgrade=False)
    try:
        client.send(upgrade_request("/slow"))
        client.read_head()
        assert client.status == 503
    finally:
        client.close()
        leave.set()
    (controller,) = eventually(lambda: late)
    assert controller.wait_stop(10)  # nobody waits for what it accepted
    assert controller.wait_stopped(10)

    def connected() -> Client | None:
        try:
            return site.connect("/echo")
        except Refused as refused:
            if refused.status != 503:
                raise
            return None  # the machine is so busy that this script was late as well

    with eventually(connected) as echo:
        echo_often(echo, 5)
