"""The director: a login, the old Engine.IO 3 handshake, the state of all items, then each change."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from itsdangerous import TimestampSigner, URLSafeTimedSerializer
from websockets.exceptions import ConnectionClosed

from krait_ws.testing import Answer, Client, Refused, SiteServer
from tests.integration.support import PATIENCE, RawClient, eventually

SITES = Path(__file__).parents[2] / "sites"
SECRET = "a secret that outlives a restart"
PASSWORD = "a garden of stones"
SOCKET = "/socket.io/?transport=websocket&EIO=3"
INITIAL = [
    {"iddevice": 5, "data": {"LIGHT_LEVEL": 80}},
    {"iddevice": 6, "data": {"LIGHT_LEVEL": 0}},
    {"iddevice": 7, "data": {"RelayState": 1}},
]


class Director:
    """The director as its clients see it, wherever it is served."""

    def __init__(self, site: SiteServer, prefix: str) -> None:
        self.site = site
        self.prefix = prefix

    def get(self, path: str, token: str = "", method: str = "GET", body: bytes = b"") -> Answer:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self.site.get(self.prefix + path, method=method, headers=headers, body=body)

    def post(self, path: str, data: Any, token: str = "") -> Answer:
        return self.get(path, token, "POST", data if isinstance(data, bytes) else json.dumps(data).encode())

    def login(self) -> str:
        token = json.loads(self.post("/login", {"user": "ann", "password": PASSWORD}).body)["token"]
        assert isinstance(token, str)
        return token

    def connect(self, token: str, path: str = SOCKET) -> Client:
        return self.site.connect(self.prefix + path, headers={"JWT": token}, timeout=PATIENCE)

    def greeted(self, token: str) -> tuple[Client, str]:
        """A connection and its client id."""
        client = self.connect(token)
        opening = client.receive(PATIENCE)
        assert isinstance(opening, str)
        assert opening[0] == "0"
        fields = json.loads(opening[1:])
        assert {**fields, "sid": ""} == {"sid": "", "upgrades": [], "pingInterval": 25000, "pingTimeout": 60000}
        client.expect("40")
        name, client_id = event(client)
        assert name == "clientId"
        return client, client_id

    def subscription(self, token: str, client_id: str) -> Answer:
        return self.get(f"/api/v1/items/datatoui?JWT={token}&SubscriptionClient={client_id}")

    @contextmanager
    def following(self, token: str) -> Iterator[tuple[Client, str]]:
        """A connection that follows the items, and the name of its events."""
        client, client_id = self.greeted(token)
        with client:
            client.send('42["2probe"]')
            subscription = json.loads(self.subscription(token, client_id).body)["subscriptionId"]
            client.send("42" + json.dumps(["startSubscription", subscription]))
            assert event(client) == (subscription, {"status": "OK"})
            yield client, subscription

    def command(self, item: int, command: str, token: str, **parameters: Any) -> Answer:
        data = {"async": True, "command": command, "tParams": parameters}
        return self.post(f"/api/v1/items/{item}/commands", data, token)


def event(client: Client) -> tuple[str, Any]:
    """Name and argument of the event that comes next."""
    packet = client.receive(PATIENCE)
    assert isinstance(packet, str)
    assert packet.startswith("42"), packet
    name, argument = json.loads(packet[2:])
    return name, argument


@pytest.fixture
def site(krait_site: Callable[..., SiteServer], own_port: int, monkeypatch: pytest.MonkeyPatch) -> SiteServer:
    monkeypatch.setenv("DIRECTOR_SECRET", SECRET)
    return krait_site(SITES / "director", port=own_port)


@pytest.fixture
def director(site: SiteServer) -> Director:
    return Director(site, "")


@pytest.fixture
def token(director: Director) -> str:
    return director.login()


def old_token(seconds: float, secret: str = SECRET) -> str:
    """A token that was made so many seconds ago."""

    class Clock(TimestampSigner):
        def get_timestamp(self) -> int:
            return int(time.time() - seconds)

    made = URLSafeTimedSerializer(secret, salt="director", signer=Clock).dumps("ann")
    assert isinstance(made, str)
    return made


SECONDS_OLD = (86397, 86392, 86380)
"""Tokens that will soon be too old. Where the machine is so slow that one is at once, the test takes the next."""


def globals_of(module: str) -> dict[str, Any]:
    (found,) = [loaded for name, loaded in list(sys.modules.items()) if name.endswith(f".{module}")]
    return vars(found)


# ---- who may come in


def test_the_login_gives_a_token(director: Director) -> None:
    answer = director.post("/login", {"user": "ann", "password": PASSWORD})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    data = json.loads(answer.body)
    assert data["seconds"] == 86400
    assert director.get("/api/v1/items", data["token"]).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ({"user": "ann", "password": "wrong"}, 401),
        ({"user": "ann", "password": ""}, 401),
        ({"user": "ann", "password": "\ud800"}, 401),
        ({"user": "bob", "password": PASSWORD}, 401),
        ({"user": "bob", "password": ""}, 401),
        ({"user": "", "password": ""}, 401),
        ({"user": "ann"}, 400),
        ({"user": ["ann"], "password": PASSWORD}, 400),
        ([], 400),
        (b"no JSON", 400),
        (b"[" * 100_000, 400),
        (b"\xff", 400),
        (b"", 400),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_login_is_refused(director: Director, data: Any, status: int) -> None:
    assert director.post("/login", data).status == status


def test_a_login_is_posted(director: Director) -> None:
    assert director.get("/login").status == 405


@pytest.mark.parametrize("wrong", ["", "none", "expired", "foreign", "a.b.c"])
def test_without_a_good_token_nothing_is_answered(director: Director, wrong: str) -> None:
    token = {"expired": old_token(86401), "foreign": old_token(0, "another secret"), "none": ""}.get(wrong, wrong)
    details = b'{"error": "Unauthorized", "details": "Expired or invalid token"}'
    with pytest.raises(Refused) as refused:
        director.connect(token)
    assert (refused.value.status, refused.value.body) == (401, details)
    for path in ("/api/v1/items", "/api/v1/items/datatoui", "/api/v1/items/5/variables", "/api/v1/items/5/commands"):
        answer = director.get(f"{path}?JWT={token}")
        assert (answer.status, answer.body) == (401, details)


def test_the_token_comes_in_a_header_or_in_the_query(director: Director, token: str) -> None:
    director.connect(token).close()
    director.site.connect(f"{SOCKET}&JWT={token}").close()
    director.site.connect(SOCKET, headers={"Authorization": f"Bearer {token}"}).close()
    assert director.get(f"/api/v1/items?JWT={token}").status == 200


def test_a_token_is_good_after_a_restart(krait_site: Callable[..., SiteServer], director: Director, token: str) -> None:
    director.site.close()
    again = Director(krait_site(SITES / "director", port=director.site.port), "")
    with again.following(token) as (client, subscription):
        assert event(client) == (subscription, INITIAL)


def greeted_for_a_moment(director: Director) -> Client:
    for seconds in SECONDS_OLD:
        with suppress(Refused):
            return director.greeted(old_token(seconds))[0]
    raise AssertionError("too slow")


def test_a_token_that_becomes_too_old_ends_the_connection(director: Director) -> None:
    client = greeted_for_a_moment(director)

    def keep_talking() -> None:  # that makes it no better
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            client.send("2")
            client.expect("3")
            time.sleep(0.05)

    with pytest.raises((ConnectionClosed, AssertionError)):
        keep_talking()
    assert client.expect_close(4401, PATIENCE) == "the token has expired"


def test_a_token_that_becomes_too_old_ends_a_silent_connection(director: Director) -> None:
    client = greeted_for_a_moment(director)
    assert client.expect_close(4401, PATIENCE) == "the token has expired"


@pytest.mark.parametrize("path", ["/socket.io/", "/socket.io/?EIO=4&transport=websocket", "/socket.io/?EIO=3"])
def test_another_protocol_is_refused(director: Director, token: str, path: str) -> None:
    with pytest.raises(Refused) as refused:
        director.connect(token, path)
    assert refused.value.status == 400
    assert director.get(path).status == 400


# ---- the conversation


@pytest.mark.parametrize("alone", [True, False], ids=["a site of its own", "a part of sites"])
def test_the_state_of_all_then_each_change(krait_site: Callable[..., SiteServer], alone: bool) -> None:
    site = krait_site(SITES / "director" if alone else SITES)
    director = Director(site, "" if alone else "/director")
    token = director.login()
    with director.following(token) as (one, name), director.following(token) as (two, _):
        for client in (one, two):
            assert event(client) == (name, INITIAL)
            client.send('42["2"]')  # that the status has come
        assert director.command(5, "SET_LEVEL", token, LEVEL=30).status == 200
        assert director.command(8, "ACTIVATE", token).status == 200
        for client in (one, two):
            assert event(client) == (name, {"iddevice": 5, "data": {"LIGHT_LEVEL": 30}})
            assert event(client) == (
                name,
                [
                    {"iddevice": 5, "data": {"LIGHT_LEVEL": 0}},
                    {"iddevice": 6, "data": {"LIGHT_LEVEL": 5}},
                    {"iddevice": 7, "data": {"RelayState": 0}},
                ],
            )


def test_pings_of_the_client_are_answered(director: Director, token: str) -> None:
    client, _ = director.greeted(token)
    with client:
        for ping in ("2", "2probe", "2ä"):
            client.send(ping)
            client.expect("3" + ping[1:])


def test_a_client_that_falls_silent_is_closed(director: Director, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    director.greeted(token)[0].close()  # so that the module is loaded
    monkeypatch.setitem(globals_of("_client"), "PING_TIMEOUT", 0.2)
    monkeypatch.setitem(globals_of("_client"), "PING_INTERVAL", 0.2)
    with director.connect(token) as client:
        assert client.expect_close(1001, PATIENCE) == "no ping came"


@pytest.mark.parametrize("goodbye", ["1", "41"])
def test_the_client_says_goodbye(director: Director, token: str, goodbye: str) -> None:
    client, _ = director.greeted(token)
    client.send(goodbye)
    client.expect_close(1000)


def test_nobody_follows_without_having_asked(director: Director, token: str) -> None:
    """The name of the events is the same for all, but knowing it is not enough."""
    with director.following(token) as (_, name):
        client, _ = director.greeted(token)
        with client:
            client.send("42" + json.dumps(["startSubscription", name]))
            director.command(7, "TOGGLE", token)
            client.send("2")
            client.expect("3")


def test_a_second_start_changes_nothing(director: Director, token: str) -> None:
    with director.following(token) as (client, name):
        assert event(client) == (name, INITIAL)
        client.send("42" + json.dumps(["startSubscription", name]))
        client.send("2")
        client.expect("3")
        director.command(7, "OPEN", token)
        assert event(client) == (name, {"iddevice": 7, "data": {"RelayState": 0}})


def test_a_subscription_is_for_a_client_that_is_there(director: Director, token: str) -> None:
    assert director.subscription(token, "nobody").status == 404
    assert director.subscription(token, "").status == 404
    client, client_id = director.greeted(token)
    assert director.subscription(token, client_id).status == 200
    client.close()
    eventually(lambda: director.subscription(token, client_id).status == 404)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "4",
        "42",
        "42{",
        "42[",
        "42[]",
        "42{}",
        "42null",
        '42["startSubscription"]',
        '42["startSubscription", 7]',
        '42["startSubscription", {}]',
        '42["unknown", 1]',
        '42/other,["2probe"]',
        '4213["2probe"]',
        "43[]",
        "451-[]",
        "40/other",
        "5",
        "6",
        "9",
        "b4aGVsbG8=",
        "no packet",
        "42" + "[" * 50_000,
        "4" * 60_000,
        b"",
        b"\x04hello",
        b"\xff" * 1000,
    ],
    ids=lambda wrong: repr(wrong[:30]),
)
def test_what_it_does_not_know_is_dropped(director: Director, token: str, wrong: str | bytes) -> None:
    with director.following(token) as (client, name):
        assert event(client) == (name, INITIAL)
        client.send(wrong)
        client.send("2")
        client.expect("3")


def test_a_message_that_is_too_large_ends_its_own_connection_only(director: Director, token: str) -> None:
    with director.following(token) as (client, name), director.following(token) as (other, _):
        client.send("4" * 70_000)
        client.expect_close(1009, PATIENCE)
        assert event(other) == (name, INITIAL)
        other.send("2")
        other.expect("3")


def test_no_change_is_missed_or_heard_twice_while_somebody_comes_in(
    director: Director, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the status and the state of all others try to change something: it comes after both."""
    director.greeted(token)[0].close()  # so that the module is loaded
    house, really_broadcast = globals_of("_house")["house"], globals_of("_house")["broadcast"]
    changes = [threading.Thread(target=house.change, args=[{5: {"LIGHT_LEVEL": level}}]) for level in (1, 2)]
    waiting = iter(changes)

    def broadcast(controllers: Any, message: str) -> None:
        change = next(waiting)
        change.start()
        change.join(0.2)  # it is over only if nothing holds it back
        really_broadcast(controllers, message)

    monkeypatch.setitem(globals_of("_house"), "broadcast", broadcast)
    with director.following(token) as (client, name):
        assert event(client) == (name, INITIAL)
        levels = [event(client)[1]["data"]["LIGHT_LEVEL"] for _ in changes]
        assert sorted(levels) == [1, 2]
        client.send("2")
        client.expect("3")
    for change in changes:
        change.join(PATIENCE)


