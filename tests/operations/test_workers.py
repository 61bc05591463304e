"""Workers, signals and restarts under a load, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.integration.support import PATIENCE, TEXT, RawClient, eventually, write_site
from tests.operations.support import (
    FILES,
    HEARS,
    PATIENT,
    Processes,
    Score,
    keep_connecting,
    keep_talking,
    serve_command,
)

Start = Callable[..., Processes]
CLIENTS = 1000
LOADED = 3 * PATIENCE
"""Seconds that something may take while so many clients keep the machine busy."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Processes] = []

    def start(*arguments: str, program: str = "") -> Processes:
        command = serve_command(tmp_path, *arguments, program=program)
        processes = Processes(command, tmp_path / f"log-{len(started)}")
        started.append(processes)
        processes.read_port()
        return processes

    yield start
    for processes in started:
        processes.kill()


async def with_load(server: Processes, clients: int, events: Callable[[Score, Score], None]) -> tuple[Score, Score]:
    """Runs ``events`` in a thread while clients talk and others connect."""
    over = asyncio.Event()
    talking, connecting = Score(), Score()
    tasks = [asyncio.create_task(keep_talking(server.url + "/echo", talking, over)) for _ in range(clients)]
    try:
        while talking.connected < clients:  # the caller has a time limit
            await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(keep_connecting(server.url + "/echo", connecting, over)) for _ in range(3)]
        await asyncio.to_thread(events, talking, connecting)
    finally:
        over.set()
    await asyncio.gather(*tasks)
    return talking, connecting


def test_under_a_thousand_connections_a_worker_dies_then_all_are_replaced_then_it_ends(start: Start) -> None:
    server = start("--workers", "2", program=PATIENT)
    server.wait_for_workers(2)
    report: dict[str, object] = {}

    def dies(talking: Score, connecting: Score) -> None:
        first = server.workers()
        os.kill(first[0], signal.SIGKILL)
        eventually(lambda: talking.codes[1006] > 0, LOADED, what="cut connections")
        eventually(lambda: len(server.workers()) == 2 and first[0] not in server.workers(), LOADED, what="a new worker")
        before = connecting.connected
        eventually(lambda: connecting.connected > before + 100, LOADED, what="connections after the death")
        report["killed"] = (dict(talking.codes), dict(connecting.codes), dict(connecting.failed))
        assert 0 < talking.codes[1006] < CLIENTS, "only those of the dead worker are cut"
        assert set(talking.codes) == {1006}
        # An attempt that the dead worker had accepted is lost with it; nothing else is.
        assert sum(connecting.failed.values()) + connecting.codes[1006] <= 6, connecting

    talking, _ = asyncio.run(asyncio.wait_for(with_load(server, CLIENTS, dies), 100))
    survived = CLIENTS - talking.codes[1006]
    assert survived >= CLIENTS // 10

    def restarts(talking: Score, connecting: Score) -> None:
        old = set(server.workers())
        server.signal(signal.SIGHUP)
        eventually(lambda: sum(talking.codes.values()) == CLIENTS, LOADED, what="every old connection is closed")
        eventually(lambda: len(server.workers()) == 2 and not old & set(server.workers()), LOADED, what="new workers")
        report["SIGHUP"] = (dict(talking.codes), dict(connecting.codes), dict(connecting.failed), connecting.longest)

    talking, connecting = asyncio.run(asyncio.wait_for(with_load(server, CLIENTS, restarts), 100))
    assert talking.codes == {1012: CLIENTS}, report
    assert not connecting.failed, report
    assert set(connecting.codes) <= {1012}, report

    def ends(talking: Score, connecting: Score) -> None:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        eventually(lambda: sum(talking.codes.values()) == CLIENTS, LOADED, what="every connection is closed")
        report["SIGTERM"] = (dict(talking.codes), time.monotonic() - began)

    talking, connecting = asyncio.run(asyncio.wait_for(with_load(server, CLIENTS, ends), 100))
    assert talking.codes == {1001: CLIENTS}, report
    assert set(connecting.codes) <= {1001}, report
    # Refused, or answered with 503. Only who arrives in the microseconds in which the last socket closes is cut off.
    others = {kind: n for kind, n in connecting.failed.items() if "503" not in kind and "refused" not in kind.lower()}
    assert sum(others.values()) <= 1, connecting
    assert server.wait() == 0
    print(report)


