"""A hook that holds up the network loop is named in the log, with its stack, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.testing import SiteServer
from krait_ws.websockets import WebsocketsCtrlBase
from tests.integration.support import TEXT, RawClient, eventually, route, write_site


class Slow(WebsocketsCtrlBase):
    runs_on = "loop"

    def on_in_message(self, message: Any) -> None:
        if message == "slow":
            self.take_long()
        self.push_out_message(message)

    def take_long(self) -> None:
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            time.sleep(0.001)

    def on_stop(self) -> None:
        super().on_stop()
        self.take_long()


class Threaded(Slow):
    runs_on = "thread"


@pytest.fixture
def serve(tmp_path: Any, krait_site: Callable[..., SiteServer]) -> Callable[..., SiteServer]:
    def serve(controller: type[WebsocketsCtrlBase], **options: Any) -> SiteServer:
        return krait_site(write_site(tmp_path, {"index.py": route(controller)}), **options)

    return serve


def warnings(records: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in records if record.levelno == logging.WARNING]


def test_a_slow_hook_is_logged_once_with_its_stack(
    serve: Callable[..., SiteServer], caplog: pytest.LogCaptureFixture
) -> None:
    limit = 0.25
    records = caplog.records  # of the test itself: while it is torn down there are others

    class Held(Slow):
        """Takes until it is in the log, however late the watchdog looks, and then goes on."""

        def take_long(self) -> None:
            before = len(warnings(records))
            eventually(lambda: len(warnings(records)) > before, what="the hook is in the log")
            time.sleep(2 * limit)

    with RawClient(serve(Held, slow_hook=limit).port) as client:
        for message in ("quick", "slow", "quick"):
            client.send_frame(TEXT, message)
            client.expect(message)
        (text,) = warnings(records)
        assert "Held (runs_on = 'loop') holds up the network loop for more than 250 ms" in text
        assert "self.take_long()" in text
        assert "eventually(lambda: len(warnings(records)) > before" in text
        assert "_deliver_on_loop" not in text
    eventually(lambda: len(warnings(records)) == 2, what="on_stop is watched too")


@pytest.mark.parametrize(("controller", "limit"), [(Slow, 0.0), (Slow, 10.0), (Threaded, 0.05)])
def test_nothing_is_logged(
    serve: Callable[..., SiteServer],
    caplog: pytest.LogCaptureFixture,
    controller: type[WebsocketsCtrlBase],
    limit: float,
) -> None:
    with RawClient(serve(controller, slow_hook=limit).port) as client:
        client.send_frame(TEXT, "slow")
        client.expect("slow")
    assert not warnings(caplog.records)
