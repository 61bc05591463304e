"""sidekick-py 0.0.6 against the relay, as it comes from PyPI."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from krait_ws.testing import Client, SiteServer
from tests.clients.conftest import SITES
from tests.clients.support import PATIENCE, Program
from tests.integration.support import eventually

Serve = Callable[..., SiteServer]
START = ["global/clearAll", "grid/spawn", "console/spawn"]


class Panel:
    """A panel that notes what it gets. Made without a browser, so that nothing is lost between it and the test."""

    def __init__(self, site: SiteServer, room: str = "", peer_id: str = "panel", role: str = "sidekick") -> None:
        self.client: Client = site.connect(f"/?room={room}" if room else "/", timeout=PATIENCE)
        payload = {"peerId": peer_id, "role": role, "status": "online", "version": "1", "timestamp": 1}
        self.send("system", "announce", payload=payload)
        # Whoever comes while it comes in may be announced to it twice: as one who is there, and as one who comes.
        eventually(lambda: peer_id in online(room), what="the panel to come in")

    def send(self, module: str, kind: str, **fields: Any) -> None:
        self.client.send(json.dumps({"id": 0, "module": module, "type": kind, **fields}))

    def click(self, x: int, y: int, src: str = "grid") -> None:
        self.send("grid", "event", src=src, payload={"event": "click", "x": x, "y": y})

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.client.receive(PATIENCE))
        return message

    def expect(self, *names: str) -> list[dict[str, Any]]:
        """The next messages have these names, ``module/type``, or ``hero/online`` and ``hero/offline``."""
        messages = [self.receive() for _ in names]
        assert [name_of(message) for message in messages] == list(names)
        return messages

    def expect_nothing(self, seconds: float = 1.0) -> None:
        """Nothing comes for so long: it is what would come that the test is about."""
        try:
            message = self.client.receive(seconds)
        except AssertionError as nothing:
            assert "no message came" in str(nothing)  # noqa: PT017  what the client says when nothing comes
        else:
            raise AssertionError(f"there came {message!r}")


def online(room: str = "") -> set[str]:
    """The peer ids that are online in a room, when all others have been told of them."""
    (module,) = [module for name, module in list(sys.modules.items()) if name.endswith("._relay")]
    found, _ = vars(module)["rooms"]._rooms.get(room, (None, None))
    if found is None:
        return set()
    with found._lock:
        return set(found._online)


def name_of(message: dict[str, Any]) -> str:
    if message["type"] == "announce":
        return f"{message['payload']['role']}/{message['payload']['status']}"
    return f"{message['module']}/{message['type']}"


@pytest.fixture
def site(krait_site: Serve, own_port: int) -> SiteServer:
    return krait_site(SITES / "relay", port=own_port)


@pytest.fixture
def start(site: SiteServer) -> Iterator[Callable[..., Program]]:
    """``start(room)`` starts a script; it ends with the test."""
    with ExitStack() as stack:

        def start(room: str = "") -> Program:
            url = f"ws://127.0.0.1:{site.port}/" + (f"?room={room}" if room else "")
            program = stack.enter_context(Program("sidekick", "sidekick_script.py", url))
            program.wait_for("ready", version="0.0.6")
            return program

        yield start


def drawing(start: Callable[..., Program], panel: Panel, columns: int = 10, rows: int = 10) -> Program:
    """A script that has drawn a grid and a console; the panel has taken what that was."""
    script = start()
    script.tell("draw", columns=columns, rows=rows)
    script.wait_for("done", command="draw")
    panel.expect("hero/online", *START)
    return script


def test_announces_itself_and_finds_the_panel(site: SiteServer, start: Callable[..., Program]) -> None:
    panel = Panel(site)
    script = start()
    script.tell("draw", columns=3, rows=2)
    script.wait_for("done", command="draw")
    online, clear, spawn, console = panel.expect("hero/online", *START)
    assert online["payload"]["version"] == "0.0.6"
    assert online["payload"]["peerId"].startswith("hero-")
    assert clear == {"id": 0, "module": "global", "type": "clearAll", "payload": None}
    assert spawn == {
        "id": 0, "module": "grid", "type": "spawn", "target": "grid", "payload": {"numColumns": 3, "numRows": 2},
    }  # fmt: skip
    assert console["payload"] == {"showInput": True}
    panel.client.close()


def test_waits_for_a_panel_that_comes_later(site: SiteServer, start: Callable[..., Program]) -> None:
    script = start()
    script.tell("draw", columns=3, rows=2)
    eventually(lambda: len(site.server.sessions) == 1 and online(), what="the script to be online")
    panel = Panel(site)
    script.wait_for("done", command="draw")
    panel.expect("hero/online", *START)
    panel.client.close()


def test_gives_up_when_no_panel_comes(site: SiteServer, start: Callable[..., Program]) -> None:
    """Another script is no panel; it sees that this one goes."""
    other = Panel(site, peer_id="hero-other", role="hero")
    script = start()
    script.tell("draw", columns=3, rows=2)
    error = script.wait_for("error", command="draw")
    assert error["kind"] == "SidekickTimeoutError"
    assert 1.9 < error["seconds"] < 10
    other.expect("hero/online", "hero/offline")
    other.expect_nothing()
    other.client.close()


def test_nobody_listens(krait_site: Serve, start: Callable[..., Program], site: SiteServer) -> None:
    script = start()
    site.close()
    script.tell("draw", columns=3, rows=2)
    assert script.wait_for("error", command="draw")["kind"] == "SidekickConnectionRefusedError"


def test_commands_arrive_unchanged_and_in_order(site: SiteServer, start: Callable[..., Program]) -> None:
    panel = Panel(site)
    script = drawing(start, panel)
    count = 5000
    script.tell("paint", count=count)
    for number in range(count):
        options = {"x": number % 10, "y": number // 10 % 10, "color": f"#{number:06x}"}
        assert panel.receive() == {
            "id": 0, "module": "grid", "type": "update", "target": "grid",
            "payload": {"action": "setColor", "options": options},
        }  # fmt: skip
    script.wait_for("done", command="paint")
    text = "ä 😀 </script> \u2028 \x00"
    script.tell("write", text=text)
    assert panel.receive()["payload"] == {"action": "append", "options": {"text": f"{text}\n"}}
    panel.client.close()


def test_clicks_are_dispatched_in_order(site: SiteServer, start: Callable[..., Program]) -> None:
    panel = Panel(site)
    script = drawing(start, panel)
    clicks = [(number % 10, 3 + number // 10 % 7) for number in range(500)]
    for x, y in clicks:
        panel.click(x, y)
    for x, y in clicks:
        found = script.wait_for("click")
        assert (found["x"], found["y"]) == (x, y)
    panel.send("console", "event", src="console", payload={"event": "inputText", "value": "ä"})
    script.wait_for("input", text="ä")
    panel.send("grid", "error", src="grid", payload={"message": "no such colour"})
    script.wait_for("panel_error", text="no such colour")
    panel.client.close()


def test_a_callback_that_raises_or_commands(site: SiteServer, start: Callable[..., Program]) -> None:
    panel = Panel(site)
    script = drawing(start, panel)
    panel.click(0, 0)  # raises
    panel.click(0, 1)  # writes to the console
    panel.click(5, 5)
    script.wait_for("click", x=5, y=5)
    assert panel.receive()["payload"]["options"] == {"text": "from the callback\n"}
    assert script.all_of("thread_raised") == []
    panel.client.close()


def test_what_the_relay_drops_does_not_reach_the_script(site: SiteServer, start: Callable[..., Program]) -> None:
    """An empty text would end it, and one that is no JSON object would end its thread."""
    panel = Panel(site)
    script = drawing(start, panel)
    for wrong in ("", "no JSON", "[]", "7", "null", "{}", '{"type":"event"}', b"\x00", "[" * 50_000):
        panel.client.send(wrong)
    panel.send("nonsense", "event")
    panel.send("grid", "event", src="nobody", payload={"event": "click"})
    panel.click(7, 7)
    script.wait_for("click", x=7, y=7)
    script.tell("status")
    script.wait_for("status", status="CONNECTED_READY")
    panel.client.close()


def test_rooms(site: SiteServer, start: Callable[..., Program]) -> None:
    panels = {room: Panel(site, room) for room in ("a", "b")}
    for room, panel in panels.items():
        script = start(room)
        script.tell("draw", columns=3, rows=2)
        script.wait_for("done", command="draw")
        panel.expect("hero/online", *START)
        panel.click(1, 1)
        script.wait_for("click", x=1, y=1)
    for panel in panels.values():
        panel.client.send('{"module": "x", "type": "the end"}')
        panel.expect_nothing(0.2)
        panel.client.close()


@pytest.mark.parametrize("how", ["die", "shutdown", "end of the program"])
def test_offline_is_announced_once(site: SiteServer, start: Callable[..., Program], how: str) -> None:
    panel = Panel(site)
    script = drawing(start, panel)
    if how == "end of the program":
        assert script.finish() == 0
    else:
        script.tell(how)
        if how == "shutdown":
            assert script.wait_for("done", command="shutdown")["seconds"] < 10
    panel.expect("hero/offline")
    eventually(lambda: len(site.server.sessions) == 1, what="the end of the script's connection")
    panel.expect_nothing()
    assert script.all_of("thread_raised") == []
    late = Panel(site, peer_id="late")
    assert late.receive()["payload"]["peerId"] == "panel"
    late.client.close()
    panel.client.close()


def test_shutdown_from_a_callback_ends_run_forever(site: SiteServer, start: Callable[..., Program]) -> None:
    panel = Panel(site)
    script = drawing(start, panel)
    script.tell("run_forever")
    script.wait_for("done", command="run_forever")
    panel.click(0, 2)
    script.wait_for("run_forever_returned")
    panel.expect("hero/offline")
    assert script.finish() == 0
    panel.client.close()


def test_a_server_that_stops_and_comes_back(krait_site: Serve, site: SiteServer, start: Callable[..., Program]) -> None:
    """The script answers our close but leaves TCP open: the server closes it, and does not wait for it."""
    panel = Panel(site)
    script = drawing(start, panel)
    script.tell("run_forever")
    script.wait_for("done", command="run_forever")
    started = time.monotonic()
    site.close()
    assert time.monotonic() - started < 8  # close_timeout would be 10, were it not for the relay's own
    panel.client.expect_close(1001)
    script.wait_for("run_forever_returned")
    script.tell("status")
    script.wait_for("status", status="DISCONNECTED")

    again = krait_site(SITES / "relay", port=site.port)
    panel = Panel(again)
    script.tell("write", text="I am back")
    script.wait_for("done", command="write")
    *_, last = panel.expect("hero/online", "global/clearAll", "console/update")
    assert last["payload"]["options"] == {"text": "I am back\n"}
    panel.client.close()


def test_a_connection_that_is_cut(site: SiteServer, start: Callable[..., Program]) -> None:
    panel = Panel(site)
    script = drawing(start, panel)
    script.tell("run_forever")
    script.wait_for("done", command="run_forever")
    (session,) = [session for session in site.server.sessions if role_of(session) == "hero"]
    site.server.loop.call(session.abort)
    panel.expect("hero/offline")
    script.wait_for("run_forever_returned")
    script.tell("status")
    script.wait_for("status", status="DISCONNECTED")
    panel.expect_nothing()
    panel.client.close()


def role_of(session: Any) -> str:
    role = session.controller.announced["payload"]["role"]
    assert isinstance(role, str)
    return role


def test_a_panel_that_is_loaded_anew(site: SiteServer, start: Callable[..., Program]) -> None:
    """The script notices nothing; what it sends from then on comes to the new panel."""
    panel = Panel(site)
    script = drawing(start, panel)
    panel.client.close()
    panel = Panel(site, peer_id="panel-2")
    panel.expect("hero/online")
    script.tell("write", text="for the new one")
    assert panel.receive()["payload"]["options"] == {"text": "for the new one\n"}
    panel.click(4, 4)
    script.wait_for("click", x=4, y=4)
    panel.client.close()


def test_a_panel_in_a_browser(browser: Any, krait_site: Serve) -> None:
    """The page of the site, served among all demos: what the script draws can be seen, and a click comes back."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE * 1000)
    everything = krait_site(SITES)
    page = browser.new_page()
    try:
        page.goto(f"{everything.url}/relay/?room=real")
        expect(page.locator("#state")).to_have_text("open")
        url = f"ws://127.0.0.1:{everything.port}/relay/?room=real"
        assert url in page.locator("#url").inner_text()
        with Program("sidekick", "sidekick_script.py", url) as script:
            script.tell("draw", columns=10, rows=4)
            script.wait_for("done", command="draw")
            expect(page.locator(".cell")).to_have_count(40)
            script.tell("paint", count=40)
            expect(page.locator(".cell").nth(33)).to_have_css("background-color", "rgb(0, 0, 33)")
            script.tell("write", text="<b>hello</b>")
            expect(page.locator(".console")).to_have_text("<b>hello</b>\n")
            page.locator(".cell").nth(23).click()
            script.wait_for("click", x=3, y=2)
            page.get_by_label("Answer the script").fill("quit")
            page.keyboard.press("Enter")
            script.wait_for("input", text="quit")
            expect(page.locator("#peers li")).to_have_count(1)
            assert script.finish() == 0
        expect(page.locator("#peers li")).to_have_count(0)
    finally:
        page.close()
