"""The command line, as its user meets it: a process, what it prints, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest

import krait_ws
from krait_ws.config import options

SiteFolder = Callable[[Mapping[str, str | bytes]], Path]

TIMEOUT = 30  # seconds that a command may take


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KRAIT_")}
    return subprocess.run(
        [sys.executable, "-m", "krait_ws", *map(str, arguments)],
        capture_output=True, text=True, timeout=TIMEOUT, check=False, env={**clean, **environment},
    )  # fmt: skip


def check_mistake(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """One line on stderr that names what was wrong, and exit code 2."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith("krait-ws: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_version() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert krait_ws.__version__ in done.stdout


def test_help_names_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "serve" in done.stdout
    assert "routes" in done.stdout


def test_without_a_command_there_is_help_and_exit_code_2() -> None:
    done = run()
    assert done.returncode == 2
    assert "serve" in done.stdout


def test_serve_has_a_flag_for_every_setting_with_its_meaning() -> None:
    done = run("serve", "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for option in options():
        assert "--" + option.name.replace("_", "-") in text
    assert "Largest incoming message" in text


# ---- routes


def test_routes_prints_url_file_and_what_answers(site_folder: SiteFolder) -> None:
    root = site_folder(
        {
            "index.html": "",
            "style.css": "",
            "echo.py": "import krait_ws",
            "chat/[room].py": "def websocket(request): ...\ndef http(request): ...",
            "feed.py": "def websocket(request): ...",
            "broken.py": "x = 1\ndef (",
            "_private/x.py": "",
        }
    )
    done = run("routes", root)
    assert done.returncode == 0
    assert done.stderr == ""
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [
        ["/", "index.html"],
        ["/broken", "broken.py"],
        ["/chat/[room]", "chat/[room].py"],
        ["/echo", "echo.py"],
        ["/feed", "feed.py"],
        ["/style.css", "style.css"],
    ]
    answers = {row[0]: row[2] for row in rows}
    assert answers["/"] == "page"
    assert answers["/style.css"] == "file"
    assert answers["/echo"].startswith("script")
    assert answers["/chat/[room]"] == "function: websocket and http"
    assert answers["/feed"] == "function: websocket"
    assert answers["/broken"].startswith("broken script: ")
    assert answers["/broken"].endswith("(line 2)")


def test_routes_runs_no_script(site_folder: SiteFolder) -> None:
    root = site_folder({"page.py": "from pathlib import Path\nPath(__file__).with_name('ran').touch()"})
    assert run("routes", root).returncode == 0
    assert not (root / "ran").exists()


def test_routes_of_an_empty_site(site_folder: SiteFolder) -> None:
    done = run("routes", site_folder({}))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_routes_of_a_script_with_a_nul_byte(site_folder: SiteFolder) -> None:
    """Which exception that is differs between versions of Python."""
    done = run("routes", site_folder({"nul.py": b"x = 1\0"}))
    assert done.returncode == 0
    assert "broken script" in done.stdout


def test_routes_does_not_open_a_pipe(site_folder: SiteFolder) -> None:
    """Failed: the command waited for somebody to write into the pipe."""
    root = site_folder({"index.html": ""})
    os.mkfifo(root / "pipe.py")
    done = run("routes", root)
    assert done.returncode == 0
    assert "index.html" in done.stdout


# ---- mistakes


def test_a_missing_site(tmp_path: Path) -> None:
    for command in ("serve", "routes"):
        check_mistake(run(command, tmp_path / "missing"), "missing")


def test_a_file_instead_of_a_site(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_mistake(run("routes", tmp_path / "file"), "file")


def test_an_ambiguous_site(site_folder: SiteFolder) -> None:
    root = site_folder({"[a].py": "", "[b].py": ""})
    for command in ("serve", "routes"):
        check_mistake(run(command, root), "[a].py", "[b].py")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--port", "http"], ["port", "'http'"]),
        (["--port", "70000"], ["port", "70000", "65535"]),
        (["--port", "-1"], ["port", "-1"]),
        (["--runs-on", "fibre"], ["--runs-on", "'fibre'", "thread"]),
        (["--max-message-size", "1kb"], ["--max-message-size", "'1kb'"]),
        (["--max-message-size", "0"], ["--max-message-size"]),
        (["--push-timeout", "soon"], ["--push-timeout", "'soon'"]),
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--port"], ["--port"]),
        (["--host", "no.such.host.invalid"], ["cannot listen"]),
        (["--host", "x" * 70], ["cannot listen", "no name of a host"]),
        (["--origin", "example.org"], ["origin", "example.org"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_flag_that_cannot_be_used(site_folder: SiteFolder, flags: list[str], parts: list[str]) -> None:
    check_mistake(run("serve", site_folder({"index.html": ""}), *flags), *parts)


def test_a_variable_that_cannot_be_used(site_folder: SiteFolder) -> None:
    check_mistake(run("serve", site_folder({"index.html": ""}), KRAIT_PORT="http"), "KRAIT_PORT", "'http'")
    check_mistake(run("serve", site_folder({"index.html": ""}), KRAIT_RUNS_ON="fibre"), "KRAIT_RUNS_ON", "'fibre'")


@pytest.mark.parametrize("arguments", [["no-such-command"], ["routes", "a", "b"]], ids=" ".join)
def test_a_command_that_is_none(arguments: list[str]) -> None:
    check_mistake(run(*arguments))


def test_a_port_that_is_taken(site_folder: SiteFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        check_mistake(run("serve", site_folder({"index.html": ""}), "--port", port), "cannot listen", port)


@pytest.mark.parametrize("command", [["routes", "."], ["--help"], ["config"], ["completion", "bash"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_traceback(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "krait_ws", *command],
            stdout=output, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


def test_a_question_that_nobody_answers() -> None:
    """The end of the input is what Ctrl-C is to a command that asks."""
    done = subprocess.run(
        [sys.executable, "-m", "krait_ws", "connect", "ws://127.0.0.1:1/", "--basic", "ada"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.endswith("krait-ws: aborted\n")


# ---- serve


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_serve_says_where_answers_and_ends_with_a_signal(site_folder: SiteFolder, stop: signal.Signals) -> None:
    root = site_folder({"index.html": "<h1>start</h1>"})
    environment = {**os.environ, "KRAIT_PORT": "0", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "krait_ws", "serve", str(root)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://127.0.0.1:" in line, line
            url = next(word for word in line.split() if word.startswith("http://"))
            with urlopen(url, timeout=TIMEOUT) as answer:
                assert answer.read() == b"<h1>start</h1>"
            process.send_signal(stop)
            assert process.wait(TIMEOUT) == 0
        finally:
            watchdog.cancel()
            process.kill()


def test_flags_win_over_variables(site_folder: SiteFolder) -> None:
    done = run("serve", site_folder({"index.html": ""}), "--port", "70001", KRAIT_PORT="70002")
    check_mistake(done, "70001")
