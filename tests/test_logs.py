"""What records say and do not say, as text and as JSON, and the thread that writes them."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from krait_ws import log_output
from krait_ws.config import Config
from krait_ws.log_output import JsonFormatter, LineWriter, TextFormatter, configure
from krait_ws.logs import Answered, escaped, log_failure, redacted_target, redacted_traceback, secrets_of
from krait_ws.testing import drive
from krait_ws.websockets import WebsocketsCtrlBase
from tests.helpers import DEADLINE, http_request, until, upgrade_http_request

# ---- redaction


@pytest.mark.parametrize(
    ("target", "logged"),
    [
        ("/", "/"),
        ("/chat/lobby", "/chat/lobby"),
        ("/@ada/x", "/@ada/x"),
        ("/chat?", "/chat?"),
        ("/chat?token=s3cret&name=Ada", "/chat?token=*&name=*"),
        ("/chat?s3cret", "/chat?*"),
        ("/chat?a=s3cret=s3cret&&b=?s3cret", "/chat?a=*&*&b=*"),
        ("/chat?a=", "/chat?a=*"),
        ("ada:s3cret@host:443", "*@host:443"),
        ("//ada:s3cret@host/x", "//*@host/x"),
        ("/go/http://ada:s3cret@host/x", "/go/http://*@host/x"),
        ("/a\nb\x1b[2J\x9b\u202e", "/a\\nb\\x1b[2J\\x9b\\u202e"),
        ("/" + "x" * 5000 + "?a=s3cret", "/" + "x" * 1023 + "…"),
        ("/?a=" + "x" * 5000, "/?a=*…"),
    ],
)
def test_a_target_without_its_secrets(target: str, logged: str) -> None:
    assert redacted_target(target) == logged


def basic(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


HEADERS = [
    ("Authorization", "Basic " + basic("ada:pass wörd")),
    ("Proxy-Authorization", "Bearer proxy-token"),
    ("Cookie", 'session="signed.cookie.value"; theme=dark-theme; flag'),
    ("Sec-WebSocket-Protocol", "chat.v1, bearer.of-the-protocol"),
    ("X-Api-Key", "the-api-key"),
    ("X-CSRF-Token", "the-csrf-token"),
]
SECRETS = [
    "pass wörd", basic("ada:pass wörd"), "proxy-token", "signed.cookie.value", "dark-theme", "bearer.of-the-protocol",
    "the-api-key", "the-csrf-token", "query value", "query%20value", "nackt", "über", "it's \\ a secret",
]  # fmt: skip
QUERY = "?token=query%20value&nackt&u=%C3%BCber&q=it's%20%5C%20a%20secret&id=1"


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("show", [str, repr, "Sign in: {}".format, lambda secret: f"a\nb {secret}\n  c"])
def test_a_traceback_without_the_secrets_of_its_request(secret: str, show: Any) -> None:
    environ = upgrade_http_request("/x" + QUERY, HEADERS).environ

    try:
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise LookupError(show(secret)) from error
    except LookupError as error:
        text = redacted_traceback(error, secrets_of(environ))
    assert secret not in text
    assert repr(secret)[1:-1] not in text
    assert text.count("[redacted]") >= 2
    assert "raise LookupError(show(secret)) from error" in text, "the code is as it is"


def test_what_is_short_is_no_secret() -> None:
    environ = http_request("/?a=1&b=ab&c=abc", [("Cookie", "d=x")]).environ
    assert secrets_of(environ) == []


def test_no_client_makes_a_traceback_grow() -> None:
    """A query of parts of the word that stands for a secret: each was replaced in what the one before had left."""
    word = "[redacted]"
    parts = [word[at : at + size] for size in range(10, 3, -1) for at in range(11 - size)]
    environ = http_request("/?" + "&".join(parts)).environ
    text = redacted_traceback(ValueError("redacted " * 10 + word), secrets_of(environ))
    assert text == "ValueError: " + "[redacted] " * 10 + "[redacted]"


def test_a_secret_may_have_any_character_in_it() -> None:
    secret = "abc\U0010ffffdef"
    environ = http_request("/", [("Cookie", f"session={secret.encode().decode('latin-1')}")]).environ
    text = redacted_traceback(ValueError(f"<{secret}>"), secrets_of(environ))
    assert text == "ValueError: <[redacted]>"


def test_lines_of_code_are_as_they_are() -> None:
    environ = http_request("/?a=raise&b=File&c=line&d=RuntimeError").environ
    try:
        raise RuntimeError("raise")
    except RuntimeError as error:
        text = redacted_traceback(error, secrets_of(environ))
    assert 'raise RuntimeError("raise")' in text
    assert re.search(r'^  File ".*test_logs.py", line \d+, in', text, re.MULTILINE)
    assert text.endswith("[redacted]: [redacted]")


def test_standard_formatters_show_no_secret_either(caplog: pytest.LogCaptureFixture) -> None:
    environ = http_request("/?token=s3cret-of-ada").environ
    try:
        int("-".join(("s3cret", "of", "ada")))
    except ValueError as error:
        log_failure(logging.getLogger("krait_ws.site"), error, environ, "%s failed", "GET /")
    (record,) = caplog.records
    assert record.exc_info
    line = logging.Formatter("%(message)s").format(record)
    assert "s3cret-of-ada" not in line
    assert line.startswith("GET / failed\nTraceback")
    assert "invalid literal for int() with base 10: '[redacted]'" in line


# ---- formats


def record_of(message: Any, *args: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("krait_ws.test").makeRecord(
        "krait_ws.test", logging.WARNING, "", 0, message, args, None, extra=extra
    )


TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_text() -> None:
    line = TextFormatter().format(record_of("%s said %d", "Ada", 7))
    assert re.fullmatch(rf"{TIME} WARNING krait_ws\.test: Ada said 7\n", line)


def test_no_message_forges_a_line() -> None:
    forged = "x\n2026-01-01T00:00:00.000Z INFO krait_ws.access: forged\r\x1b[2J\x85"
    text = TextFormatter().format(record_of("%s", forged))
    lines = text.splitlines()
    assert len(lines) == 2
    assert lines[1] == "    2026-01-01T00:00:00.000Z INFO krait_ws.access: forged\\r\\x1b[2J\\x85"
    line = JsonFormatter().format(record_of("%s", forged))
    assert line.count("\n") == 1
    assert line.isascii()
    assert json.loads(line)["message"] == forged


def test_a_traceback_in_both_formats() -> None:
    record = record_of("failed")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = TextFormatter().format(record).splitlines()
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-2:] == ["    ValueError: first", "    second"]
    fields = json.loads(JsonFormatter().format(record))
    assert fields["exception"].startswith("Traceback (most recent call last):\n")
    assert fields["exception"].endswith("ValueError: first\nsecond")
    assert (fields["level"], fields["logger"], fields["message"]) == ("warning", "krait_ws.test", "failed")


def test_fields_of_ones_own_in_json() -> None:
    fields = json.loads(JsonFormatter().format(record_of("x", room="lobby", odd=object(), level="mine")))
    assert list(fields)[:4] == ["time", "level", "logger", "message"]
    assert (fields["room"], fields["level"]) == ("lobby", "warning")
    assert "object" in fields["odd"]


def test_access_events() -> None:
    event = Answered("192.0.2.7", "GET", "/chat?token=s3cret", 200, bytes_out=12, seconds=0.0123456)
    assert str(event) == "192.0.2.7 GET /chat?token=* 200 12 bytes in 0.012 s"
    assert event.fields() == {
        "event": "request", "client": "192.0.2.7", "method": "GET", "target": "/chat?token=*", "status": 200,
        "bytes_out": 12, "seconds": 0.012346,
    }  # fmt: skip
    assert str(Answered("a\nb", "-", "-", 400, error="why")) == "a\\nb - - 400 why"


# ---- the writer


class Stream(io.StringIO):
    """Counts its writes, and waits in them while it is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.is_asked = threading.Event()  # somebody is about to write
        self.open = threading.Event()
        self.open.set()

    def write(self, text: str) -> int:
        self.is_asked.set()
        assert self.open.wait(20)
        self.writes += 1
        return super().write(text)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setattr(log_output, "_FLUSH_TIMEOUT", DEADLINE)  # the writer may be on its way, and be late
    return Stream()


