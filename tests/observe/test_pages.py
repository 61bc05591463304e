"""What a server answers below /_krait/: health, readiness, metrics; and what it does not."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.parser import text_string_to_metric_families

from krait_ws.config import Config
from krait_ws.errors import ConfigError
from krait_ws.observe import metrics
from krait_ws.testing import Refused, SiteServer
from tests.integration.support import RawClient, close_frame, eventually, raw_get, upgrade_request

Serve = Callable[..., SiteServer]
TOKEN = "correct-horse-battery"


def scrape(site: SiteServer, **headers: str) -> dict[tuple[str, ...], float]:
    """The metrics: values by name and the values of their labels, sorted by the labels' names."""
    answer = site.get("/_krait/metrics", headers=headers)
    assert answer.status == 200, answer.text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def eventually_scrape(site: SiteServer, expected: dict[tuple[str, ...], float]) -> None:
    found: dict[tuple[str, ...], float | None] = {}

    def is_as_expected() -> bool:
        values = scrape(site)
        found.update({key: values.get(key) for key in expected})
        return found == expected

    try:
        eventually(is_as_expected)
    except AssertionError:
        assert found == expected


# ---- health and readiness


def test_health_and_readiness_are_always_there(serve: Serve) -> None:
    site = serve()
    assert (site.get("/_krait/health").status, site.get("/_krait/health").text) == (200, "ok\n")
    assert (site.get("/_krait/ready").status, site.get("/_krait/ready").text) == (200, "ready\n")
    assert site.get("/_krait/ready", method="HEAD").body == b""


@pytest.mark.parametrize("path", ["/_krait/", "/_krait/metrics", "/_krait/dashboard.js", "/_krait/login", "/_krait/x"])
def test_the_rest_is_off_unless_switched_on(serve: Serve, path: str) -> None:
    assert serve().get(path).status == 404


def test_a_server_that_drains_is_not_ready_and_is_alive(serve: Serve) -> None:
    site = serve()
    lingers = site.connect("/lingers")
    # New connections are refused while it drains; one that was kept has one more answer.
    with kept(site) as ask_health, kept(site) as ask_readiness, kept(site) as release:
        site.server.request_stop()
        eventually(lambda: site.server.is_stopping)
        assert ask_health("/_krait/health") == (200, b"ok\n")
        assert ask_readiness("/_krait/ready") == (503, b"draining\n")
        assert release("/lingers") == (200, b"released")
    lingers.expect_close(1001)


