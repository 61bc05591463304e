"""``krait-ws connect``: what it sends, what it shows, how it ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from krait_ws.client import ClientError
from krait_ws.commands.connect import _Talk
from krait_ws.testing import SiteServer
from tests.commands.support import PATIENCE, Peer, server, server_frame

Serve = Callable[..., SiteServer]

ECHO = (
    "from krait_ws.websockets import *\n"
    "class Echo(WebsocketsCtrlBase):\n    def on_thread_start(self):\n"
    "        for message in self.messages():\n            self.push_out_message(message)\n"
    "def websocket(request):\n    return WebsocketsResponse(Echo())\n"
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "krait_ws", "connect", *arguments]


LINGER = ("--linger", "5")
"""For who waits for the last answers: a busy machine may take longer than the second that it lingers by default."""


def talk(lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), input=lines, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture
def url(krait_site: Serve, tmp_path: Path) -> str:
    site = tmp_path / "site"
    site.mkdir()
    (site / "echo.py").write_text(ECHO)
    return f"{krait_site(site).url}/echo"


def test_lines_go_out_and_what_comes_is_shown(url: str) -> None:
    done = talk("hello\n\nzwölf 🐍\n//slash\n@@at\nlast", url, *LINGER)
    assert done.stdout.splitlines() == [
        "text 5: hello",
        "text 0: ",
        "text 11: zwölf 🐍",
        "text 6: /slash",
        "text 3: @at",
        "text 4: last",
    ]
    assert done.stderr.splitlines() == [f"connected to ws{url[4:]}", "closed: 1000"]
    assert done.returncode == 0


def test_a_file_goes_out_as_binary(url: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\x00\x01\xff")
    (tmp_path / "long file").write_bytes(bytes(100))
    done = talk(f"@{tmp_path}/short\n@{tmp_path}/long file\n@{tmp_path}/none\n", url, *LINGER)
    assert done.stdout.splitlines() == ["binary 3: 00 01 ff", "binary 100: " + "00 " * 32 + "…"]
    assert f"{tmp_path}/none: No such file or directory" in done.stderr


def test_the_home_of_nobody(url: str) -> None:
    done = talk("@~nobody-of-this-name/file\nafter\n", url, *LINGER)
    assert done.stdout == "text 5: after\n"
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_no_input_at_all(url: str) -> None:
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", *command(url, "--linger", "0.1")]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr.splitlines() == [f"connected to ws{url[4:]}", "closed: 1000"]
    assert done.returncode == 0


def test_what_a_server_says_to_top_cannot_steer_the_terminal() -> None:
    def behave(peer: Peer) -> None:
        peer.accept()
        peer.send(server_frame(0x88, b"\x03\xf0no\x1b[2J\xc2\x9b\n1"))
        peer.frame()

    with server(behave) as url:
        top = [sys.executable, "-m", "krait_ws", "top", url]
        done = subprocess.run(top, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stderr == f"krait-ws: {url} closed the connection (1008 no\\x1b[2J\\x9b 1)\n"
    assert done.returncode == 2


def test_what_an_error_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    class Closed:
        def send(self, message: str) -> None:
            raise ClientError("it said \x1b[2J")

    assert not _Talk(Closed(), 0.0)._do("hello")  # type: ignore[arg-type]
    assert capsys.readouterr().err == "it said \\x1b[2J\n"


def test_the_reader_of_the_output_has_gone(url: str) -> None:
    with subprocess.Popen(command(url), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as talks:
        assert talks.stdin is not None
        assert talks.stdout is not None
        assert talks.stderr is not None
        talks.stdout.close()
        talks.stdin.write(b"hello\n")
        talks.stdin.flush()
        assert talks.wait(PATIENCE) == 1
        assert talks.stderr.read().decode().splitlines() == [f"connected to ws{url[4:]}"]


def test_commands(url: str) -> None:
    done = talk("/ping\n/help\n/nothing\n/close x\n/close 1006\n/close 4001 good bye\nnever sent\n", url)
    assert done.stdout == ""
    errors = done.stderr
    assert "pong after " in errors
    assert "@file " in errors
    assert "/nothing is no command" in errors
    assert "'x' is no close code" in errors
    assert "1006" in errors
    assert errors.splitlines()[-1].startswith("closed: 4001")
    assert done.returncode == 0


def test_the_close_frame_that_the_server_gets() -> None:
    frames = []

    def behave(peer: Peer) -> None:
        peer.accept()
        frames.append(peer.frame())
        peer.send(server_frame(0x88, frames[0][1]))

    with server(behave) as url:
        done = talk("/close 4001 good bye\n", url)
    assert frames == [(8, b"\x0f\xa1good bye")]
    assert "closed: 4001 good bye" in done.stderr


@pytest.mark.parametrize(
    ("close", "line", "code"),
    [
        (server_frame(0x88, b"\x03\xe8bye"), "closed: 1000 bye", 0),
        (server_frame(0x88, b"\x03\xf0no\x1b"), "closed: 1008 no\\x1b", 1),
        (b"", "closed: 1006", 1),
    ],
)
def test_the_server_closes_while_the_input_is_open(close: bytes, line: str, code: int) -> None:
    def behave(peer: Peer) -> None:
        peer.accept()
        peer.send(server_frame(0x81, b"\x1b[2Jone\ntwo") + close)

    with (
        server(behave) as url,
        subprocess.Popen(
            command(url), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            assert process.wait(PATIENCE) == code  # nothing was written to its input, and it was not closed
            output, errors = process.communicate()
        finally:
            process.kill()
    assert output == "text 11: \\x1b[2Jone\\ntwo\n"  # nothing a server sends can steer the terminal
    assert errors.splitlines()[-1].startswith(line)


def test_what_the_handshake_carries() -> None:
    requests = []

    def behave(peer: Peer) -> None:
        peer.accept("Sec-WebSocket-Protocol: b\r\n")
        requests.append(peer.request)
        peer.echoes(lambda payload: b"")

    with server(behave) as url:
        done = talk("", url, "-p", "a, b", "-H", "X-Own: 5", "--basic", "ada:secret", "--linger", "0")
        talk("", url, "-p", "b", "--bearer", "t0ken", "--linger", "0")
    assert "subprotocol b" in done.stderr
    assert "Sec-WebSocket-Protocol: a, b" in requests[0]
    assert "X-Own: 5" in requests[0]
    assert "Authorization: Basic YWRhOnNlY3JldA==" in requests[0]
    assert "Authorization: Bearer t0ken" in requests[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nothing"], "nothing"),
        (["localhost:8000/echo"], "'localhost:8000/echo' is no WebSocket URL: write it like ws://"),
        (["ws://127.0.0.1:1/"], "refused"),
        (["ws://x", "-H", "X"], "'X' is no header"),
        (["ws://x", "-H", ""], "'' is no header"),
        (["ws://x", "-H", ": y"], "': y' is no header"),
        (["ws://x", "--linger", "nan"], "--linger"),
        (["ws://x", "--basic", "a:b", "--bearer", "t"], "--bearer"),
        (["ftp://x"], "ftp"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(arguments: list[str], named: str) -> None:
    done = talk("", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert done.stderr.startswith("krait-ws: ")
    assert done.stderr.count("\n") == 1


def test_a_refusal_shows_status_and_body(url: str) -> None:
    done = talk("", f"{url}/none")
    assert done.returncode == 2
    assert "404" in done.stderr


def test_ctrl_c_at_a_terminal_closes(url: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(url), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        assert process.stdout is not None
        assert "/help" in process.stderr.readline()
        os.write(ours, b"typed\n")
        assert process.stdout.readline() == "text 5: typed\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        watchdog.cancel()
        process.kill()
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert errors == "closed: 1000\n"
