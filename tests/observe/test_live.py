"""The dashboard's feed, and ``krait-ws top``, which reads the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from krait_ws.commands.top import live_url, render, top
from krait_ws.testing import Client, SiteServer
from tests.integration.support import eventually

Serve = Callable[..., SiteServer]
TOKEN = "correct-horse-battery"


def view_with(viewer: Client, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The next view for which the condition holds."""
    found: dict[str, Any] = {}

    def look() -> bool:
        found.update(json.loads(viewer.receive()))
        return bool(condition(found))

    eventually(look)
    return found


def number(view: dict[str, Any], name: str, *labels: str) -> float:
    return sum(row[-1] for row in view["numbers"].get(name, []) if tuple(row[: len(labels)]) == labels)


def test_the_feed_has_the_numbers_of_the_metrics(serve: Serve) -> None:
    site = serve(dashboard=True, metrics=True)
    with site.connect("/echo") as client, site.connect("/_krait/live") as viewer:
        for _ in range(5):
            client.send("hello")
            client.expect("hello")

        def has_all(view: dict[str, Any]) -> bool:
            # Out too: a view may have been taken when the last message had come and its echo had not gone.
            return all(number(view, "krait_messages", "/echo", way) == 5 for way in ("in", "out"))

        view = view_with(viewer, has_all)
        assert number(view, "krait_connections", "/echo") == 1
        assert number(view, "krait_connections", "/_krait/live") == 1
        text = site.get("/_krait/metrics").text
        for line in (
            'krait_messages_total{direction="in",route="/echo"} 5.0',
            'krait_messages_total{direction="out",route="/echo"} 5.0',
            f'krait_bytes_total{{direction="in",route="/echo"}} {number(view, "krait_bytes", "/echo", "in")}.0',
        ):
            assert line in text
        assert set(view["delay"]) == {"p50", "p99", "max"}


def test_rates_are_messages_a_second(serve: Serve) -> None:
    site = serve(dashboard=True)
    with site.connect("/chat/x") as client, site.connect("/_krait/live") as viewer:
        client.send("hello")
        client.expect("hello")
        view = view_with(viewer, lambda view: view["rates"].get("/chat/[room]", [0])[0] > 0)
        # One message of 5 bytes in somewhat more than the second between two views; on a busy machine much more.
        rate_in, rate_out, bytes_in, bytes_out = view["rates"]["/chat/[room]"]
        assert 0 < rate_in < 1.2
        assert rate_out == rate_in
        assert bytes_in == pytest.approx(rate_in * (2 + 4 + 5))
        assert bytes_out == pytest.approx(rate_in * (2 + 5))


def test_one_connection_is_shown_and_closed(serve: Serve) -> None:
    site = serve(dashboard=True)
    with (
        site.connect("/chat/one?secret=1") as one,
        site.connect("/chat/two") as two,
        site.connect("/_krait/live") as viewer,
    ):
        view = view_with(viewer, lambda view: len(view["busiest"]) == 3)
        assert view["shown"] is None
        wanted = next(row["id"] for row in view["busiest"] if row["path"] == "/chat/one")
        viewer.send(json.dumps({"show": wanted}))
        view = view_with(viewer, lambda view: view["shown"])
        assert view["shown"]["id"] == wanted
        assert view["shown"]["address"] == "127.0.0.1"
        assert view["shown"]["controller"] == "Room"
        assert "secret" not in json.dumps(view)
        viewer.send(json.dumps({"close": wanted}))
        assert one.expect_close(1008) == "closed by the operator"
        view_with(viewer, lambda view: not view["shown"])
        two.send("still here")
        two.expect("still here")


def test_nobody_is_shown_any_more(serve: Serve) -> None:
    site = serve(dashboard=True)
    with site.connect("/echo"), site.connect("/_krait/live") as viewer:
        busiest = view_with(viewer, lambda view: len(view["busiest"]) == 2)["busiest"]
        viewer.send(json.dumps({"show": next(row["id"] for row in busiest if row["route"] == "/echo")}))

        def shows_where_the_handler_is(view: dict[str, Any]) -> bool:
            # Not in the first view perhaps: the client may be here before its handler's thread has come so far.
            return bool(view["shown"]) and "in on_thread_start" in view["shown"]["stacks"][0]

        view_with(viewer, shows_where_the_handler_is)
        viewer.send(json.dumps({"show": None}))
        view_with(viewer, lambda view: not view["shown"])
        assert site.server.observer.watched == {}


@pytest.mark.parametrize(
    "message", ["", "[]", "{}", '{"show": 1}', '{"show": "../etc"}', '{"close": null}', '{"kill": "0123abcd"}', b"\xff"]
)
def test_what_is_no_wish_ends_the_viewer(serve: Serve, message: str | bytes) -> None:
    with serve(dashboard=True).connect("/_krait/live") as viewer:
        viewer.send(message)
        viewer.expect_close(1008)


