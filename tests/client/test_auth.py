"""Credentials: what goes into the upgrade request, and one refresh and one repetition after a 401."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from krait_ws.client import AuthError, Backoff, Basic, Bearer, ConnectionUnavailableError, EventStream, Headers, Status
from krait_ws.client.transport import Auth, Transport
from tests.client.hub import Hub
from tests.helpers import Task, until


def stream_with(hub: Hub, auth: Auth, **options: Any) -> EventStream:
    given = {"sync_quiet": 0.05, "backoff": Backoff((0.02,)), **options}
    return EventStream(Transport(hub.url, auth=auth, proxy=None), **given)


def until_waiting(auth: Bearer, count: int) -> None:
    until(lambda: len(auth._token._changed._waiters) == count, "they wait")  # type: ignore[attr-defined]


def ended(stream: EventStream) -> Status:
    until(lambda: stream.status in (Status.RECONNECT_FAILED, Status.DISCONNECTED), "the end of the stream")
    return stream.status


def test_headers_of_each_kind() -> None:
    # RFC 7617 section 2 has this pair.
    assert Basic("Aladdin", "open sesame").headers() == {"Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}
    assert Basic("test", "123£").headers() == {"Authorization": "Basic dGVzdDoxMjPCow=="}
    assert Bearer("abc").headers() == {"Authorization": "Bearer abc"}
    assert Headers({"JWT": "abc"}).headers() == {"JWT": "abc"}


def test_what_is_fixed_has_nothing_to_refresh() -> None:
    assert not any(auth.refresh() for auth in (Basic("a", "b"), Bearer("abc"), Headers({"JWT": "abc"})))


def test_a_name_with_a_colon_is_refused() -> None:
    with pytest.raises(ValueError, match="colon"):
        Basic("a:b", "c")


@pytest.mark.parametrize("auth", [Basic("ada", "hunter2"), Bearer("hunter2"), Headers({"JWT": "hunter2"})])
def test_nothing_shows_a_secret(auth: Auth) -> None:
    assert "hunter2" not in repr(auth)
    assert "hunter2" not in repr(Transport("ws://localhost", auth=auth))


def test_a_function_is_called_once_until_it_is_refreshed() -> None:
    tokens = iter(["one", "two"])
    auth = Bearer(lambda: next(tokens))
    assert auth.headers() == auth.headers() == {"Authorization": "Bearer one"}
    assert auth.refresh()
    assert auth.headers() == {"Authorization": "Bearer two"}


def test_headers_may_come_from_a_function() -> None:
    tokens = iter(["one", "two"])
    auth = Headers(lambda: {"JWT": next(tokens)})
    assert auth.headers() == {"JWT": "one"}
    assert auth.refresh()
    assert auth.headers() == {"JWT": "two"}


def test_no_token_is_an_error() -> None:
    with pytest.raises(AuthError, match="returned ''"):
        Bearer(lambda: "").headers()


def test_who_comes_while_a_token_is_being_got_waits_for_it() -> None:
    calls = []
    go_on = threading.Event()

    def login() -> str:
        calls.append(1)
        assert go_on.wait(10)
        return f"token {len(calls)}"

    auth = Bearer(login)
    first = Task(auth.headers)
    until(lambda: calls, "the login")
    others = [Task(auth.refresh) for _ in range(3)]
    until_waiting(auth, 3)  # who came later than the token would rightly get another one
    go_on.set()
    assert first.result() == {"Authorization": "Bearer token 1"}
    assert [other.result() for other in others] == [True] * 3
    assert len(calls) == 1


def test_who_waits_for_a_token_that_does_not_come_is_told() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def login() -> str:
        begun.set()
        assert go_on.wait(10)
        raise OSError("the login is down")

    auth = Bearer(login)
    first = Task(auth.headers)
    assert begun.wait(10)
    second = Task(auth.headers)
    until_waiting(auth, 1)
    go_on.set()
    with pytest.raises(OSError, match="down"):
        first.result()
    with pytest.raises(ConnectionUnavailableError, match="did not come"):
        second.result()


# ---- with a server


def test_a_401_is_answered_with_one_refresh_and_one_repetition(any_hub: Hub) -> None:
    any_hub.token = "new"
    tokens = iter(["old", "new", "too new"])
    with stream_with(any_hub, Bearer(lambda: next(tokens))) as stream:
        stream.wait_connected(10)
    assert any_hub.seen == ["Bearer old", "Bearer new"]


def test_a_second_401_ends_it(any_hub: Hub) -> None:
    any_hub.token = "right"
    calls = []
    stream = stream_with(any_hub, Bearer(lambda: calls.append(1) or f"wrong {len(calls)}"))  # type: ignore[func-returns-value]
    with stream:
        assert ended(stream) is Status.RECONNECT_FAILED
        assert isinstance(stream.error, AuthError)
        assert stream.error.status == 401
    assert any_hub.seen == ["Bearer wrong 1", "Bearer wrong 2"]


def test_a_second_401_ends_it_after_a_loss_too(hub: Hub) -> None:
    hub.token = "right"
    tokens = iter(["right", "wrong"])
    stream = stream_with(hub, Bearer(lambda: next(tokens)))
    with stream:
        stream.wait_connected(10)
        hub.wait_joined()
        hub.token = "another"
        hub.kick()
        assert ended(stream) is Status.RECONNECT_FAILED
    assert hub.seen == ["Bearer right", "Bearer right", "Bearer wrong"]


@pytest.mark.parametrize("make", [lambda: Basic("ada", "wrong"), lambda: Bearer("wrong"), lambda: Headers({})])
def test_without_anything_to_refresh_the_first_401_ends_it(hub: Hub, make: Callable[[], Auth]) -> None:
    hub.token = "right"
    stream = stream_with(hub, make())
    with stream, pytest.raises(AuthError):
        stream.run_forever()
    assert len(hub.seen) == 1


def test_a_login_that_fails_is_tried_again(hub: Hub) -> None:
    hub.token = "right"
    calls = []

    def login() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("the login is down")
        return "right"

    with stream_with(hub, Bearer(login)) as stream:
        stream.wait_connected(10)
    assert len(calls) == 3


def test_a_login_that_is_refused_is_not_tried_again(hub: Hub) -> None:
    calls = []

    def login() -> str:
        calls.append(1)
        raise AuthError("wrong password")

    stream = stream_with(hub, Bearer(login))
    with stream, pytest.raises(AuthError, match="wrong password"):
        stream.run_forever()
    assert len(calls) == 1
