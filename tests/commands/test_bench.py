"""``krait-ws bench``: what it counts, what it holds against a server, and how it ends."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from krait_ws.bench.latencies import EXACT, Latencies
from krait_ws.bench.load import Load
from krait_ws.bench.plan import Messages, Plan, client_frame, header_of, target_of
from krait_ws.bench.report import Result, duration
from krait_ws.errors import ConfigError
from krait_ws.testing import SiteServer
from tests.commands.support import PATIENCE, Peer, server, server_frame
from tests.operations.conftest import Certificate

Serve = Callable[..., SiteServer]

SITE = Path(__file__).resolve().parents[2] / "benchmarks" / "site"
TICKER = (
    "from krait_ws.websockets import *\n"
    "class Ticker(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
    "        if self.pop_in_message(timeout=10) != 'subscribe':\n            return\n"
    "        while self.push_out_message('x' * 300) and not self.wait_stop(0.005):\n            pass\n"
    "def websocket(request):\n    return WebsocketsResponse(Ticker())\n"
)


def load(url: str, least: int = 0, **plan: Any) -> Result:
    """A short load; once more and longer, where the machine is so slow that fewer messages than ``least`` came back."""
    plan = {"connections": 3, "seconds": 0.3, "timeout": PATIENCE, **plan}
    result = Load(Plan(target_of(url), **plan)).run(lambda line: None)
    if result.messages < least:
        result = Load(Plan(target_of(url), **{**plan, "seconds": 10.0})).run(lambda line: None)
    return result


def accepting(answer: Callable[[bytes], bytes]) -> Callable[[Peer], None]:
    def behave(peer: Peer) -> None:
        peer.accept()
        peer.echoes(answer)

    return behave


# ---- a good server


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"in_flight": 16},
        {"size": 0},
        {"size": 125, "in_flight": 100},
        {"size": 126},
        {"size": 65536, "is_binary": True, "in_flight": 3},
        {"size": 1_000_000, "is_binary": True},
        {"rate": 200},
        {"connections": 40, "ramp": 0.2},
    ],
    ids=lambda plan: " ".join(f"{name}={value}" for name, value in plan.items()) or "default",
)
def test_an_echo_is_counted_and_nothing_is_wrong(krait_site: Serve, plan: dict[str, Any]) -> None:
    result = load(f"{krait_site(SITE).url}/loop", least=1, **plan)
    assert result.errors == Counter()
    assert result.messages > 0
    assert result.payload_bytes == result.messages * plan.get("size", 32)
    counts = result.as_json()
    assert counts["handshakes"] == plan.get("connections", 3)
    assert 0 < counts["latency_us"]["p50"] <= counts["latency_us"]["p99"] <= counts["latency_us"]["max"]
    assert sum(count for _, count in counts["histogram_us"]) >= result.messages


def test_a_push_url_is_only_listened_to(krait_site: Serve, tmp_path: Path) -> None:
    (tmp_path / "ticker.py").write_text(TICKER)
    result = load(f"{krait_site(tmp_path).url}/ticker", least=3 * 5, is_push=True, hello="subscribe", seconds=0.5)
    assert result.errors == Counter()
    assert result.messages >= 3 * 5
    assert result.payload_bytes >= result.messages * 300
    # The mean, because after a message that was late the next one seems early.
    assert result.latencies.quantiles()["mean"] >= 4000


def test_a_push_url_that_says_nothing_has_failed(krait_site: Serve) -> None:
    assert load(f"{krait_site(SITE).url}/loop", is_push=True).errors == {"silent: nothing was received": 1}


def test_wss(krait_site: Serve, certificate: Certificate) -> None:
    site = krait_site(SITE, **certificate.settings)
    url = f"wss://localhost:{site.port}/loop"
    result = load(url, least=11, tls=certificate.context(), in_flight=4, size=40_000)
    assert result.errors == Counter()
    assert result.messages > 10
    done = run(url, "-c", "2", "-d", "0.3")
    assert done.returncode == 1
    assert "error: 2 × refused: TLS: " in done.stdout
    assert "(--insecure does not check)" in done.stdout
    done = run(url, "-c", "2", "-d", "0.3", "--insecure")
    assert done.returncode == 0, done.stdout


def test_headers_and_subprotocol_are_sent() -> None:
    requests = []

    def behave(peer: Peer) -> None:
        peer.accept("Sec-WebSocket-Protocol: b\r\n")
        requests.append(peer.request)
        peer.echoes(lambda payload: server_frame(0x81, payload))

    with server(behave) as url:
        result = load(f"{url}x?y=1", connections=1, subprotocol="a, b", headers=(header_of("X-Own: 5"),))
    assert result.errors == Counter()
    assert requests[0].startswith("GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nSec-WebSocket-Protocol: a, b\r\n" in requests[0]
    assert requests[0].endswith("\r\nX-Own: 5")


# ---- servers with habits, all of them allowed


def in_fragments(payload: bytes) -> bytes:
    return server_frame(0x01, payload[:5]) + server_frame(0x00, payload[5:9]) + server_frame(0x80, payload[9:])


def with_pings(payload: bytes) -> bytes:
    return server_frame(0x89, b"here?") + server_frame(0x81, payload)


def with_a_ping_inside(payload: bytes) -> bytes:
    return server_frame(0x01, payload[:5]) + server_frame(0x89, b"") + server_frame(0x80, payload[5:])


def with_a_long_head(payload: bytes) -> bytes:
    return bytes((0x81, 127)) + len(payload).to_bytes(8, "big") + payload


@pytest.mark.parametrize("answer", [in_fragments, with_pings, with_a_ping_inside, with_a_long_head])
@pytest.mark.parametrize("in_flight", [1, 7])
def test_an_echo_may_come_in_many_forms(answer: Callable[[bytes], bytes], in_flight: int) -> None:
    with server(accepting(answer)) as url:
        result = load(url, least=11, in_flight=in_flight)
    assert result.errors == Counter()
    assert result.messages > 10


def test_an_echo_may_come_byte_by_byte_and_its_form_may_change() -> None:
    forms = [in_fragments, with_pings, lambda payload: server_frame(0x81, payload)]

    def behave(peer: Peer) -> None:
        peer.accept()
        turn = 0

        def answer(payload: bytes) -> bytes:
            nonlocal turn
            turn += 1
            *first, last = forms[turn % len(forms)](payload)
            for byte in first:
                peer.send(bytes([byte]))
            return bytes([last])

        peer.echoes(answer)

    with server(behave) as url:
        result = load(url, least=4, in_flight=2)
    assert result.errors == Counter()
    assert result.messages > 3


def test_a_ping_is_answered() -> None:
    pongs = []

    def behave(peer: Peer) -> None:
        peer.accept(behind=server_frame(0x89, b"abc"))  # with the 101, so that it comes before the close
        while (frame := peer.frame())[0] != 8:
            pongs.append(frame)
        peer.send(server_frame(0x88, frame[1]))

    with server(behave) as url:
        load(url, connections=1, is_push=True)
    assert pongs == [(0xA, b"abc")]


# ---- servers with faults


def swapped(turns: list[bytes]) -> Callable[[bytes], bytes]:
    """Answers two messages at once, in the wrong order."""

    def answer(payload: bytes) -> bytes:
        turns.append(payload)
        if len(turns) < 2:
            return b""
        return b"".join(server_frame(0x81, turns.pop()) for _ in range(2))

    return answer


def following(payload: bytes) -> bytes:
    """The message that comes after this one."""
    return bytes(97 + (letter - 96) % 26 for letter in payload)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda payload: server_frame(0x81, payload[:-1]), "broken: an echo of another size, content or order"),
        (lambda payload: server_frame(0x81, payload + b"x"), "broken: an echo of another size, content or order"),
        (lambda payload: server_frame(0x81, b"X" * len(payload)), "broken: an echo of another size, content or order"),
        (lambda payload: server_frame(0x82, payload), "broken: an echo with opcode 2"),
        (lambda payload: server_frame(0x80, payload), "broken: an echo with opcode 0"),
        (lambda payload: server_frame(0x81, payload) * 2, "broken: an echo of another size, content or order"),
        (
            lambda payload: server_frame(0x81, payload) + server_frame(0x81, following(payload)),
            "wrong echo: more messages than were sent",
        ),
        (lambda payload: server_frame(0xC1, payload), "broken: a reserved bit is set"),
        (lambda payload: bytes((0x81, 0xFF)) + bytes(20), "broken: a masked frame"),
        (lambda payload: server_frame(0x88, b"\x03\xf0slow down"), "closed: 1008 slow down"),
        (lambda payload: server_frame(0x88, b""), "closed: 1005"),
        (lambda payload: server_frame(0x88, b"\x03\xf0\x1b[2J\xc2\x9b"), "closed: 1008 \\x1b[2J\\x9b"),
    ],
    ids=[
        "short",
        "long",
        "other",
        "binary",
        "continuation",
        "twice",
        "ahead",
        "rsv",
        "masked",
        "close 1008",
        "close 1005",
        "terminal",
    ],
)
def test_what_is_no_echo_is_an_error_of_its_kind(answer: Callable[[bytes], bytes], kind: str) -> None:
    with server(accepting(answer)) as url:
        result = load(url, connections=2)
    assert result.errors == {kind: 2}
    assert result.has_failed


def test_a_wrong_order_is_an_error() -> None:
    def behave(peer: Peer) -> None:
        peer.accept()
        peer.echoes(swapped([]))

    with server(behave) as url:
        result = load(url, in_flight=2)
    assert result.errors == {"broken: an echo of another size, content or order": 3}


def refusing(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")


def without_a_key(peer: Peer) -> None:
    peer.read_request()
    peer.send(b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n")


def dropping(peer: Peer) -> None:
    peer.accept()
    peer.frame()


def hanging_up(peer: Peer) -> None:
    peer.read_request()


def choosing(peer: Peer) -> None:
    peer.accept("Sec-WebSocket-Protocol: own\r\n")


def extending(peer: Peer) -> None:
    peer.accept("Sec-WebSocket-Extensions: permessage-deflate\r\n")


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (refusing, "refused: 503 Service Unavailable"),
        (without_a_key, "refused: wrong Sec-WebSocket-Accept"),
        (choosing, "refused: subprotocol own"),
        (extending, "refused: an extension that was not offered"),
        (hanging_up, "refused: closed during the handshake"),
        (dropping, "lost: no close frame"),
    ],
)
def test_a_connection_that_fails_is_an_error_of_its_kind(behave: Callable[[Peer], None], kind: str) -> None:
    with server(behave) as url:
        assert load(url, connections=2).errors == {kind: 2}


def test_nobody_listens() -> None:
    assert load("ws://127.0.0.1:1/", connections=2).errors == {"refused: connection refused": 2}


def test_what_never_comes_is_a_timeout() -> None:
    ended = threading.Event()

    def without_echo(peer: Peer) -> None:
        peer.accept()
        ended.wait(PATIENCE)

    def without_answer(peer: Peer) -> None:
        ended.wait(PATIENCE)

    def errors_of(url: str, **plan: Any) -> tuple[Counter[str], float]:
        """Of a load, and its timeout: the first in which a machine that may be slow has done the handshakes."""
        for timeout in (0.3, 5.0):
            errors = load(url, timeout=timeout, **plan).errors
            if not any("no handshake" in kind for kind in errors):
                break
        return errors, timeout

    with server(without_echo) as silent, server(without_answer) as deaf:
        try:
            errors, timeout = errors_of(silent, seconds=30)
            assert errors == {f"timeout: no echo within {timeout:g} s": 3}
            assert load(deaf, timeout=0.3).errors == {"timeout: no handshake within 0.3 s": 3}
            errors, timeout = errors_of(silent, is_push=True)
            assert errors == {f"timeout: no close frame within {timeout:g} s": 3}
        finally:
            ended.set()


def test_one_bad_connection_leaves_the_others_alone() -> None:
    lock = threading.Lock()
    numbers = iter(range(100))

    def behave(peer: Peer) -> None:
        with lock:
            number = next(numbers)
        peer.accept()
        if number % 4 == 1:  # one of each load
            peer.frame()  # unread, it would be a reset
            return
        peer.echoes(lambda payload: server_frame(0x81, payload))

    with server(behave) as url:
        result = load(url, least=11, connections=4)
    assert result.errors == {"lost: no close frame": 1}
    assert result.messages > 10


# ---- a fixed schedule


def test_a_rate_counts_the_time_that_messages_had_to_wait_for_the_server() -> None:
    """A closed loop sends nothing while the server stalls and so hardly sees it: coordinated omission."""

    def behave(peer: Peer) -> None:
        peer.accept()
        stalls = iter([0.0] * 5 + [0.5])

        def answer(payload: bytes) -> bytes:
            time.sleep(next(stalls, 0.0))
            return server_frame(0x81, payload)

        peer.echoes(answer)

    with server(behave) as url:
        result = load(url, connections=1, seconds=1, rate=200)
    assert result.errors == Counter()
    late = sum(count for micros, count in result.latencies.counts() if micros > 100_000)
    assert late >= 50  # those due in 400 ms of the 500; it would be one in a closed loop
    assert (
        sum(count for _, count in result.latencies.counts()) == 200
    )  # what the schedule has, whatever the server does


def test_a_rate_counts_the_time_that_messages_had_to_wait_for_the_loader() -> None:
    """A loader that is itself late does not begin to count when it has time."""
    stalls = iter([0.4])

    with server(accepting(lambda payload: server_frame(0x81, payload))) as url:
        plan = Plan(target_of(url), connections=1, seconds=1, rate=200, timeout=PATIENCE)
        result = Load(plan).run(lambda line: time.sleep(next(stalls, 0.0) if line.startswith("running") else 0.0))
    assert result.errors == Counter()
    assert sum(count for micros, count in result.latencies.counts() if micros > 100_000) >= 40  # due in 300 ms


# ---- figures


def test_quantiles_and_histogram() -> None:
    latencies = Latencies()
    assert (latencies.quantiles(), latencies.histogram()) == ({}, [])
    for micros in range(1, 101):
        latencies.record(micros * 10, 1)
    latencies.record(EXACT + 4_567, 1)
    quantiles = latencies.quantiles()
    assert (quantiles["p50"], quantiles["p90"], quantiles["p99"]) == (510, 910, 1000)
    assert quantiles["max"] == (EXACT + 4_567) // 1000 * 1000
    rows = latencies.histogram()
    assert sum(count for _, count in rows) == 101
    assert rows[0] == (15, 1)
    assert dict(rows)[1000] == 30  # 700 and above, below 1000
    assert rows[-1] == (150_000, 1)


@pytest.mark.parametrize(
    ("micros", "text"), [(0, "0 µs"), (999, "999 µs"), (1500, "1.5 ms"), (23_456, "23.5 ms"), (2_000_000, "2 s")]
)
def test_durations(micros: int, text: str) -> None:
    assert duration(micros) == text


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 5_000_000])
def test_the_bytes_of_messages(size: int) -> None:
    messages = Messages(size, 3, is_binary=True)
    assert len({bytes(payload) for payload in messages.payloads}) == (messages.count if size else 1)
    assert all(len(payload) == size for payload in messages.payloads)
    assert len(messages.outgoing) >= (messages.count + 3 - 1) * messages.sent_size
    assert messages.outgoing[: messages.sent_size] == client_frame(2, messages.payloads[0])


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x/", "ws://", "ws://x:port/", "ws://x:99999/", "ws://x/a b", "ws://x/ä"]
)
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError):
        target_of(url)


@pytest.mark.parametrize("text", ["X", ": y", "X: y\r\nZ: 1", "Host: y", "sec-websocket-key: y"])
def test_a_header_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError):
        header_of(text)


def test_large_messages_on_a_schedule_take_little_memory() -> None:
    load = Load(Plan(target_of("ws://127.0.0.1:1/"), connections=1, size=16 << 20, rate=1))
    assert len(load.messages.outgoing) < 100 << 20
    load.poller.close()


# ---- the command


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "krait_ws", "bench", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_command_prints_figures_and_a_histogram(krait_site: Serve) -> None:
    done = run(f"{krait_site(SITE).url}/loop", "-c", "2", "-d", "0.3")
    assert (done.returncode, done.stderr) == (0, "")
    assert " messages/s" in done.stdout
    assert "latency: mean " in done.stdout
    assert "█" in done.stdout


def test_the_command_prints_json(krait_site: Serve) -> None:
    url = f"{krait_site(SITE).url}/loop"
    for seconds in ("0.3", "10"):  # the longer time where the machine is so slow that nothing comes back in the other
        found = json.loads(run(url, "-c", "2", "-d", seconds, "--json").stdout)
        if found["messages"]:
            break
    assert found["errors"] == {}
    assert found["messages"] > 0
    assert found["messages_per_second"] == pytest.approx(found["messages"] / found["seconds"], rel=0.01, abs=0.1)


def test_progress_is_shown_on_a_terminal(krait_site: Serve) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(f"{krait_site(SITE).url}/loop", "-c", "2", "-d", "4.5"), stdout=subprocess.PIPE, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # the terminal's other end is closed
            while data := os.read(ours, 4096):
                seen += data
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    assert re.search(rb"running: 2 connections, [1-9][0-9,]* messages/s, [0-4] of 4.5 s", seen), seen
    assert seen.endswith(b"\r\x1b[K")  # nothing of it stays


def test_a_failure_is_exit_code_1() -> None:
    done = run("ws://127.0.0.1:1/", "-c", "2", "-d", "0.3")
    assert done.returncode == 1
    assert "error: 2 × refused: connection refused" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["ws://x", "-c", "0"],
        ["ws://x", "-d", "soon"],
        ["ws://127.0.0.1:1/", "-d", "nan"],
        ["ws://127.0.0.1:1/", "-d", "inf"],
        ["ws://127.0.0.1:1/", "--ramp", "nan"],
        ["ws://127.0.0.1:1/", "--rate", "inf"],
        ["ws://127.0.0.1:1/", "--rate", "nan"],
        ["ws://127.0.0.1:1/", "--timeout", "nan"],
        ["ws://127.0.0.1:1/", "-f", "10000", "-s", "16000000"],
        ["ws://" + "x" * 70],
        ["ws://127.0.0.1:1/", "--push", "--rate", "5"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("krait-ws: ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_gives_the_figures_so_far() -> None:
    met = threading.Event()
    answers = itertools.count()

    def answer(payload: bytes) -> bytes:
        # It sends the second message when it has the echo of the first, and measures from before that. So there are
        # figures now; of a while, because it rounds the seconds.
        if next(answers) == 300:
            met.set()
        return server_frame(0x81, payload)

    with server(accepting(answer)) as url:
        arguments = command(url, "-c", "1", "-d", "600", "--json")
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        try:
            assert met.wait(PATIENCE)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    found = json.loads(output)
    assert found["interrupted"] is True
    assert found["messages"] > 0
    assert 0 < found["seconds"] < 60
