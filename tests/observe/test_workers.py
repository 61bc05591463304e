"""Several workers under gunicorn: whoever is asked answers for all, also for those that were killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from krait_ws.testing import Client
from tests.integration.support import eventually, write_site
from tests.observe.conftest import SITE

ROOT = Path(__file__).parents[2]
CHAT = "/chat/[room]"


PATIENT = """\
from krait_ws.observe import shared
shared._PATIENCE = 20
shared._SHOW_FOR = 20
from krait_ws.cli import main
main()
"""
"""The command; on a busy machine the workers wait longer for each other."""


class Workers:
    """``krait-ws serve --workers 2`` in a process of its own."""

    def __init__(self, site: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PATIENT, "serve", str(site), "--port", "0", "--workers", "2", "--metrics",
             "--dashboard", "--drain-timeout", "5", "--no-access-log"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdout is not None
        found = re.search(r"http://(127\.0\.0\.1:\d+)", self.process.stdout.readline())
        assert found
        self.place = found[1]

    def connect(self, path: str) -> Client:
        return Client(connect(f"ws://{self.place}{path}", proxy=None, compression=None))

    def scrape(self) -> dict[tuple[str, ...], float]:
        with urllib.request.urlopen(f"http://{self.place}/_krait/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def eventually_all_answer(self, expected: dict[tuple[str, ...], float]) -> None:
        """Every worker must come to say so: ten answers in a row, of connections that the system spreads."""

        def agree() -> bool:
            with suppress(OSError):  # a worker that is replaced waits a moment only for who has connected and is late
                return all({key: self.scrape().get(key) for key in expected} == expected for _ in range(10))
            return False

        try:
            eventually(agree, timeout=30)
        except AssertionError:
            values = self.scrape()
            assert {key: values.get(key) for key in expected} == expected

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(write_site(tmp_path / "site", dict(SITE)))
    yield workers
    workers.close()


def rows_of(viewer: Client, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(json.loads(viewer.receive(20)))
        return bool(condition(found))

    eventually(look)
    return found


def spread(workers: Workers, viewer: Client) -> tuple[list[Client], dict[str, Any]]:
    """Chats that said one message each, on both workers, and a view that has them all."""
    # Else one worker may take so many before the other has begun that a list of the busiest has no place for more.
    workers.eventually_all_answer({("krait_workers",): 2})
    clients: list[Client] = []
    view: dict[str, Any] = {"busiest": []}
    deadline = time.monotonic() + 30
    while len({row["worker"] for row in view["busiest"] if row["route"] == CHAT}) < 2:
        assert time.monotonic() < deadline, "the system gave one worker every connection"
        for _ in range(2):
            clients.append(client := workers.connect(f"/chat/{len(clients)}"))
            client.send("hello")
            client.expect("hello", 20)
        count = len(clients)
        view = rows_of(
            viewer, lambda view, count=count: sum(row[-1] for row in numbers(view, "krait_connections", CHAT)) == count
        )
    return clients, view


def numbers(view: dict[str, Any], name: str, route: str) -> list[Any]:
    return [row for row in view["numbers"].get(name, []) if row[0] == route]


def test_a_killed_worker_keeps_its_counters_and_loses_its_gauges(workers: Workers) -> None:
    with workers.connect("/_krait/live") as viewer:
        clients, view = spread(workers, viewer)
        own = next(row["worker"] for row in view["busiest"] if row["route"] == "/_krait/live")
        killed = next(row["worker"] for row in view["busiest"] if row["worker"] != own)
        count = len(clients)
        workers.eventually_all_answer(
            {("krait_connections", CHAT): count, ("krait_messages_total", "in", CHAT): count, ("krait_workers",): 2}
        )
        os.kill(killed, signal.SIGKILL)
        alive = []
        for client in clients:
            try:
                client.send("again")
                client.expect("again", 20)
                alive.append(client)
            except (ConnectionClosed, AssertionError):
                client.expect_close(1006)
        assert 0 < len(alive) < count
        workers.eventually_all_answer(
            {
                ("krait_connections", CHAT): len(alive),
                ("krait_connections_opened_total", CHAT): count,
                ("krait_messages_total", "in", CHAT): count + len(alive),
                ("krait_messages_total", "out", CHAT): count + len(alive),
                ("krait_workers",): 2,  # gunicorn has started another one
            }
        )
        rows_of(viewer, lambda view: killed not in {row["worker"] for row in view["busiest"]})
        for client in clients:
            client.close()
    workers.eventually_all_answer(
        {("krait_connections", CHAT): 0, ("krait_connections_closed_total", "1000", CHAT): len(alive)}
    )


def test_a_connection_of_another_worker_is_shown_and_closed(workers: Workers) -> None:
    with workers.connect("/_krait/live") as viewer:
        clients, view = spread(workers, viewer)
        own = next(row["worker"] for row in view["busiest"] if row["route"] == "/_krait/live")
        wanted = next(row for row in view["busiest"] if row["worker"] != own and row["route"] == CHAT)
        viewer.send(json.dumps({"show": wanted["id"]}))
        view = rows_of(viewer, lambda view: view["shown"])
        assert view["shown"]["path"] == wanted["path"]
        viewer.send(json.dumps({"close": wanted["id"]}))
        client = clients[int(wanted["path"].rpartition("/")[2])]
        assert client.expect_close(1008, 20) == "closed by the operator"
        rows_of(viewer, lambda view: not view["shown"])
        for client in clients:
            client.close()


def test_counters_go_on_when_all_workers_are_replaced(workers: Workers) -> None:
    with workers.connect("/chat/x") as client:
        client.send("hello")
        client.expect("hello", 20)
        workers.eventually_all_answer({("krait_messages_total", "in", CHAT): 1})
        workers.process.send_signal(signal.SIGHUP)
        client.expect_close(1012, 20)
    workers.eventually_all_answer(
        {
            ("krait_messages_total", "in", CHAT): 1,
            ("krait_connections_closed_total", "1012", CHAT): 1,
            ("krait_workers",): 2,
        }
    )


def test_the_folder_goes_with_the_master(tmp_path: Path) -> None:
    workers = Workers(write_site(tmp_path / "site", dict(SITE)))

    def shared_folder() -> Path | None:
        children = Path(f"/proc/{workers.process.pid}/task/{workers.process.pid}/children").read_text().split()
        for child in children:
            with suppress(OSError):  # it has ended meanwhile
                for file in Path(f"/proc/{child}/fd").iterdir():
                    with suppress(OSError):  # it was closed meanwhile
                        if (name := os.readlink(file)).endswith(".life"):
                            return Path(name).parent
        return None

    folder = eventually(shared_folder)
    assert folder.name.startswith("krait-ws-")
    workers.close()
    # A test that runs beside this one may have opened a file in it; then it is who removes it, a moment later.
    eventually(lambda: not folder.exists(), what="it is gone")