def test_one_that_does_not_read_is_closed_and_hinders_nobody(krait_site: Callable[..., SiteServer]) -> None:
    director = Director(krait_site(SITES / "director", close_timeout=0.5), "")
    token = director.login()
    headers = (f"JWT: {token}",)
    with director.following(token) as (client, name), RawClient(director.site.port, SOCKET, headers=headers) as deaf:
        event(client)
        for _ in range(2):
            deaf.receive()
        client_id = json.loads(str(deaf.receive())[2:])[1]
        assert director.subscription(token, client_id).status == 200
        deaf.send_frame(1, "42" + json.dumps(["startSubscription", name]))
        house, sessions = globals_of("_house")["house"], director.site.server.sessions
        deadline = time.monotonic() + PATIENCE
        for level in itertools.cycle(range(100)):
            with suppress(OSError):  # the answers to pings fill what takes bytes for one that does not read
                deaf.send_frame(1, "2" + "x" * 60_000)
            house.change({6: {"LIGHT_LEVEL": level}})
            assert event(client)[1]["data"] == {"LIGHT_LEVEL": level}
            if len(sessions) == 1:
                break
            assert time.monotonic() < deadline, "the connection that does not read is still there"


# ---- plain requests


def test_what_there_is(director: Director, token: str) -> None:
    items = json.loads(director.get("/api/v1/items", token).body)
    assert [(item["id"], item["typeName"]) for item in items] == [(5, "light"), (6, "light"), (7, "lock"), (8, "scene")]