def test_a_wish_for_nobody_changes_nothing(serve: Serve) -> None:
    with serve(dashboard=True).connect("/_krait/live") as viewer:
        viewer.send('{"close": "00000000"}')
        viewer.send('{"show": "00000000"}')
        assert json.loads(viewer.receive())["shown"] is None
        assert json.loads(viewer.receive())["shown"] is None


def test_there_is_room_for_the_dashboard_when_the_server_is_full(serve: Serve) -> None:
    site = serve(dashboard=True, max_connections=1)
    with site.connect("/echo"), site.connect("/_krait/live") as viewer:
        assert number(json.loads(viewer.receive()), "krait_connections", "/echo") == 1


def test_stuck_handlers_are_shown_with_their_stacks(serve: Serve) -> None:
    site = serve(dashboard=True)
    site.connect("/stuck").close()
    with site.connect("/_krait/live") as viewer:

        def stands_where_it_stays(view: dict[str, Any]) -> bool:
            # It may be given up before its thread has come so far.
            return any("in ask_the_database" in stack for row in view["stuck"] for stack in row["stacks"])

        (row,) = view_with(viewer, stands_where_it_stays)["stuck"]
        assert row["route"] == "/stuck"
        (stack,) = row["stacks"]
        assert stack.splitlines()[0].endswith("in on_thread_start"), "what called the user's code says nothing"
        assert "in ask_the_database" in stack
        result = run_top(site.url)
        assert "in ask_the_database" in result
    site.get("/stuck")


def test_a_viewer_leaves_nothing(serve: Serve) -> None:
    site = serve(dashboard=True)
    with site.connect("/_krait/live") as viewer:
        viewer.send('{"show": "00000000"}')
        eventually(lambda: site.server.observer.watched)
    eventually(lambda: not site.server.observer.watched and not site.server.sessions)


# ---- top


def run_top(*arguments: str, **options: Any) -> str:
    result = CliRunner().invoke(top, [*arguments, "--once"], **options)
    assert result.exit_code == 0, result.output
    return result.output


def test_top_shows_the_same_once(serve: Serve) -> None:
    site = serve(dashboard=True)
    with site.connect("/echo") as client:
        client.send("hello")
        client.expect("hello")
        output = run_top(site.url)
    assert "connections 2 " in output  # it is one itself
    lines = [line.split() for line in output.splitlines()]
    assert ["ROUTE", "OPEN", "IN/S", "OUT/S", "WAITING", "BLOCKED", "DROPPED"] in lines
    assert ["/echo", "1"] in [line[:2] for line in lines]
    assert "\x1b" not in output


def test_top_sends_the_token(serve: Serve) -> None:
    site = serve(dashboard=True, dashboard_token=TOKEN)
    assert "connections 1 " in run_top(site.url, env={"KRAIT_DASHBOARD_TOKEN": TOKEN})
    result = CliRunner().invoke(top, [site.url, "--once", "--token", "wrong"])
    assert result.exit_code == 1
    assert "the server wants its token" in result.output


def test_top_says_what_is_wrong(serve: Serve) -> None:
    for url, expected in (
        (serve().url, "serve with --dashboard"),
        ("http://127.0.0.1:1", "refused"),
        ("ftp://127.0.0.1", "a server is named like"),
        ("http://", "a server is named like"),
    ):
        result = CliRunner().invoke(top, [url, "--once"])
        assert result.exit_code == 1
        assert expected in result.output


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("127.0.0.1:8000", "ws://127.0.0.1:8000/_krait/live"),
        ("http://localhost:8000/", "ws://localhost:8000/_krait/live"),
        ("https://example.org", "wss://example.org/_krait/live"),
        ("https://example.org/behind/_krait/", "wss://example.org/behind/_krait/live"),
        ("ws://[::1]:8000", "ws://[::1]:8000/_krait/live"),
    ],
)
def test_a_server_is_named_in_several_ways(url: str, expected: str) -> None:
    assert live_url(url) == expected


def test_what_comes_from_clients_does_nothing_to_the_terminal(serve: Serve) -> None:
    row = {
        "id": "0123abcd", "route": "/\x1b[2J", "address": "\r", "controller": "A\x07", "worker": 1, "messages_in": 0,
        "messages_out": 0, "out_bytes_waiting": 5000, "blocked": 0, "dropped": 0, "stacks": ["  File\x1b]0;x\x07\n"],
    }  # fmt: skip
    view = {
        "numbers": {}, "rates": {}, "delay": {"p50": 0.0, "p99": 1.5, "max": 2}, "slowest": [row], "busiest": [],
        "stuck": [row],
    }  # fmt: skip
    lines = render(view)
    assert all(line.isprintable() for line in lines)
    assert any("/?[2J" in line and "5 KiB" in line for line in lines)


def test_top_in_a_pipe_prints_view_after_view(serve: Serve) -> None:
    site = serve(dashboard=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "krait_ws", "top", site.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    heads = 0
    for line in process.stdout:
        heads += line.startswith("krait-ws http://")
        if heads == 2:
            break
    site.close()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors.startswith("krait-ws: http://127.0.0.1")
    assert "closed the connection (1001 the server is going away)" in errors
