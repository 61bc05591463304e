"""``krait-ws serve`` as a person and as systemd run it: a process of its own, signals, exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.support import PATIENCE, PING, PONG, TEXT, RawClient, eventually, frame, raw_get, write_site

SIGNALS = [signal.SIGINT, signal.SIGTERM]
ECHO = (
    "from krait_ws.websockets import *\n"
    "class Echo(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
    "        for message in self.messages():\n            self.push_out_message(message)\n"
    "def websocket(request):\n    return WebsocketsResponse(Echo())\n"
)
NEVER_STOPS = (
    "import time\nfrom krait_ws.websockets import *\n"
    "class NeverStops(WebsocketsCtrlBase):\n    def on_thread_start(self):\n        self.never_returns()\n"
    "    def never_returns(self):\n        self.push_out_message('started')\n"
    "        while True:\n            time.sleep(3600)\n"
    "def websocket(request):\n    return WebsocketsResponse(NeverStops())\n"
)
WAITS_FOR_A_FILE = (
    "import time\nfrom pathlib import Path\nfrom krait_ws.websockets import *\n"
    "class Waits(WebsocketsCtrlBase):\n    def on_thread_start(self):\n        self.push_out_message('started')\n"
    "        while not Path(__file__).with_name('_end').exists():\n            time.sleep(0.05)\n"
    "def websocket(request):\n    return WebsocketsResponse(Waits())\n"
)
EVENTS = (
    "from krait_ws.websockets import *\n"
    "class Events(WebsocketsCtrlBase):\n    runs_on = 'loop'\n"
    "    def on_in_message(self, message):\n        self.push_out_message(message)\n"
    "def websocket(request):\n    return WebsocketsResponse(Events())\n"
)


class Command:
    """A running ``krait-ws serve``; its output is read to the end by ``stop``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.line)
        if not found:
            process.kill()
            raise AssertionError(f"no address in {self.line!r}: {process.communicate()}")
        self.port = int(found[1])

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors


def run(*arguments: str, **extra: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "krait_ws", *arguments], capture_output=True, text=True, timeout=PATIENCE, **extra
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    files: dict[str, str | bytes] = {
        "index.html": "home",
        "echo.py": ECHO,
        "events.py": EVENTS,
        "stuck.py": NEVER_STOPS,
    }
    return write_site(tmp_path / "site", files)


@pytest.fixture
def serve(site: Path) -> Iterator[Callable[..., Command]]:
    processes: list[subprocess.Popen[str]] = []

    def serve(*arguments: str) -> Command:
        process = subprocess.Popen(
            [sys.executable, "-m", "krait_ws", "serve", str(site), "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        processes.append(process)
        return Command(process)

    yield serve
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


def test_who_answered_while_the_process_stood_still_is_not_lost(serve: Callable[..., Command]) -> None:
    """As after ``docker pause``. Failed: timers were due before the sockets had been looked at."""
    command = serve("--ping-interval", "0.3", "--ping-timeout", "3")
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(command.port, path)) for path in ("/echo", "/events") * 50]
        pings = [client.receive_frame() for client in clients]
        assert {ping.opcode for ping in pings} == {PING}
        command.signal(signal.SIGSTOP)
        for client, ping in zip(clients, pings, strict=True):
            client.send(frame(PONG, ping.payload) + frame(TEXT, b"still here"))
        time.sleep(3.5)
        command.signal(signal.SIGCONT)
        for client in clients:
            while (received := client.receive_frame()).opcode == PING:
                pass
            assert (received.opcode, received.payload) == (TEXT, b"still here")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_closes_every_connection_with_1001_and_exits_0(serve: Callable[..., Command], number: int) -> None:
    command = serve()
    assert raw_get(command.port, b"/").body == b"home"
    clients = [RawClient(command.port, path) for path in ("/echo", "/events") * 5]
    try:
        for client in clients:
            client.send_frame(TEXT, "hello")
            client.expect("hello")
        command.signal(number)
        for client in clients:
            client.expect_close(1001)
    finally:
        for client in clients:
            client.close()
    code, errors = command.wait()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert "abandoned" not in errors
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", command.port), timeout=5)


def test_a_signal_without_any_connection_exits_at_once(serve: Callable[..., Command]) -> None:
    command = serve("--stop-timeout", "1000", "--drain-timeout", "1000", "--close-timeout", "1000")
    command.signal(signal.SIGTERM)
    code, errors = command.wait()
    assert code == 0, errors