def test_variables(director: Director, token: str) -> None:
    level = [{"id": 5, "varName": "LIGHT_LEVEL", "value": 80}]
    assert json.loads(director.get("/api/v1/items/5/variables?varnames=LIGHT_LEVEL,nothing", token).body) == level
    assert json.loads(director.get("/api/v1/items/5/variables", token).body) == level
    assert json.loads(director.get("/api/v1/items/8/variables", token).body) == []
    for item in ("9", "-5", "٥", "05", "x"):
        assert director.get(f"/api/v1/items/{item.encode().hex('%')}/variables", token).status == 404


@pytest.mark.parametrize(
    ("item", "command", "parameters", "status"),
    [
        (5, "SET_LEVEL", {"LEVEL": 0}, 200),
        (5, "SET_LEVEL", {"LEVEL": 101}, 400),
        (5, "SET_LEVEL", {"LEVEL": -1}, 400),
        (5, "SET_LEVEL", {"LEVEL": True}, 400),
        (5, "SET_LEVEL", {"LEVEL": "50"}, 400),
        (5, "SET_LEVEL", {}, 400),
        (5, "OPEN", {}, 400),
        (7, "OPEN", {}, 200),
        (7, "SET_LEVEL", {"LEVEL": 5}, 400),
        (8, "TOGGLE", {}, 400),
        (9, "ON", {}, 404),
    ],
)
def test_commands(director: Director, token: str, item: int, command: str, parameters: Any, status: int) -> None:
    assert director.command(item, command, token, **parameters).status == status


def test_toggling(director: Director, token: str) -> None:
    def value(item: int) -> int:
        found = json.loads(director.get(f"/api/v1/items/{item}/variables", token).body)[0]["value"]
        assert isinstance(found, int)
        return found

    states = []
    for item in (5, 5, 7, 7):
        director.command(item, "TOGGLE", token)
        states.append(value(item))
    assert states == [0, 100, 0, 1]


@pytest.mark.parametrize("data", [b"", b"no JSON", [], {}, {"command": 5}, b"[" * 100_000], ids=lambda v: repr(v)[:20])
def test_a_wrong_command_is_refused(director: Director, token: str, data: Any) -> None:
    assert director.post("/api/v1/items/5/commands", data, token).status == 400
    assert director.get("/api/v1/items/5/commands", token).status == 405


def test_the_page_and_what_it_needs_are_served(director: Director) -> None:
    for name in ("", "style.css", "demo.js", "favicon.svg"):
        assert director.get(f"/{name}").status == 200
    for path in ("/setup.cfg", "/_house", "/_house.py", "/socket.io/index.py"):
        assert director.get(path).status == 404