def test_one_process_restarts_on_sighup_and_refuses_nobody(start: Start) -> None:
    server = start(program=PATIENT)

    def restarts(talking: Score, connecting: Score) -> None:
        server.signal(signal.SIGHUP)
        eventually(lambda: talking.codes[1012] == 100, LOADED, what="the old server's connections are closed")
        before = connecting.connected
        eventually(lambda: connecting.connected > before + 50, LOADED, what="connections to the new one")

    talking, connecting = asyncio.run(asyncio.wait_for(with_load(server, 100, restarts), 100))
    assert talking.codes == {1012: 100}
    assert not connecting.failed
    assert set(connecting.codes) <= {1012}
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_sighup_serves_the_site_as_it_is_now(start: Start, tmp_path: Path) -> None:
    server = start()
    site = tmp_path / "site"
    write_site(site, {"_shared.py": "value = 'old'\n", "value.py": "import krait_ws, _shared\n"
                      "def http(request):\n    return krait_ws.Response(_shared.value)\n"})  # fmt: skip

    def value() -> bytes:
        body = b""
        url = f"http://127.0.0.1:{server.port}/value"
        with suppress(OSError), urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            body = answer.read()
        return body

    for text in (b"first", b"second value", b"the third value"):
        (site / "_shared.py").write_text(f"value = {text.decode()!r}\n")
        server.signal(signal.SIGHUP)
        eventually(lambda text=text: value() == text, what="the new text")  # type: ignore[misc]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_with_a_broken_certificate_changes_nothing(start: Start, tmp_path: Path, workers: str) -> None:
    from tests.operations.conftest import make_certificate

    first = make_certificate(tmp_path, "first")
    server = start("--workers", workers, "--tls-cert", str(first.cert), "--tls-key", str(first.key))
    url = f"wss://localhost:{server.port}/echo"

    def echoes(context_of: object) -> bool:
        with connect(url, ssl=context_of, proxy=None, legacy=True) as client:  # type: ignore[call-arg,arg-type]
            client.send("x")
            return client.recv(PATIENCE) == "x"

    trusted = first.context()
    assert echoes(trusted)
    good = first.cert.read_bytes(), first.key.read_bytes()
    first.cert.write_text("no certificate")
    server.signal(signal.SIGHUP)
    eventually(lambda: "cannot restart" in server.log, what="the refusal")
    assert echoes(trusted)
    second = make_certificate(tmp_path, "second")
    first.cert.write_bytes(second.cert.read_bytes())
    first.key.write_bytes(second.key.read_bytes())
    assert good[0] != first.cert.read_bytes()
    server.signal(signal.SIGHUP)

    def is_new() -> bool:
        try:
            return echoes(second.context())
        except (OSError, WebSocketException):  # still the first one's, or just replaced
            return False

    eventually(is_new, what="the new certificate")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_settings_of_the_log_are_read_again(start: Start, tmp_path: Path, workers: str) -> None:
    file = tmp_path / "krait.toml"
    file.write_text("log_format = 'text'")
    server = start("--workers", workers, "--config", str(file))
    file.write_text("log_format = 'json'")
    server.signal(signal.SIGHUP)

    def is_json() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=PATIENCE) as answer:
            answer.read()
        return any(line.startswith("{") and "krait_ws.access" in line for line in server.log.splitlines())

    eventually(is_json, what="an object for a request")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stuck_handler_does_not_stop_a_drain(start: Start, workers: str) -> None:
    server = start("--workers", workers, "--drain-timeout", "4", program=PATIENT)
    with RawClient(server.port, "/stuck") as stuck, RawClient(server.port, "/echo") as echo:
        stuck.expect("started")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        stuck.expect_close(1001)
        echo.expect_close(1001)
        assert server.wait() == 0
        assert time.monotonic() - began < 2 * PATIENCE, "gunicorn has killed nobody yet"
    assert server.log.count("abandoned") == 1, server.log
    assert "NeverStops" in server.log
    assert "never_returns" in server.log


