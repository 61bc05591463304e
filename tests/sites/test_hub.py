"""The hub: states first, then changes; who may come in; what a program that asks wrongly is told."""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from krait_ws.testing import Answer, Client, Refused, SiteServer
from tests.integration.support import PATIENCE, eventually

SITES = Path(__file__).parents[2] / "sites"
ADDRESSES = ["10 A1 01 1", "10 A1 02 1", "10 A1 03 1", "10 A1 04 1"]
LAMP, DIMMER = ADDRESSES[:2]


def basic(user: str = "demo", password: str = "demo") -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class Hub:
    """The hub as its clients see it, wherever it is served."""

    def __init__(self, site: SiteServer, prefix: str) -> None:
        self.site = site
        self.prefix = prefix

    def subscribe(self, headers: dict[str, str] | None = None, origin: str | None = None) -> Client:
        own = basic() if headers is None else headers
        return self.site.connect(f"{self.prefix}/rest/subscribe", headers=own, origin=origin, timeout=PATIENCE)

    def refusal(self, headers: dict[str, str]) -> Refused:
        with pytest.raises(Refused) as refused:
            self.subscribe(headers)
        return refused.value

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.site.get(self.prefix + path, headers=basic() if headers is None else headers)

    def post(self, path: str, data: Any = None, headers: dict[str, str] | None = None) -> Answer:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return self.site.get(self.prefix + path, method="POST", headers=headers or {}, body=body)

    def switch(self, address: str, command: str, headers: dict[str, str] | None = None) -> int:
        return self.get(f"/rest/nodes/{quote(address)}/cmd/{command}", headers).status

    def sign_in(self) -> tuple[dict[str, str], dict[str, str], str]:
        """Headers with the token, headers with the cookie, and the token that renews."""
        answer = self.post("/api/login", {"username": "demo", "password": "demo"})
        assert answer.status == 200
        data = json.loads(answer.text)["data"]
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return {"Authorization": f"Bearer {data['accessToken']}"}, {"Cookie": cookie}, data["refreshToken"]


@pytest.fixture(params=["a site of its own", "a part of sites"])
def hub(request: pytest.FixtureRequest, krait_site: Callable[..., SiteServer]) -> Hub:
    alone = request.param == "a site of its own"
    return Hub(krait_site(SITES / "hub" if alone else SITES), "" if alone else "/hub")


@pytest.fixture
def lone_hub(krait_site: Callable[..., SiteServer]) -> Hub:
    return Hub(krait_site(SITES / "hub"), "")


def module(name: str) -> dict[str, Any]:
    """The variables of a module of the hub that is being served."""
    (found,) = [module for key, module in list(sys.modules.items()) if key.endswith(f".{name}")]
    return vars(found)


def receive(client: Client) -> tuple[str, str, str, int]:
    """Control, action, address and number of the next event."""
    message = client.receive(PATIENCE)
    assert isinstance(message, str)
    assert message.startswith('<?xml version="1.0"?><Event seqnum="')
    event = ElementTree.fromstring(message)
    assert event.get("sid") == "uuid:1"
    assert event.get("timestamp")
    assert [child.tag for child in event] == ["control", "action", "node", "eventInfo"]
    texts = [child.text or "" for child in event]
    if texts[0] == "ST":
        assert event[1].attrib == {"uom": "100", "prec": "0"}
    return texts[0], texts[1], texts[2], int(event.get("seqnum", ""))


def replay(client: Client) -> dict[str, str]:
    """Address and level of the states that come first."""
    events = [receive(client) for _ in ADDRESSES]
    assert {control for control, *_ in events} == {"ST"}
    return {address: level for _, level, address, _ in events}


# ---- the stream