@contextmanager
def kept(site: SiteServer) -> Iterator[Callable[[str], tuple[int, bytes]]]:
    """An HTTP connection that has had an answer and asks for more."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)

    def get(path: str) -> tuple[int, bytes]:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()

    assert get("/_krait/ready") == (200, b"ready\n")
    yield get
    connection.close()


def test_health_answers_while_every_script_thread_is_stuck(
    tmp_path: Path, krait_site: Callable[..., SiteServer]
) -> None:
    (tmp_path / "slow.py").write_text(
        "import threading\nimport krait_ws\nrelease = threading.Event()\n"
        "def http(request):\n    release.wait(20)\n    return krait_ws.Response('slow')\n"
        "def websocket(request):\n    release.set()\n"
    )
    site = krait_site(tmp_path, script_threads=1, metrics=True, script_timeout=20)
    answers: list[Any] = []
    client = threading.Thread(target=lambda: answers.append(raw_get(site.port, b"/slow")))  # which waits long enough
    client.start()

    def stuck() -> list[Any]:
        modules = [module for name, module in list(sys.modules.items()) if name.startswith("krait_route_")]
        return [
            module for module in modules if Path(str(module.__file__)).name == "slow.py" and hasattr(module, "http")
        ]

    eventually(stuck)
    assert site.get("/_krait/health").status == 200
    assert scrape(site)["krait_workers",] == 1
    stuck()[0].release.set()
    client.join(20)
    assert answers[0].body == b"slow"


def test_other_methods_are_refused(serve: Serve) -> None:
    site = serve(dashboard=True)
    assert site.get("/_krait/health", method="POST").status == 405
    assert site.get("/_krait/login").status == 405
    assert site.get("/_krait").headers["Location"].endswith("_krait/")


def test_a_site_cannot_answer_there(tmp_path: Path, krait_site: Callable[..., SiteServer]) -> None:
    (tmp_path / "_krait").mkdir()
    (tmp_path / "_krait" / "index.html").write_text("mine")
    (tmp_path / "[any].py").write_text("import krait_ws\ndef http(request):\n    return krait_ws.Response('any')\n")
    site = krait_site(tmp_path)
    assert site.get("/_krait/").status == 404
    assert site.get("/_kraits").status == 404
    assert site.get("/krait").text == "any"


# ---- metrics


def test_what_connections_do_is_counted_by_route(serve: Serve) -> None:
    site = serve(metrics=True)
    with site.connect("/echo") as echo, site.connect("/chat/one") as one, site.connect("/chat/two") as two:
        for client in (echo, one, two):
            client.send("hello")
            client.expect("hello")
        echo.send(bytes(200))
        echo.expect(bytes(200))
        values = scrape(site)
        assert values["krait_connections", "/echo"] == 1
        assert values["krait_connections", "/chat/[room]"] == 2
        assert values["krait_messages_total", "in", "/echo"] == 2
        assert values["krait_messages_total", "out", "/chat/[room]"] == 2
        # Heads of frames are counted too: a client's has a key of four bytes.
        assert values["krait_bytes_total", "in", "/echo"] == (2 + 4 + 5) + (4 + 4 + 200)
        assert values["krait_bytes_total", "out", "/echo"] == (2 + 5) + (4 + 200)
        assert not [key for key in values if "/chat/one" in key], "a route is a pattern, not what clients make of it"
    eventually_scrape(
        site,
        {
            ("krait_connections", "/echo"): 0,
            ("krait_connections", "/chat/[room]"): 0,
            ("krait_connections_opened_total", "/chat/[room]"): 2,
            ("krait_connections_closed_total", "1000", "/chat/[room]"): 2,
            ("krait_connections_closed_total", "1000", "/echo"): 1,
            ("krait_messages_total", "in", "/echo"): 2,
            ("krait_handler_seconds_count", "/echo"): 1,
            ("krait_handler_seconds_count", "/chat/[room]"): 0,
        },
    )


def test_a_message_in_fragments_is_one(serve: Serve) -> None:
    site = serve(metrics=True)
    with RawClient(site.port, "/echo") as client:
        client.send_frame(1, "hel", fin=False)
        client.send_frame(0, "lo")
        client.expect("hello")
        eventually_scrape(
            site, {("krait_messages_total", "in", "/echo"): 1, ("krait_messages_total", "out", "/echo"): 1}
        )


def test_refused_handshakes_are_counted_by_reason(serve: Serve) -> None:
    site = serve(metrics=True, max_connections=1)
    for path, options in (
        ("/nowhere", {}),
        ("/refuses", {}),
        ("/echo", {"origin": "http://evil.example"}),
        ("/_krait/live", {}),
    ):
        with pytest.raises(Refused):
            site.connect(path, **options)
    with site.connect("/echo"), pytest.raises(Refused):
        site.connect("/echo")
    expected = ("not_found", "forbidden", "origin", "dashboard", "max_connections")
    eventually_scrape(site, {("krait_handshakes_refused_total", reason): 1 for reason in expected})


def test_a_stuck_handler_is_seen_until_it_ends(serve: Serve) -> None:
    site = serve(metrics=True)
    site.connect("/stuck").close()
    eventually_scrape(
        site,
        {
            ("krait_handlers_stuck", "/stuck"): 1,
            ("krait_handlers_abandoned_total", "/stuck"): 1,
            ("krait_connections", "/stuck"): 0,
            ("krait_connections_closed_total", "1000", "/stuck"): 1,
        },
    )
    assert site.get("/stuck").text == "released"
    eventually_scrape(
        site,
        {
            ("krait_handlers_stuck", "/stuck"): 0,
            ("krait_handlers_abandoned_total", "/stuck"): 1,
            ("krait_handler_seconds_count", "/stuck"): 1,
            ("krait_connections_closed_total", "1000", "/stuck"): 1,
        },
    )


def test_a_client_that_does_not_read_shows(serve: Serve) -> None:
    site = serve(metrics=True)
    with RawClient(site.port, "/flood", receive_buffer=4096) as client:

        def shows() -> bool:
            values = scrape(site)
            return (
                values["krait_pushes_dropped_total", "/flood"] > 0
                and values["krait_mailbox_messages", "out", "/flood"] >= 3
                and values["krait_mailbox_out_bytes", "/flood"] > 3 << 20
                and values["krait_mailbox_fullest_ratio", "out"] > 0.7
            )

        eventually(shows)
        client.reset()
    eventually(lambda: scrape(site).get(("krait_connections_closed_total", "1006", "/flood")) == 1)


def test_close_codes_of_clients_have_few_labels(serve: Serve) -> None:
    site = serve(metrics=True)
    for code in range(4000, 4040):
        with RawClient(site.port, "/echo") as client:
            client.send(close_frame(code))
            client.expect_close(code)
    eventually_scrape(site, {("krait_connections_closed_total", "other", "/echo"): 8})


def test_the_loop_delay_is_measured(serve: Serve) -> None:
    site = serve(metrics=True)
    eventually(lambda: scrape(site)["krait_loop_delay_seconds_count",] >= 2)
    values = scrape(site)
    assert values["krait_loop_delay_seconds_bucket", "+Inf"] == values["krait_loop_delay_seconds_count",]
    assert values["krait_threads",] >= 2


def test_what_a_site_counts_itself_is_there_too(serve: Serve) -> None:
    counter = Counter("orders", "Orders of the shop.")
    try:
        counter.inc(3)
        assert scrape(serve(metrics=True))["orders_total",] == 3
    finally:
        REGISTRY.unregister(counter)


def test_openmetrics_for_those_who_ask(serve: Serve) -> None:
    site = serve(metrics=True)
    answer = site.get("/_krait/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_without_the_package_metrics_say_what_to_install(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"metrics: .*pip install 'krait-ws\[metrics\]'"):
        serve(metrics=True)
    assert serve(dashboard=True).get("/_krait/").status == 200, "the dashboard needs no package"


def test_the_server_does_not_import_the_package_unless_it_is_asked() -> None:
    code = "import sys, krait_ws.network.server; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, cwd=Path(__file__).parents[2])


def test_counters_never_fall_while_connections_come_and_go(serve: Serve) -> None:
    site = serve(metrics=True)
    stop = threading.Event()
    opened: list[None] = []

    def churn() -> None:
        while not stop.is_set():
            opened.append(None)
            with site.connect("/chat/x") as client:
                client.send("m")
                client.expect("m")

    clients = [threading.Thread(target=churn) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        names = ("krait_messages_total", "krait_bytes_total", "krait_connections_opened_total")
        before: dict[tuple[str, ...], float] = {}
        scrapes = 0
        while scrapes < 100 or len(opened) <= 10:  # on a busy machine the clients may be slower than the scrapes
            scrapes += 1
            values = {key: value for key, value in scrape(site).items() if key[0] in names}
            fallen = {key: (value, values.get(key)) for key, value in before.items() if values.get(key, 0) < value}
            assert not fallen
            before = values
    finally:
        stop.set()
        for client in clients:
            client.join(20)
    count = len(opened)
    eventually_scrape(
        site,
        {
            ("krait_messages_total", "in", "/chat/[room]"): count,
            ("krait_messages_total", "out", "/chat/[room]"): count,
            ("krait_connections_closed_total", "1000", "/chat/[room]"): count,
        },
    )


# ---- who may see it


@pytest.mark.parametrize("page", ["/_krait/metrics", "/_krait/"])
def test_a_forwarded_request_is_not_of_this_machine(serve: Serve, page: str) -> None:
    site = serve(metrics=True, dashboard=True)
    assert site.get(page).status == 200
    assert site.get(page, headers={"X-Forwarded-For": "127.0.0.1"}).status == 403
    assert site.get(page, headers={"Host": "evil.example"}).status == 403


@pytest.mark.parametrize("page", ["/_krait/metrics", "/_krait/"])
def test_nor_is_one_of_a_trusted_proxy(serve: Serve, page: str) -> None:
    site = serve(metrics=True, dashboard=True, trusted_proxy="127.0.0.1")
    assert site.get(page).status == 403
    assert site.get(page, headers={"X-Forwarded-For": "127.0.0.1"}).status == 403


def test_with_a_token_everybody_needs_it(serve: Serve) -> None:
    site = serve(metrics=True, dashboard=True, dashboard_token=TOKEN)
    refused = site.get("/_krait/metrics")
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert scrape(site, Authorization=f"Bearer {TOKEN}")
    assert scrape(site, Authorization=f"Bearer {TOKEN}", Host="example.org", **{"X-Forwarded-For": "192.0.2.1"})
    assert site.get(f"/_krait/metrics?token={TOKEN}").status == 401, "URLs are logged"
    assert site.get("/_krait/health").status == 200


def login(site: SiteServer, token: str, **headers: str) -> Any:
    body = f"token={token}".encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    return site.get("/_krait/login", method="POST", headers=headers, body=body)


def test_the_login_gives_a_cookie_that_stands_for_the_token(serve: Serve) -> None:
    site = serve(dashboard=True, dashboard_token=TOKEN)
    assert site.get("/_krait/").status == 401
    assert '<form method="post" action="login">' in site.get("/_krait/").text
    assert login(site, "wrong").status == 401
    answer = login(site, TOKEN, Origin=site.url)
    assert (answer.status, answer.headers["Location"]) == (303, "./")
    cookie, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/_krait/"} <= set(attributes)
    assert TOKEN not in cookie
    assert "Messages a second" in site.get("/_krait/", headers={"Cookie": cookie}).text
    with site.connect("/_krait/live", headers={"Cookie": cookie}, origin=site.url):
        pass


@pytest.mark.parametrize("body", [b"a&" * 100_000, b"token=" + b"x" * 600_000], ids=["many", "large"])
def test_a_long_login_is_not_read_on_the_network_loop(serve: Serve, body: bytes) -> None:
    site = serve(dashboard=True, dashboard_token=TOKEN)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert site.get("/_krait/login", method="POST", headers=headers, body=body).status == 413


def test_the_cookie_of_a_secure_site_is_secure(serve: Serve) -> None:
    site = serve(dashboard=True, dashboard_token=TOKEN, trusted_proxy="127.0.0.1")
    answer = login(site, TOKEN, **{"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"})
    assert "Secure" in answer.headers["Set-Cookie"].split("; ")


def test_another_page_cannot_log_in_for_its_visitor(serve: Serve) -> None:
    site = serve(dashboard=True, dashboard_token=TOKEN)
    assert login(site, TOKEN, Origin="http://evil.example").status == 403


@pytest.mark.parametrize(
    ("options", "headers", "origin", "status"),
    [
        ({}, {}, "http://evil.example", 403),
        ({"origin": "*"}, {}, "http://evil.example", 403),
        ({"origin": "http://friend.example"}, {}, "http://friend.example", 403),
        ({}, {"X-Forwarded-For": "127.0.0.1"}, None, 403),
        ({"dashboard_token": TOKEN}, {}, None, 401),
        ({"dashboard_token": TOKEN}, {"Authorization": "Bearer wrong"}, None, 401),
        ({"dashboard_token": TOKEN, "origin": "*"}, {"Authorization": f"Bearer {TOKEN}"}, "http://evil.example", 401),
    ],
)
def test_only_its_own_page_and_programs_talk_to_the_dashboard(
    serve: Serve, options: dict[str, Any], headers: dict[str, str], origin: str | None, status: int
) -> None:
    site = serve(dashboard=True, **options)
    with pytest.raises(Refused) as refused:
        site.connect("/_krait/live", headers=headers, origin=origin)
    assert refused.value.status == status


def test_a_rebound_name_does_not_reach_the_dashboard(serve: Serve) -> None:
    """A page of evil.example whose name now points at this machine: the browser finds Host and Origin agree."""
    site = serve(dashboard=True)
    request = upgrade_request("/_krait/live", ("Host: evil.example", "Origin: http://evil.example"))
    with RawClient(site.port, upgrade=False) as client:
        client.send(request)
        assert client.read_answer().status == 403


@pytest.mark.parametrize("token", ["short", "with blanks in its middle", "x" * 257, "ümläutümläutümläut"])
def test_a_token_must_be_hard_to_guess(token: str) -> None:
    with pytest.raises(ConfigError, match="dashboard_token") as error:
        Config(dashboard_token=token)
    assert token not in str(error.value)


def test_pages_say_what_they_may_do(serve: Serve) -> None:
    headers = serve(dashboard=True).get("/_krait/").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Frame-Options"] == "DENY"
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