def test_a_second_signal_ends_all_workers_now(start: Start) -> None:
    server = start("--workers", "2", "--drain-timeout", "1000")
    with RawClient(server.port, "/stuck") as stuck:
        stuck.expect("started")
        workers = server.wait_for_workers(2)
        server.signal(signal.SIGINT)
        stuck.expect_close(1001)
        server.signal(signal.SIGINT)
        server.wait()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_signals_are_heard_while_old_workers_drain(start: Start) -> None:
    server = start("--workers", "2", "--drain-timeout", "1000")
    server.wait_for_workers(2)
    with RawClient(server.port, "/stuck") as stuck:
        stuck.expect("started")
        old = server.workers()
        server.signal(signal.SIGHUP)
        stuck.expect_close(1012)
        new = eventually(lambda: [pid for pid in server.workers() if pid not in old], what="new workers")
        server.signal(signal.SIGTERM)
        eventually(lambda: not set(new) & set(server.workers()), what="the new workers end")
        server.signal(signal.SIGTERM)
        server.wait()


LOOPS = (
    "import time\nfrom krait_ws.websockets import *\n"
    "class Loops(WebsocketsCtrlBase):\n    runs_on = 'loop'\n    def __init__(self):\n"
    "        super().__init__(use_in_message_queue=False)\n"
    "    def on_in_message(self, message):\n        if message == 'sleep':\n            time.sleep(3600)\n"
    "        while True:\n            pass\n"
    "def websocket(request):\n    return WebsocketsResponse(Loops())\n"
)


@pytest.mark.parametrize("way", ["spin", "sleep"])
def test_a_second_signal_ends_a_server_whose_loop_is_stuck(start: Start, tmp_path: Path, way: str) -> None:
    server = start(program=HEARS)
    write_site(tmp_path / "site", {"loops.py": LOOPS})

    def is_over() -> bool:
        """Two signals that come at once are one, and a thread that is about to sleep may miss one: it is sent again."""
        server.signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.2)
        return server.process.poll() is not None

    with RawClient(server.port, "/loops") as client:
        client.send_frame(TEXT, way)
        eventually(lambda: "holds up the network loop" in server.log, what="the loop is stuck")
        eventually(is_over, what="the end")
        assert server.wait() == 1
    assert server.log.count("heard\n") == 2


def test_a_worker_that_cannot_come_back_leaves_the_others_alone(start: Start, tmp_path: Path) -> None:
    from tests.operations.conftest import make_certificate

    made = make_certificate(tmp_path, "made")
    server = start("--workers", "2", "--tls-cert", str(made.cert), "--tls-key", str(made.key))
    dies, stays = server.wait_for_workers(2)
    good = made.cert.read_bytes()
    made.cert.write_text("half of it")
    os.kill(dies, signal.SIGKILL)
    eventually(lambda: server.log.count("a worker cannot start") >= 2, what="it tries again")
    assert stays in server.workers()
    made.cert.write_bytes(good)
    assert stays in server.wait_for_workers(2)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_every_record_is_json(start: Start) -> None:
    server = start("--workers", "2", "--log-format", "json")
    workers = server.wait_for_workers(2)
    os.kill(workers[0], signal.SIGKILL)
    eventually(lambda: workers[0] not in server.workers(), what="it is gone")
    server.wait_for_workers(2)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    records = [json.loads(line) for line in server.log.splitlines()]
    assert [fields["logger"] for fields in records if "SIGKILL" in fields["message"]] == ["gunicorn.error"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_changes_what_is_logged(start: Start, tmp_path: Path, workers: str) -> None:
    settings = tmp_path / "krait.toml"
    settings.write_text("log_format = 'text'\n")
    server = start("--workers", workers, "--config", str(settings))

    def lines() -> list[str]:
        url = f"http://127.0.0.1:{server.port}/pid"
        with suppress(OSError), urllib.request.urlopen(url, timeout=PATIENCE):
            pass
        return [line for line in server.log.splitlines() if "/pid" in line]

    eventually(lambda: [line for line in lines() if not line.startswith("{")], what="lines of text")
    settings.write_text("log_format = 'json'\n")
    server.signal(signal.SIGHUP)
    eventually(lambda: [line for line in lines() if line.startswith("{")], what="lines of JSON")


def test_sighup_with_another_port_leaves_a_unix_socket_alone(tmp_path: Path) -> None:
    settings = tmp_path / "krait.toml"
    path = str(tmp_path / "krait.sock")
    settings.write_text(f"unix = {path!r}\nport = 8001\n")
    server = Processes([*serve_command(tmp_path)[:-2], "--config", str(settings)], tmp_path / "log")
    try:
        eventually(lambda: os.path.exists(path), what="it listens")
        assert server.process.stdout is not None
        server.process.stdout.readline()
        settings.write_text(f"unix = {path!r}\nport = 8002\n")
        server.signal(signal.SIGHUP)
        eventually(lambda: "serves anew" in server.log, what="the restart")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not os.path.exists(path)
    finally:
        server.kill()


def test_a_restart_that_lacks_descriptors_takes_none(start: Start) -> None:
    server = start()

    def descriptors() -> set[str]:
        return set(os.listdir(f"/proc/{server.pid}/fd"))

    before = descriptors()
    for more in range(4):  # the site takes one for a moment, the server a socket, then an epoll object
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (max(map(int, before)) + 1 + more, 4096))
        said = server.log.count("serves anew") + server.log.count("cannot restart")
        server.signal(signal.SIGHUP)
        eventually(lambda: server.log.count("serves anew") + server.log.count("cannot restart") > said, what="a word")  # noqa: B023
        eventually(lambda: len(descriptors()) == len(before), what="no descriptor more")
    assert server.log.count("cannot restart") >= 2


