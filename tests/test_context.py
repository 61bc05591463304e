"""What is current: upgrade requests, the two façades ``krait_ws`` and ``krait_ws.websockets``, hundreds of threads."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from typing import Any

import gevent
import pytest
from werkzeug.wrappers import Response as WerkzeugResponse

import krait_ws
from krait_ws import context, websockets
from krait_ws.errors import HandshakeError
from krait_ws.websockets import WebsocketsCtrlBase, WebsocketsRequest, WebsocketsResponse
from tests.helpers import DEADLINE, Task, http_request, own_thread, upgrade_http_request, upgrade_request


def extract(*headers: tuple[str, str]) -> list[str] | None:
    return WebsocketsRequest.extract_protocols(http_request("/", list(headers)))


UPGRADE = ("Upgrade", "websocket")
PROTOCOLS = "Sec-WebSocket-Protocol"


# ---- WebsocketsRequest


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([UPGRADE, (PROTOCOLS, "chat")], ["chat"], id="one"),
        pytest.param([UPGRADE, (PROTOCOLS, "b, a, c")], ["b", "a", "c"], id="the client's order"),
        pytest.param([UPGRADE, (PROTOCOLS, "a,b")], ["a", "b"], id="no blank (misread by the original krait)"),
        pytest.param([UPGRADE, (PROTOCOLS, "a , b\t,\tc")], ["a", "b", "c"], id="blanks and tabs"),
        pytest.param([UPGRADE, (PROTOCOLS, "  a,b  ")], ["a", "b"], id="blanks around"),
        pytest.param([UPGRADE, (PROTOCOLS, "a,,b,")], ["a", "b"], id="empty elements"),
        pytest.param([UPGRADE, (PROTOCOLS, "a"), (PROTOCOLS, "b, c")], ["a", "b", "c"], id="two headers"),
        pytest.param([UPGRADE, (PROTOCOLS.upper(), "a")], ["a"], id="header name in upper case"),
        pytest.param([UPGRADE, (PROTOCOLS.lower(), "a")], ["a"], id="header name in lower case"),
        pytest.param([UPGRADE, (PROTOCOLS, "Chat")], ["Chat"], id="subprotocols keep their case"),
        pytest.param(
            [("Upgrade", "WebSocket"), (PROTOCOLS, "a")], ["a"], id="WebSocket (misread by the original krait)"
        ),
        pytest.param([("UPGRADE", "WEBSOCKET"), (PROTOCOLS, "a")], ["a"], id="WEBSOCKET"),
        pytest.param([("Upgrade", "h2c, websocket"), (PROTOCOLS, "a")], ["a"], id="one of several upgrades"),
        pytest.param([("Upgrade", "h2c"), UPGRADE, (PROTOCOLS, "a")], ["a"], id="the second of two Upgrade headers"),
        pytest.param([UPGRADE], None, id="none offered"),
        pytest.param([UPGRADE, (PROTOCOLS, "")], None, id="empty header"),
        pytest.param([UPGRADE, (PROTOCOLS, "  ")], None, id="blank header"),
        pytest.param([(PROTOCOLS, "a")], None, id="no upgrade"),
        pytest.param([("Upgrade", "h2c"), (PROTOCOLS, "a")], None, id="another upgrade"),
        pytest.param([("Upgrade", "websockets"), (PROTOCOLS, "a")], None, id="nearly"),
        pytest.param([], None, id="no headers"),
    ],
)
def test_extract_protocols(headers: list[tuple[str, str]], expected: list[str] | None) -> None:
    assert extract(*headers) == expected
    assert WebsocketsRequest(http_request("/", headers)).protocols == expected


def test_a_header_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(HandshakeError, match=PROTOCOLS):
        extract(UPGRADE, (PROTOCOLS, "a b"))


@pytest.mark.parametrize("compact", [False, True], ids=["in the script", "after the upgrade"])
def test_what_a_request_gives(compact: bool) -> None:
    headers = [
        ("Cookie", "sid=42; theme=dark"),
        ("Origin", "https://example.org"),
        ("X-Own", "yes"),
        (PROTOCOLS, "v2, v1"),
    ]
    request = upgrade_request("/caf%C3%A9/lobby?name=ann&tag=a&tag=b", headers, {"room": "lobby"})
    if compact:
        request.compact()
        request.compact()
    assert request.path == "/café/lobby"
    assert request.params == {"room": "lobby"}
    assert request.query["name"] == "ann"
    assert request.query.getlist("tag") == ["a", "b"]
    assert request.headers["x-own"] == "yes"
    assert request.cookies["sid"] == "42"
    assert request.origin == "https://example.org"
    assert request.remote_addr == "192.0.2.7"
    assert request.protocols == ["v2", "v1"]
    assert isinstance(request.http, krait_ws.Request)
    assert request.http.method == "GET"
    assert request.http.path == "/café/lobby"
    assert request.http.host == "localhost"


def test_what_is_not_there_is_none_or_empty() -> None:
    request = upgrade_request()
    assert request.origin is None
    assert request.params == {}
    assert dict(request.cookies) == {}
    assert dict(request.query) == {}


def test_after_the_upgrade_the_environ_is_let_go() -> None:
    """It costs 7.8 KB a connection."""
    plain = upgrade_http_request()
    environ = weakref.ref(plain)
    request = WebsocketsRequest(plain)
    request.compact()
    del plain
    gc.collect()
    assert environ() is None
    assert request.path == "/"


def test_the_params_of_the_route_stay_after_the_upgrade() -> None:
    """Failed: the HTTP request that is made anew after the upgrade had none."""
    plain = upgrade_http_request("/chat/lobby")
    plain.params = {"room": "lobby"}
    request = WebsocketsRequest(plain, {"room": "lobby"})
    request.compact()
    assert request.http.params == {"room": "lobby"}


# ---- WebsocketsResponse


def test_a_response_accepts() -> None:
    instance = WebsocketsCtrlBase()
    response = WebsocketsResponse(instance, "chat")
    assert response.controller is instance
    assert response.protocol == "chat"
    assert WebsocketsResponse(instance).protocol is None


@pytest.mark.parametrize("wrong", [None, "chat", object(), WebsocketsCtrlBase], ids=["None", "str", "object", "class"])
def test_something_else_than_a_controller_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="WebsocketsCtrlBase"):
        WebsocketsResponse(wrong)


def test_the_class_instead_of_an_instance_gets_a_hint() -> None:
    with pytest.raises(TypeError, match="call the class"):
        WebsocketsResponse(WebsocketsCtrlBase)  # type: ignore[arg-type]


def test_a_controller_that_forgot_the_base_class_is_refused() -> None:
    class Forgets(WebsocketsCtrlBase):
        def __init__(self) -> None:
            self.room = "lobby"

    with pytest.raises(TypeError, match=r"Forgets.*super\(\).__init__\(\)"):
        WebsocketsResponse(Forgets())


# ---- the façades


def in_new_context(function: Any) -> Any:
    return contextvars.Context().run(function)


def test_without_a_request_everything_is_none() -> None:
    def read() -> list[Any]:
        return [krait_ws.request, krait_ws.response, websockets.request, websockets.response]

    assert in_new_context(read) == [None] * 4


def test_the_facades_are_what_was_assigned() -> None:
    http, upgrade = http_request(), upgrade_request()
    answer, accepted = krait_ws.Response("no"), WebsocketsResponse(WebsocketsCtrlBase())

    def assign_and_read() -> None:
        krait_ws.request, krait_ws.response = http, answer
        websockets.request, websockets.response = upgrade, accepted
        assert krait_ws.request is http
        assert krait_ws.response is answer
        assert websockets.request is upgrade
        assert websockets.response is accepted
        krait_ws.response = websockets.response = websockets.request = None
        assert krait_ws.response is None
        assert websockets.response is None
        assert websockets.request is None

    in_new_context(assign_and_read)


def test_in_a_handler_the_http_request_is_that_of_the_upgrade() -> None:
    upgrade = upgrade_request("/chat")
    upgrade.compact()

    def read() -> None:
        websockets.request = upgrade
        assert krait_ws.request is not None
        assert krait_ws.request.path == "/chat"

    in_new_context(read)


def test_any_response_of_werkzeug_will_do() -> None:
    answer = WerkzeugResponse("ok")

    def assign() -> None:
        krait_ws.response = answer
        assert krait_ws.response is answer

    in_new_context(assign)


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        pytest.param(krait_ws, "response", "text", id="HTTP response: str"),
        pytest.param(krait_ws, "response", 403, id="HTTP response: int"),
        pytest.param(krait_ws, "response", krait_ws.Response, id="HTTP response: class"),
        pytest.param(
            krait_ws, "response", WebsocketsResponse(WebsocketsCtrlBase()), id="HTTP response: the other kind"
        ),
        pytest.param(krait_ws, "request", {}, id="HTTP request: dict"),
        pytest.param(websockets, "response", WebsocketsCtrlBase(), id="response: controller"),
        pytest.param(websockets, "response", krait_ws.Response("no"), id="response: the other kind"),
        pytest.param(websockets, "response", True, id="response: bool"),
        pytest.param(websockets, "response", WebsocketsResponse, id="response: class"),
        pytest.param(websockets, "request", http_request(), id="request: the other kind"),
    ],
)
def test_a_wrong_type_is_refused_where_it_is_assigned(module: Any, name: str, wrong: Any) -> None:
    def assign() -> None:
        with pytest.raises(TypeError, match=rf"{name} must be a .* or None, not "):
            setattr(module, name, wrong)
        assert getattr(module, name) is None

    in_new_context(assign)


def test_the_ready_made_answers() -> None:
    assert krait_ws.ResponseBadRequest().status_code == 400
    assert krait_ws.ResponseNotFound().status_code == 404
    redirect = krait_ws.ResponseRedirect("/elsewhere")
    assert redirect.status_code == 302
    assert redirect.headers["Location"] == "/elsewhere"
    assert krait_ws.ResponseRedirect("/elsewhere", 308).status_code == 308
    answer = krait_ws.Response("no", status=403, headers={"X-Own": "yes"})
    assert (answer.status_code, answer.get_data(), answer.headers["X-Own"]) == (403, b"no", "yes")


def test_hundreds_of_threads_each_see_their_own() -> None:
    """All assign, then all read: none may see what another one assigned."""
    count = 300
    barrier = threading.Barrier(count)

    def upgrade(number: int) -> bool:
        mine = upgrade_request(f"/{number}")
        accepted = WebsocketsResponse(WebsocketsCtrlBase())
        answer = krait_ws.Response(str(number))
        krait_ws.request, krait_ws.response = mine.http, answer
        websockets.request, websockets.response = mine, accepted
        for _ in range(3):
            barrier.wait(DEADLINE)
            if websockets.request is not mine or websockets.response is not accepted:
                return False
            if krait_ws.request is not mine.http or krait_ws.response is not answer:
                return False
        return True

    tasks = [Task(lambda number=number: in_new_context(lambda: upgrade(number))) for number in range(count)]
    assert [task.result(60) for task in tasks] == [True] * count


@own_thread
def test_hundreds_of_greenlets_each_see_their_own() -> None:
    def upgrade(number: int) -> bool:
        mine = upgrade_request(f"/{number}")
        websockets.request = mine
        gevent.sleep(0)
        return websockets.request is mine

    greenlets = [gevent.spawn(in_new_context, lambda number=number: upgrade(number)) for number in range(300)]
    gevent.joinall(greenlets, timeout=DEADLINE)
    assert [greenlet.value for greenlet in greenlets] == [True] * 300


def test_a_new_thread_begins_with_nothing() -> None:
    def assign_and_start() -> Any:
        websockets.request = upgrade_request()
        return Task(lambda: websockets.request).result()

    assert in_new_context(assign_and_start) is None


def test_the_context_variables_are_those_behind_the_facades() -> None:
    def assign() -> None:
        websockets.response = accepted = WebsocketsResponse(WebsocketsCtrlBase())
        assert context.websockets_response.get() is accepted

    in_new_context(assign)