def test_the_states_come_first_then_the_changes(hub: Hub) -> None:
    with hub.subscribe() as first:
        assert replay(first) == dict.fromkeys(ADDRESSES, "0")
        assert hub.switch(LAMP, "DON") == 200
        assert hub.switch(DIMMER, "DON/128") == 200
        assert [receive(first), receive(first)] == [("ST", "255", LAMP, 5), ("ST", "128", DIMMER, 6)]
        with hub.subscribe() as second:
            assert replay(second) == {**dict.fromkeys(ADDRESSES, "0"), LAMP: "255", DIMMER: "128"}
            assert hub.switch(LAMP, "DOF") == 200
            for client in (first, second):
                assert receive(client) == ("ST", "0", LAMP, 7)


def test_nothing_is_lost_or_comes_twice_while_many_switch_and_subscribe(lone_hub: Hub) -> None:
    """Numbers of the changes are without a gap from the first live one on, and the replay is older than that."""

    def subscribe(_: int) -> None:
        with lone_hub.subscribe() as client:
            numbers = [receive(client)[3] for _ in ADDRESSES]
            live = [receive(client)[3] for _ in range(60)]
            assert live == list(range(live[0], live[0] + 60))
            assert max(numbers) == live[0] - 1

    running = threading.Event()
    running.set()

    def switch(address: str) -> None:
        while running.is_set():
            assert lone_hub.switch(address, "DON") == 200

    with ThreadPoolExecutor(8) as pool:
        switches = [pool.submit(switch, address) for address in ADDRESSES[:2]]
        try:
            for done in [pool.submit(subscribe, number) for number in range(12)]:
                done.result(60)
        finally:
            running.clear()
        for done in switches:
            done.result(PATIENCE)