def test_an_idle_kept_http_connection_does_not_hold_up_the_exit(serve: Callable[..., Command]) -> None:
    command = serve("--drain-timeout", "1000", "--keep-alive-timeout", "1000")
    with RawClient(command.port, upgrade=False) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_answer().body == b"home"
        command.signal(signal.SIGTERM)
        code, errors = command.wait()
        assert code == 0, errors


def test_a_second_signal_waits_for_nobody(serve: Callable[..., Command]) -> None:
    command = serve("--stop-timeout", "1000")
    with RawClient(command.port, "/stuck") as client:
        client.expect("started")
        command.signal(signal.SIGINT)
        client.expect_close(1001)
        command.signal(signal.SIGTERM)
    code, errors = command.wait()
    assert code == 1, errors
    assert "Traceback (most recent call last)" not in errors


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_handler_that_never_stops_is_abandoned_and_logged(serve: Callable[..., Command], number: int) -> None:
    command = serve("--stop-timeout", "0.3")
    # The other one has no handler, which on a busy machine might need longer than that too.
    with RawClient(command.port, "/stuck") as stuck, RawClient(command.port, "/events") as other:
        stuck.expect("started")
        command.signal(number)
        stuck.expect_close(1001)
        other.expect_close(1001)
    code, errors = command.wait()
    assert code == 0, errors
    assert errors.count("abandoned") == 1, errors
    assert "NeverStops" in errors
    assert "never_returns" in errors


def test_a_client_that_does_not_answer_does_not_hold_up_the_exit(serve: Callable[..., Command]) -> None:
    command = serve("--stop-timeout", "1000", "--drain-timeout", "1000", "--close-timeout", "1")
    with RawClient(command.port, "/echo") as silent:
        command.signal(signal.SIGTERM)
        code, errors = command.wait()
        assert code == 0, errors
        frame = silent.receive_frame()
        assert int.from_bytes(frame.payload[:2], "big") == 1001


def test_nobody_is_accepted_while_it_stops(serve: Callable[..., Command], site: Path) -> None:
    write_site(site, {"waits.py": WAITS_FOR_A_FILE})
    command = serve("--stop-timeout", "1000", "--drain-timeout", "1000")
    with RawClient(command.port, "/waits") as client:
        client.expect("started")
        command.signal(signal.SIGTERM)
        client.expect_close(1001)

        def is_refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", command.port), timeout=5).close()
            except OSError:
                return True
            return False

        eventually(is_refused)
        assert command.process.poll() is None
        (site / "_end").touch()
    assert command.wait()[0] == 0


def test_debug_flag_shows_tracebacks_and_reloads(serve: Callable[..., Command], site: Path) -> None:
    command = serve("--debug")
    (site / "new.py").write_text("1 / 0\n")
    answer = raw_get(command.port, b"/new")
    assert answer.status == 500
    assert b"ZeroDivisionError" in answer.body
    (site / "new.py").write_text("import krait_ws\nkrait_ws.response = krait_ws.Response('mended')\n")
    assert raw_get(command.port, b"/new").body == b"mended"


