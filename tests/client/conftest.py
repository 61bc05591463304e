"""Fixtures of the clients' tests. After each test threads and descriptors are as before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from krait_ws.client import supervisor
from krait_ws.client.takeover import Quiet
from tests.client.hub import HUBS, Hub
from tests.client.proxy import Proxy
from tests.client.servers import SERVERS
from tests.integration.support import no_leaks


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    with no_leaks():
        yield


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path, leaves_nothing: None) -> Iterator[int]:
    """The port of a server that understands the words of ``servers.py``: ours, and two foreign ones."""
    with SERVERS[request.param](tmp_path) as port:
        yield port


@pytest.fixture
def talker(tmp_path: Path, leaves_nothing: None) -> Iterator[int]:
    """The port of ours."""
    with SERVERS["krait"](tmp_path) as port:
        yield port


@pytest.fixture
def proxy(talker: int) -> Iterator[Proxy]:
    """Faults on the way to ours."""
    with Proxy(talker) as between:
        yield between


@pytest.fixture(autouse=True)
def unraised(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """No thread may die of an exception."""
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    yield seen
    assert not seen, seen


@pytest.fixture(params=HUBS)
def any_hub(request: pytest.FixtureRequest, tmp_path: Path, leaves_nothing: None) -> Iterator[Hub]:
    """A server of events: ours, and two foreign ones."""
    with HUBS[request.param](tmp_path) as hub:
        yield hub


@pytest.fixture
def hub(tmp_path: Path, leaves_nothing: None) -> Iterator[Hub]:
    """Ours."""
    with HUBS["krait"](tmp_path) as hub:
        yield hub


@pytest.fixture
def replay_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``replay_of(2)``: each connection begins with a replay of two messages, and is not quiet before they came.

    A busy machine may take longer for them than a test's ``sync_quiet``; then they would rightly count as live.
    """

    def set_count(count: int) -> None:
        class Replay(Quiet):
            def __init__(self, quiet: float, longest: float, since: float) -> None:
                super().__init__(quiet, longest, since)
                self._missing = count
                self.over_at = float("inf")

            def disturb(self, at: float) -> None:
                super().disturb(at)
                self._missing -= 1
                if self._missing > 0:
                    self.over_at = float("inf")

        monkeypatch.setattr(supervisor, "Quiet", Replay)

    return set_count


@pytest.fixture
def faults(hub: Hub) -> Iterator[Proxy]:
    """Faults on the way to our server of events."""
    with Proxy(hub.port) as between:
        yield between


@pytest.fixture(autouse=True)
def quiet_websockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of the package that carries the bytes says more than a failing test needs."""
    for name in ("websockets.client", "websockets.server"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