@pytest.fixture
def logger(stream: Stream) -> Iterator[logging.Logger]:
    """A logger whose records go to the stream only."""
    writer = LineWriter(stream)
    writer.setFormatter(TextFormatter())
    logger = logging.Logger("krait_ws.test", logging.DEBUG)
    logger.addHandler(writer)
    yield logger
    stream.open.set()
    writer.flush()
    writer.close()


def messages(stream: Stream) -> list[str]:
    return [line.partition(": ")[2] for line in stream.getvalue().splitlines()]


def test_lines_of_many_threads_are_written_together_and_whole(logger: logging.Logger, stream: Stream) -> None:
    def work(name: str) -> None:
        for number in range(500):
            logger.info("%s %d", name, number)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: len(messages(stream)) == 2000, "all lines written")
    for name in "abcd":
        own = [message for message in messages(stream) if message.startswith(name)]
        assert own == [f"{name} {number}" for number in range(500)]
    assert stream.writes < 200


def test_a_line_comes_soon_after_any_pause(logger: logging.Logger, stream: Stream) -> None:
    for number in range(5):
        logger.info("%d", number)
        until(lambda: len(messages(stream)) == number + 1, "the line")  # noqa: B023  called at once


def test_nobody_waits_for_a_reader_that_is_stuck(
    logger: logging.Logger, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_output, "MAX_WAITING", 100)
    monkeypatch.setattr(log_output, "_FLUSH_TIMEOUT", 0.05)
    stream.open.clear()
    logger.info("first")
    handler = logger.handlers[0]
    assert isinstance(handler, LineWriter)
    assert stream.is_asked.wait(DEADLINE), "the writer is stuck with it"
    for number in range(250):
        logger.info("%d", number)
    handler.flush()
    stream.open.set()
    until(lambda: len(messages(stream)) == 102, "what was kept")
    assert messages(stream) == ["first", *map(str, range(100)), "150 records were dropped"]