def test_flags_and_environment(site: Path, serve: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRAIT_MAX_MESSAGE_SIZE", "10")
    command = serve()
    with RawClient(command.port, "/echo") as client:
        client.send_frame(TEXT, "x" * 11)
        client.expect_close(1009)
    command = serve("--max-message-size", "1k")
    with RawClient(command.port, "/echo") as client:
        client.send_frame(TEXT, "x" * 1024)
        client.expect("x" * 1024)
        client.send_frame(TEXT, "x" * 1025)
        client.expect_close(1009)


def one_line(completed: subprocess.CompletedProcess[str]) -> str:
    assert completed.returncode == 2, completed
    assert completed.stdout == ""
    assert completed.stderr.endswith("\n")
    assert completed.stderr.count("\n") == 1, completed.stderr
    assert "Traceback" not in completed.stderr
    return completed.stderr


def test_a_taken_port(site: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in one_line(run("serve", str(site), "--port", str(port)))


def test_a_missing_site(tmp_path: Path) -> None:
    assert "nowhere" in one_line(run("serve", str(tmp_path / "nowhere"), "--port", "0"))
    assert "sites" in one_line(run("serve", cwd=tmp_path))
    assert "nowhere" in one_line(run("routes", str(tmp_path / "nowhere")))
    (tmp_path / "file").write_text("")
    assert "file" in one_line(run("serve", str(tmp_path / "file"), "--port", "0"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no-such-flag"], "--no-such-flag"),
        (["--port", "http"], "http"),
        (["--port", "70000"], "70000"),
        (["--port"], "--port"),
        (["--runs-on", "hope"], "hope"),
        (["--max-message-size", "0"], "0"),
        (["--max-message-size", "many"], "many"),
        (["--stop-timeout", "nan"], "nan"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["one", "two", "three"], "two"),
    ],
)
def test_bad_flags(site: Path, arguments: list[str], named: str) -> None:
    assert named in one_line(run("serve", str(site), *arguments))


def test_bad_environment(site: Path) -> None:
    line = one_line(run("serve", str(site), env={**os.environ, "KRAIT_PORT": "http"}))
    assert "KRAIT_PORT" in line


def test_two_files_that_claim_the_same_urls(site: Path) -> None:
    (site / "[a].py").write_text("")
    (site / "[b].py").write_text("")
    line = one_line(run("serve", str(site), "--port", "0"))
    assert "[a].py" in line
    assert "[b].py" in line


def test_routes_prints_the_table(site: Path) -> None:
    write_site(
        site, {"rooms/[room].py": ECHO, "_private.py": "", "page.py": "x = 1\n", "bad.py": "def (\n", "a.css": ""}
    )
    completed = run("routes", str(site))
    assert completed.returncode == 0, completed.stderr
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in completed.stdout.splitlines()}
    assert set(rows) == {"/", "/echo", "/events", "/stuck", "/rooms/[room]", "/page", "/bad", "/a.css"}
    assert rows["/"] == ["index.html", "page"]
    assert rows["/rooms/[room]"][0] == os.path.join("rooms", "[room].py")
    assert "websocket" in rows["/rooms/[room]"][1]
    assert "script" in rows["/page"][1]
    assert "broken" in rows["/bad"][1]
    assert rows["/a.css"] == ["a.css", "file"]


def test_version_and_help() -> None:
    assert run("--version").returncode == 0
    completed = run("serve", "--help")
    assert completed.returncode == 0
    assert "--max-message-size" in completed.stdout


# ---- runs_on greenlet: the standard library cooperates

BLOCKS = (
    "import queue, socket, threading, time\nfrom krait_ws.websockets import *\n"
    "WAYS = {\n"
    "    'sleep': lambda: time.sleep(1),\n"
    "    'event': lambda: threading.Event().wait(1),\n"
    "    'queue': lambda: queue_wait(),\n"
    "    'socket': lambda: socket_wait(),\n"
    "    'join': lambda: thread_wait(),\n"
    "}\n"
    "def queue_wait():\n    try:\n        queue.Queue().get(timeout=1)\n    except queue.Empty:\n        pass\n"
    "def socket_wait():\n    ours, theirs = socket.socketpair()\n    ours.settimeout(1)\n"
    "    try:\n        ours.recv(1)\n    except TimeoutError:\n        pass\n    ours.close()\n    theirs.close()\n"
    "def thread_wait():\n    thread = threading.Thread(target=time.sleep, args=(1,))\n    thread.start()\n"
    "    thread.join()\n"
    "class Blocks(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
    "        for message in self.messages():\n            WAYS[message]()\n"
    "            self.push_out_message(threading.current_thread().name)\n"
    "def websocket(request):\n    return WebsocketsResponse(Blocks())\n"
)
THREADS_ONLY = BLOCKS.replace("    def on_thread_start", "    runs_on = 'thread'\n    def on_thread_start")


def test_greenlets_block_in_the_standard_library_side_by_side(serve: Callable[..., Command], site: Path) -> None:
    write_site(site, {"blocks.py": BLOCKS})
    command = serve("--runs-on", "greenlet")
    clients = [RawClient(command.port, "/blocks") for _ in range(100)]
    started = time.monotonic()
    for number, client in enumerate(clients):
        client.send_frame(TEXT, ["sleep", "event", "queue", "socket", "join"][number % 5])
    for client in clients:
        client.receive()
    assert time.monotonic() - started < 20  # one after the other they take 100 s
    threads = len(os.listdir(f"/proc/{command.process.pid}/task")) if sys.platform == "linux" else 0
    assert threads < 90  # the pool of the route scripts has up to 64
    for client in clients:
        client.close()


LOCKS = (
    "import logging, krait_ws\n"
    "def http(request):\n"
    "    locks = [type(handler.lock).__module__ for handler in logging.getLogger().handlers]\n"
    "    return krait_ws.Response(' '.join(locks))\n"
)
SHARES = (
    "import queue, threading, krait_ws\nfrom krait_ws.websockets import *\n"
    "lock = threading.Lock()\nitems = queue.Queue()\ntotal = 0\n"
    "def add(number):\n    global total\n    with lock:\n        total += number\n        return total\n"
    "class Counts(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
    "        for message in self.messages():\n"
    "            self.push_out_message(items.get(timeout=10) if message == 'get' else str(add(1)))\n"
    "def websocket(request):\n    return WebsocketsResponse(Counts())\n"
    "def http(request):\n    for _ in range(20000): add(1)\n    items.put('put')\n"
    "    return krait_ws.Response(str(add(0)))\n"
)
LOADS_SLOWLY = "import time, krait_ws\ntime.sleep(0.3)\ndef http(request):\n    return krait_ws.Response('loaded')\n"


def test_the_log_has_a_native_lock_where_the_standard_library_cooperates(
    serve: Callable[..., Command], site: Path
) -> None:
    """Failed: gevent had put one of its own there, for which the network loop cannot wait."""
    write_site(site, {"locks.py": LOCKS})
    assert raw_get(serve("--runs-on", "greenlet").port, b"/locks").body == b"_thread"


def test_a_script_that_blocks_while_it_is_loaded_is_there_for_all_who_wait_for_it(
    serve: Callable[..., Command], site: Path
) -> None:
    write_site(site, {"slow.py": LOADS_SLOWLY})
    command = serve("--runs-on", "greenlet", "--script-timeout", "15")
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(raw_get, command.port, b"/slow") for _ in range(8)]
        assert [answer.result(PATIENCE).body for answer in answers] == [b"loaded"] * 8