def test_a_quiet_stream_gives_signs_of_life(lone_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    lone_hub.get("/rest/status")
    assert module("_devices")["HEARTBEAT"] == 30
    monkeypatch.setitem(module("_devices"), "HEARTBEAT", 0.05)
    with lone_hub.subscribe() as client:
        replay(client)
        for _ in range(3):
            control, _, address, _ = receive(client)
            assert (control, address) == ("_0", "")


@pytest.mark.parametrize("message", ["", "<xml", b"\x00\xff", "[" * 100_000])
def test_who_says_something_on_the_stream_is_closed_alone(lone_hub: Hub, message: str | bytes) -> None:
    with lone_hub.subscribe() as wrong, lone_hub.subscribe() as right:
        replay(right)
        wrong.send(message)
        assert wrong.expect_close(1008, PATIENCE) == "this stream is to be read only"
        lone_hub.switch(LAMP, "DON")
        assert receive(right)[1] == "255"
        eventually(lambda: len(lone_hub.site.server.sessions) == 1)


class Deaf:
    """A connection whose socket takes nothing but the close."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def flush(self) -> None:
        """The out-mailbox stays as full as it is."""

    send_now = flush

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_a_subscriber_that_does_not_read_is_closed_and_holds_up_nobody(
    lone_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone_hub.get("/rest/status")
    devices = module("_devices")
    monkeypatch.setattr(devices["Subscriber"], "max_out_messages", 8)
    with lone_hub.subscribe() as slow:
        replay(slow)
        (session,) = lone_hub.site.server.sessions
        session._transport = Deaf(session._transport)
        with lone_hub.subscribe() as reader:
            replay(reader)
            for number in range(20):
                devices["hub"].set_level(devices["hub"].devices[LAMP], number)
                assert receive(reader)[1] == str(number)
            assert session.close_code == 1013
            assert len(devices["hub"].subscribers.members()) == 1
            slow.expect_close(1013, PATIENCE)


# ---- who may come in


def test_wrong_credentials_are_refused_and_the_next_try_may_come_on_the_same_connection(lone_hub: Hub) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", lone_hub.site.port, timeout=PATIENCE)
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    try:
        for _ in range(3):
            connection.request("GET", "/rest/subscribe", headers={**upgrade, **basic(password="wrong")})
            own_end = connection.sock.getsockname()
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("WWW-Authenticate")) == (401, 'Basic realm="hub", charset="UTF-8"')
            answer.read()
        connection.request("GET", "/rest/subscribe", headers={**upgrade, **basic()})
        assert connection.sock.getsockname() == own_end
        assert connection.getresponse().status == 101
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("headers", "status", "challenge"),
    [
        ({}, 401, "Basic"),
        (basic("admin", "demo"), 401, "Basic"),
        (basic("demo", ""), 401, "Basic"),
        (basic("", ""), 401, "Basic"),
        ({"Authorization": "Digest x"}, 401, "Basic"),
        ({"Authorization": "Basic !"}, 400, None),
        ({"Authorization": "Bearer wrong"}, 401, "Bearer"),
        ({"Authorization": "Bearer"}, 400, None),
        ({"Cookie": "hub=wrong"}, 101, None),
    ],
)
def test_who_may_not_come_in(lone_hub: Hub, headers: dict[str, str], status: int, challenge: str | None) -> None:
    if status == 101:  # a page: it can see a close code only
        with lone_hub.subscribe(headers) as client:
            client.expect_close(4401, PATIENCE)
        return
    refused = lone_hub.refusal(headers)
    assert refused.status == status
    assert refused.headers.get("WWW-Authenticate", "").split(" ")[0] == (challenge or "")
    for path in (
        "/rest/status",
        "/rest/profiles",
        "/api/nodes",
        "/api/variables/1",
        f"/rest/nodes/{quote(LAMP)}/cmd/DON",
    ):
        assert lone_hub.get(path, headers).status == status
    with lone_hub.subscribe() as client:
        assert replay(client)[LAMP] == "0", "somebody switched who may not"


def test_a_token_is_good_until_it_is_given_back_and_is_renewed_once(hub: Hub) -> None:
    token, _, refresh = hub.sign_in()
    with hub.subscribe(token) as client:
        replay(client)
    renewed = json.loads(hub.post("/api/jwt/refresh", {"refreshToken": refresh}).text)["data"]
    second = {"Authorization": f"Bearer {renewed['accessToken']}"}
    assert hub.post("/api/jwt/refresh", {"refreshToken": refresh}).status == 401
    assert hub.post("/api/jwt/refresh", {"refreshToken": renewed["accessToken"]}).status == 401
    assert hub.refusal({"Authorization": f"Bearer {renewed['refreshToken']}"}).status == 401
    assert hub.post("/api/jwt/logout", headers=second).status == 200
    assert hub.refusal(second).status == 401
    assert hub.get("/api/nodes", token).status == 200


def test_a_token_has_an_end_that_can_be_read(lone_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    lone_hub.get("/rest/status")
    monkeypatch.setitem(module("_access"), "TOKEN_SECONDS", -1.0)
    token, _, _ = lone_hub.sign_in()
    assert lone_hub.refusal(token).status == 401
    _, payload, _ = token["Authorization"].removeprefix("Bearer ").split(".")
    assert json.loads(base64.urlsafe_b64decode(payload + "=="))["sub"] == "demo"


def test_tokens_are_kept_in_a_bounded_number(lone_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = lone_hub.sign_in()
    monkeypatch.setitem(module("_access"), "MAX_TOKENS", 4)
    second, *_ = lone_hub.sign_in()
    third, *_ = lone_hub.sign_in()
    assert [lone_hub.get("/api/nodes", token).status for token in (first, second, third)] == [401, 200, 200]


def test_a_page_comes_with_its_cookie_from_its_own_origin_only(lone_hub: Hub) -> None:
    _, cookie, _ = lone_hub.sign_in()
    with lone_hub.subscribe(cookie, origin=lone_hub.site.url) as client:
        replay(client)
    with lone_hub.subscribe({}, origin=lone_hub.site.url) as client:
        client.expect_close(4401, PATIENCE)
    with pytest.raises(Refused) as refused:
        lone_hub.subscribe(cookie, origin="https://evil.example")
    assert refused.value.status == 403


def test_a_cookie_alone_switches_by_post_only(lone_hub: Hub) -> None:
    """A link on a foreign page brings the cookie of whoever follows it."""
    _, cookie, _ = lone_hub.sign_in()
    assert lone_hub.switch(LAMP, "DON", cookie) == 405
    assert lone_hub.post(f"/rest/nodes/{quote(LAMP)}/cmd/DON", headers=cookie).status == 200
    assert lone_hub.post(f"/rest/nodes/{quote(LAMP)}/cmd/DON").status == 401


@pytest.mark.parametrize(
    "posted",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"username": "demo"}',
        b'{"username": "demo", "password": 5}',
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("path", ["/api/login", "/api/jwt/refresh"])
def test_what_is_no_sign_in_is_told_what_is_wanted(lone_hub: Hub, path: str, posted: bytes) -> None:
    answer = lone_hub.post(path, posted)
    assert answer.status == 400
    assert "POST {" in json.loads(answer.text)["data"]
    assert lone_hub.get(path).status == 400


@pytest.mark.parametrize(("user", "password"), [("demo", "wrong"), ("nobody", ""), ("", ""), ("démo", "\ud800")])
def test_a_wrong_password_gives_no_token(lone_hub: Hub, user: str, password: str) -> None:
    answer = lone_hub.post("/api/login", {"username": user, "password": password})
    assert answer.status in (400, 401)
    assert "Set-Cookie" not in answer.headers
    assert "Token" not in answer.text


# ---- what is asked besides


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/rest/nodes/{quote(LAMP)}/cmd/DON/100", 400),
        (f"/rest/nodes/{quote(DIMMER)}/cmd/DON/256", 400),
        (f"/rest/nodes/{quote(DIMMER)}/cmd/DON/-1", 400),
        (f"/rest/nodes/{quote(DIMMER)}/cmd/DON/x", 400),
        (f"/rest/nodes/{quote(DIMMER)}/cmd/DON/%D9%A3", 400),
        (f"/rest/nodes/{quote(DIMMER)}/cmd/DOF/3", 400),
        (f"/rest/nodes/{quote(DIMMER)}/cmd/%3Cx%3E", 400),
        ("/rest/nodes/nothing/cmd/DON", 404),
        ("/api/nothing", 404),
    ],
)
def test_a_command_that_makes_no_sense_changes_nothing(lone_hub: Hub, path: str, status: int) -> None:
    answer = lone_hub.get(path)
    assert answer.status == status
    if path.startswith("/rest"):
        assert ElementTree.fromstring(answer.text).get("succeeded") == "false"
    with lone_hub.subscribe() as client:
        assert set(replay(client).values()) == {"0"}


def test_states_names_and_what_there_is_none_of(hub: Hub) -> None:
    hub.switch(DIMMER, "DON/7")
    status = ElementTree.fromstring(hub.get("/rest/status").text)
    levels = {node.get("id"): node[0].get("value") for node in status}
    assert levels == {**dict.fromkeys(ADDRESSES, "0"), DIMMER: "7"}
    nodes = json.loads(hub.get("/api/nodes").text)["data"]["nodes"]["node"]
    assert [(node["address"], node["property"][0]["value"]) for node in nodes] == list(levels.items())
    for table in ("programs", "triggers", "variables/1", "variables/2"):
        assert json.loads(hub.get(f"/api/{table}").text) == {"successful": True, "data": []}
    assert json.loads(hub.get("/rest/profiles").text)["families"] == []
    assert json.loads(hub.get("/api/config", {}).text)["data"]["version"].startswith("6.")


def test_the_page_and_what_it_needs_are_served(krait_site: Callable[..., SiteServer]) -> None:
    alone, part = krait_site(SITES / "hub"), krait_site(SITES)
    assert alone.get("/").body == part.get("/hub/").body == (SITES / "hub/index.html").read_bytes()
    for name in ("style.css", "demo.js", "favicon.svg"):
        assert alone.get(f"/{name}").body == (SITES / name).read_bytes()
    for path in ("/setup.cfg", "/_access.py", "/_access", "/..%2findex.html"):
        assert alone.get(path).status == 404, path
