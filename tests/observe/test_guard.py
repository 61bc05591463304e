"""Who may see the dashboard and the metrics."""

from __future__ import annotations

import time
from typing import Any

import pytest

from krait_ws.observe import guard
from krait_ws.observe.guard import COOKIE, COOKIE_SECONDS, Guard, is_local, is_own_page

TOKEN = "0123456789abcdef"
LOCAL = {"REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:8000", "wsgi.url_scheme": "http"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"HTTP_HOST": "localhost:8000"}, True),
        ({"HTTP_HOST": "LOCALHOST"}, True),
        ({"HTTP_HOST": "[::1]:8000", "REMOTE_ADDR": "::1"}, True),
        ({"REMOTE_ADDR": "::ffff:127.0.0.1"}, True),
        ({"REMOTE_ADDR": "127.8.9.1"}, True),
        # another machine
        ({"REMOTE_ADDR": "192.0.2.7"}, False),
        ({"REMOTE_ADDR": "::ffff:192.0.2.7"}, False),
        # a Unix socket: a proxy, most likely
        ({"REMOTE_ADDR": ""}, False),
        # a page whose owner lets its name point here
        ({"HTTP_HOST": "evil.example"}, False),
        ({"HTTP_HOST": "evil.example:8000"}, False),
        ({"HTTP_HOST": "localhost.evil.example"}, False),
        ({"HTTP_HOST": "127.0.0.1.evil.example"}, False),
        ({"HTTP_HOST": ""}, False),
        ({"HTTP_HOST": "[evil]:8000"}, False),
        ({"HTTP_HOST": "[::1].evil.example"}, False),
        # a proxy on this machine
        ({"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, False),
        ({"HTTP_X_FORWARDED_PROTO": "https"}, False),
        ({"HTTP_FORWARDED": "for=127.0.0.1"}, False),
        ({"HTTP_X_REAL_IP": "127.0.0.1"}, False),
        ({"HTTP_VIA": "1.1 cache"}, False),
        ({"HTTP_CF_CONNECTING_IP": "127.0.0.1"}, False),
        ({"HTTP_TRUE_CLIENT_IP": "127.0.0.1"}, False),
        ({"HTTP_X_CLIENT_IP": "127.0.0.1"}, False),
        ({"werkzeug.proxy_fix.orig": {}}, False),
    ],
)
def test_local_is_who_is_on_this_machine_and_came_by_nobody_elses_hand(changes: dict[str, Any], expected: bool) -> None:
    assert is_local({**LOCAL, **changes}) is expected
    assert (Guard("").refusal({**LOCAL, **changes}) is None) is expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, True),
        ("http://127.0.0.1:8000", True),
        ("http://127.0.0.1:8001", False),
        ("https://127.0.0.1:8000", False),
        ("http://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_a_page_of_another_origin_is_none_of_ours(origin: str | None, expected: bool) -> None:
    assert is_own_page(LOCAL if origin is None else {**LOCAL, "HTTP_ORIGIN": origin}) is expected


def test_a_request_without_host_is_no_error() -> None:
    environ = {"wsgi.url_scheme": "http", "HTTP_ORIGIN": "http://x", "REMOTE_ADDR": "127.0.0.1"}
    assert not is_own_page(environ)
    assert not is_local(environ)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (f"Basic {TOKEN}", False),
        ("Bearer ", False),
        ("Bearer", False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer \u00fc", False),
        ("", False),
    ],
)
def test_a_token_is_sent_as_bearer(header: str, expected: bool) -> None:
    assert (Guard(TOKEN).refusal({"HTTP_AUTHORIZATION": header}) is None) is expected


def test_with_a_token_this_machine_needs_it_too() -> None:
    assert Guard(TOKEN).refusal(LOCAL) is not None


def test_without_a_token_no_token_helps() -> None:
    away = {**LOCAL, "REMOTE_ADDR": "192.0.2.7"}
    for header in ("Bearer ", "Bearer", f"Bearer {TOKEN}"):
        assert Guard("").refusal({**away, "HTTP_AUTHORIZATION": header}) is not None
    assert Guard("").refusal({**away, "HTTP_COOKIE": f"{COOKIE}={Guard('').new_cookie()}"}) is not None
    assert not Guard("").knows("")


def test_the_cookie_stands_for_the_token_in_every_worker() -> None:
    cookie = Guard(TOKEN).new_cookie()
    assert TOKEN not in cookie
    assert Guard(TOKEN).refusal({"HTTP_COOKIE": f"a=b; {COOKIE}={cookie}; c=d"}) is None
    assert Guard(TOKEN[::-1]).refusal({"HTTP_COOKIE": f"{COOKIE}={cookie}"}) is not None


def test_the_cookie_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = Guard(TOKEN).new_cookie()
    now = time.time()
    monkeypatch.setattr(guard.time, "time", lambda: now + COOKIE_SECONDS + 2)
    assert Guard(TOKEN).refusal({"HTTP_COOKIE": f"{COOKIE}={cookie}"}) is not None


@pytest.mark.parametrize("change", ["until", "signature", "both", "empty", "foreign"])
def test_a_forged_cookie_is_none(change: str) -> None:
    until, _, signature = Guard(TOKEN).new_cookie().partition(".")
    forged = {
        "until": f"{int(until) + 1}.{signature}",
        "signature": f"{until}.{'0' * len(signature)}",
        "both": "99999999999.00",
        "empty": "",
        "foreign": "\u0661.\u00e9",
    }[change]
    assert Guard(TOKEN).refusal({"HTTP_COOKIE": f"{COOKIE}={forged}"}) is not None