def test_only_sites_are_served(tmp_path: Path) -> None:
    """Whatever else gunicorn is given is told in a line, and not tried again and again."""
    (tmp_path / "plain.py").write_text("def app(environ, start_response):\n    return []\n")
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-k", "krait_ws.gunicorn.Worker"]
    for application, told in [
        ("plain:app", "serves krait_ws.gunicorn:site"),
        ("krait_ws.gunicorn:site('nowhere')", "nowhere"),
        ("krait_ws.gunicorn:site('.', max_connections=-5)", "max-connections: -5 is below"),
        ("krait_ws.gunicorn:site('.', max_conections=5)", "max_conections"),
    ]:
        done = subprocess.run(
            [*command, application], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 3, done.stderr
        assert told in done.stderr
        assert "Traceback" not in done.stderr, done.stderr


def test_blocking_controllers_are_no_dead_worker(tmp_path: Path) -> None:
    """gunicorn's own command, its configuration file, and a time limit shorter than what the controllers block."""
    write_site(tmp_path / "site", FILES)
    (tmp_path / "conf.py").write_text(
        "bind = '127.0.0.1:0'\nworkers = 2\ntimeout = 10\nworker_class = 'krait_ws.gunicorn.Worker'\n"
    )
    command = [sys.executable, "-m", "gunicorn", "-c", str(tmp_path / "conf.py")]
    application = f"krait_ws.gunicorn:site({str(tmp_path / 'site')!r}, max_connections=50)"
    server = Processes([*command, application], tmp_path / "log")
    try:
        eventually(lambda: "Listening at: http://127.0.0.1:" in server.log, what="gunicorn listens")
        server.port = int(server.log.partition("Listening at: http://127.0.0.1:")[2].split()[0])
        workers = server.wait_for_workers(2)
        clients = [RawClient(server.port, "/blocks") for _ in range(10)]
        for client in clients:
            client.expect("slept")
        assert server.workers() == workers
        server.signal(signal.SIGHUP)
        for client in clients:
            client.expect_close(1012)
            client.close()
        eventually(lambda: not set(workers) & set(server.workers()), what="new workers")
        server.wait_for_workers(2)
        with RawClient(server.port, "/echo") as client:
            client.send_frame(TEXT, "hello")
            client.expect("hello")
            server.signal(signal.SIGTERM)
            client.expect_close(1001)
        assert server.wait() == 0
        assert "TIMEOUT" not in server.log
        assert "Traceback" not in server.log
    finally:
        server.kill()


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    def mistake(*arguments: str) -> str:
        done = subprocess.run(
            [*serve_command(tmp_path), "--workers", "2", *arguments], capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in mistake("--port", port)
    assert "none.pem" in mistake("--tls-cert", "none.pem")
    assert "no_such_module" in mistake("--app", "no_such_module:app")