def test_scripts_and_handlers_share_locks_and_queues_where_the_standard_library_cooperates(
    serve: Callable[..., Command], site: Path
) -> None:
    """Failed: scripts ran in native threads, and between threads gevent's locks and queues wait for ever."""
    write_site(site, {"shares.py": SHARES})
    command = serve("--runs-on", "greenlet")
    with ThreadPoolExecutor(4) as pool, RawClient(command.port, "/shares") as client:
        answers = [pool.submit(raw_get, command.port, b"/shares") for _ in range(8)]
        for _ in range(500):
            client.send_frame(TEXT, "add")
            client.receive()
        assert max(int(answer.result(PATIENCE).body) for answer in answers) >= 8 * 20000
        for _ in range(8):
            client.send_frame(TEXT, "get")
            client.expect("put")
        client.send_frame(TEXT, "get")
        time.sleep(0.1)  # it waits by now, or will find it
        assert raw_get(command.port, b"/shares").status == 200
        client.expect("put")


def test_threads_are_refused_where_the_standard_library_cooperates(serve: Callable[..., Command], site: Path) -> None:
    write_site(site, {"threads.py": THREADS_ONLY})
    command = serve("--runs-on", "greenlet")
    with pytest.raises(AssertionError, match="500"):
        RawClient(command.port, "/threads")
    with RawClient(command.port, "/echo") as client:
        client.send_frame(TEXT, "still there")
        client.expect("still there")
    command.signal(signal.SIGTERM)
    code, errors = command.wait()
    assert code == 0
    assert "Blocks: runs_on = 'thread' cannot be had in a process whose standard library is patched" in errors


def test_a_process_that_somebody_else_patched_serves_no_threads(site: Path) -> None:
    script = (
        "from gevent import monkey; monkey.patch_all()\n"
        "import sys; from pathlib import Path; from krait_ws.config import Config\n"
        "from krait_ws.network.server import Server\n"
        "Server(Path(sys.argv[1]), Config(port=0))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(site)], capture_output=True, text=True, timeout=PATIENCE)
    assert "ConfigError: the server: runs_on = 'thread' cannot be had" in done.stderr