def test_what_a_record_is_made_of_may_change_later(logger: logging.Logger, stream: Stream) -> None:
    numbers = [1]
    logger.info("%s", numbers)
    numbers.append(2)
    logger.handlers[0].flush()
    assert messages(stream) == ["[1]"]


def test_a_record_that_cannot_be_formatted_harms_no_other(
    logger: logging.Logger, stream: Stream, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.info("%d", "x")
    logger.info("after")
    logger.handlers[0].flush()
    assert messages(stream) == ["after"]
    assert "Logging error" in capsys.readouterr().err


def test_a_stream_that_is_closed_harms_nobody(logger: logging.Logger, stream: Stream) -> None:
    stream.close()
    logger.info("x")
    logger.handlers[0].flush()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_a_writer_of_its_own() -> None:
    """As a worker has: in a process of its own, because forking one with threads is asking for trouble."""
    script = (
        "import logging, os, time\n"
        "from krait_ws import log_output\n"
        "from krait_ws.config import Config\n"
        "writer = log_output.configure(Config())\n"
        "logging.info('before')\n"  # the child takes nothing of it with it
        "if os.fork() == 0:\n"
        "    logging.info('child')\n"
        "    while writer._waiting:\n"  # its thread takes it
        "        time.sleep(0.01)\n"
        "    writer._output.acquire()\n"  # and has written it
        "    os._exit(0)\n"
        "os.wait()\n"
        "logging.info('parent')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    lines = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert sorted(lines) == ["before", "child", "parent"]
    assert lines[-1] == "parent"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    access = logging.getLogger("krait_ws.access")
    before = root.handlers[:], root.level, access.level
    yield root
    for handler in root.handlers:
        if isinstance(handler, LineWriter):
            handler.close()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    access.setLevel(before[2])


@pytest.mark.parametrize(
    ("settings", "logged"),
    [
        ({}, ["info", "error", "access"]),
        ({"log_level": "debug"}, ["debug", "info", "error", "access"]),
        ({"log_level": "error"}, ["error"]),
        ({"debug": True, "log_level": "error"}, ["debug", "info", "error", "access"]),
        ({"access_log": False}, ["info", "error"]),
    ],
)
def test_levels(settings: dict[str, Any], logged: list[str], stream: Stream, root: logging.Logger) -> None:
    configure(Config(log_format="json"), stream)
    writer = configure(Config(log_format="json", **settings), stream)
    logger = logging.getLogger("of.a.site")
    logger.debug("debug")
    logger.info("info")
    logger.error("error")
    Answered("c", "GET", "/", 200).log()
    writer.flush()
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert ["access" if "event" in fields else fields["message"] for fields in found] == logged


# ---- the log of a controller


class Chatty(WebsocketsCtrlBase):
    def on_thread_start(self) -> None:
        self.log.info("hello %s", "Ada", extra={"room": "lobby"})
        self.log.warning("odd")
        self.push_out_message("done")


def test_the_log_of_a_controller(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with drive(Chatty(), "/chat?token=s3cret") as driver:
        driver.expect("done")
    first, second = (record for record in caplog.records if record.name == "krait_ws.controller")
    id = driver.controller.id
    assert first.getMessage() == f"connection {id}: hello Ada"
    fields = json.loads(JsonFormatter().format(first))
    assert (fields["connection"], fields["controller"], fields["room"]) == (id, "Chatty", "lobby")
    assert "route" in fields
    assert "room" not in json.loads(JsonFormatter().format(second))
    assert escaped(id) == id
