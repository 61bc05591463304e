"""``krait-ws connect``: talks to a WebSocket by hand, or from a pipe."""

from __future__ import annotations

import os
import queue
import select
import ssl
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from krait_ws.errors import ConfigError
from krait_ws.flags import DAY, Number

if TYPE_CHECKING:
    from krait_ws.client import Auth, Link, Message, Transport

_MAX_MESSAGE = 64 << 20
_SHOWN_BYTES = 32
_SETTLING = 0.1  # seconds in which answers to what was sent last may come, before we close
_INPUT = 0  # the descriptor
_HELP = """a line is sent as text
@file             sends a file as one binary message
/ping             measures the way there and back
/close CODE WHY   closes; without a code with 1000
/help             shows this
//text, @@text    send a text that begins with / or @"""


@click.command()
@click.argument("url")
@click.option("--subprotocol", "-p", default="", metavar="NAMES", help="Offered subprotocols, with commas between.")
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the handshake.")
@click.option("--basic", metavar="USER[:PASSWORD]", help="Who you are; asks for a password that is not given.")
@click.option("--bearer", metavar="TOKEN", help="Who you are, as a token.")
@click.option("--insecure", is_flag=True, help="Do not check the certificate of a wss server.")
@click.option(
    "--linger", type=Number(0, DAY), default=1.0, show_default=True,
    help="Seconds of silence after the end of the input, before it closes.",
)  # fmt: skip
def connect(
    url: str,
    subprotocol: str,
    headers: tuple[str, ...],
    basic: str | None,
    bearer: str | None,
    insecure: bool,
    linger: float,
) -> None:
    """Connect to URL, send each line of the input as text and show what comes.

    @file sends a file as binary; /ping, /close CODE REASON and /help do what they say. What came is printed to the
    output, all else to stderr. Exit code 1 when the server closed with another code than 1000 or 1001.
    """
    if basic and bearer:
        raise click.UsageError("--basic and --bearer are two ways to say who you are: give one")
    transport = _transport(url, subprotocol, headers, _auth(basic, bearer), insecure)
    link = transport.open()
    chosen = f", subprotocol {link.subprotocol}" if link.subprotocol else ""
    hint = "; /help shows what can be sent" if sys.stdin is not None and sys.stdin.isatty() else ""
    _say(f"connected to {transport.place}{chosen}{hint}")
    sys.exit(_Talk(link, linger).run())


def _transport(url: str, subprotocol: str, headers: tuple[str, ...], auth: Auth | None, insecure: bool) -> Transport:
    from krait_ws.bench.plan import header_of
    from krait_ws.client import Transport

    if "://" not in url:
        raise ConfigError(f"{url!r} is no WebSocket URL: write it like ws://127.0.0.1:8000/echo/live")
    address = "ws" + url[4:] if url.startswith(("http://", "https://")) else url
    try:
        return Transport(
            address,
            headers=dict(header_of(header) for header in headers),
            auth=auth,
            subprotocols=[name for part in subprotocol.split(",") if (name := part.strip())],
            ssl=_unchecked() if insecure and address.startswith("wss:") else None,
            max_message_size=_MAX_MESSAGE,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _auth(basic: str | None, bearer: str | None) -> Auth | None:
    from krait_ws.client import Basic, Bearer

    if basic:
        user, colon, password = basic.partition(":")
        return Basic(user, password if colon else click.prompt("Password", hide_input=True, err=True))
    return Bearer(bearer) if bearer else None


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _Talk:
    """One conversation. A thread receives; the main thread waits for both it and the input."""

    def __init__(self, link: Link, linger: float) -> None:
        self._link = link
        self._linger = linger
        self._came: queue.Queue[Message | None] = queue.Queue(1024)  # None is the end
        self._wake, self._woken = os.pipe()
        self._closed = (1006, "")
        self._closes = False  # we do

    def run(self) -> int:
        """Talks until one of both sides closes. Returns the exit code."""
        receiver = threading.Thread(target=self._receive, daemon=True)
        receiver.start()
        with suppress(KeyboardInterrupt):
            self._talk()
        self._link.close()
        while receiver.is_alive():  # it may wait for room
            self._show_waiting(_SETTLING)
        self._show_waiting(0)
        code, reason = self._closed
        _say(f"closed: {code}{f' {_plain(reason)}' if reason else ''}")
        return int(not self._closes and code not in (1000, 1001))

    def _talk(self) -> None:
        # The beginning of a line; None when the input has ended. Where there is none its descriptor is another file's.
        rest: bytes | None = None if sys.stdin is None else b""
        while True:
            watched = [self._wake] if rest is None else [self._wake, _INPUT]
            ready, _, _ = select.select(watched, [], [], self._linger if rest is None else None)
            if not ready:
                self._closes = True
                return
            if self._wake in ready:
                os.read(self._wake, 4096)
                if not self._show_waiting(0):
                    return
            if _INPUT in ready and rest is not None:
                data = os.read(_INPUT, 65536)
                *lines, rest = (rest + data).split(b"\n")
                if not data:
                    lines, rest = [rest] if rest else [], None
                if any(self._do(line.decode("utf-8", "replace").rstrip("\r")) for line in lines):
                    return

    def _do(self, line: str) -> bool:
        """Does what a line says. Returns whether that is the end."""
        from krait_ws.client import ClientError

        word, _, rest = line.strip().partition(" ")
        try:
            if line.startswith(("//", "@@")):
                self._link.send(line[1:])
            elif word == "/close":
                return self._close(rest)
            elif word == "/ping":
                _say(f"pong after {self._link.ping() * 1000:.1f} ms")
            elif word == "/help":
                _say(_HELP)
            elif line.startswith("/"):
                _say(f"{word} is no command: /help shows them, //… sends a text that begins with /")
            elif line.startswith("@"):
                self._link.send(Path(line[1:].strip()).expanduser().read_bytes())
            else:
                self._link.send(line)
        except (ClientError, TimeoutError, ValueError, RuntimeError) as error:  # RuntimeError: of ~nobody
            _say(_plain(str(error)))
        except OSError as error:
            _say(f"{line[1:].strip()}: {error.strerror}")
        return False

    def _close(self, text: str) -> bool:
        code, _, reason = text.partition(" ")
        if code and not code.isdecimal():
            raise ValueError(f"{code!r} is no close code: write /close 1000 goodbye")
        self._show_waiting(_SETTLING)
        self._link.close(int(code or 1000), reason.strip())
        self._closes = True
        return True

    def _receive(self) -> None:
        from krait_ws.client import ConnectionClosedError

        try:
            while True:
                self._came.put(self._link.recv())
                os.write(self._woken, b"x")
        except ConnectionClosedError as closed:
            self._closed = (closed.code, closed.reason)
            self._came.put(None)
            os.write(self._woken, b"x")

    def _show_waiting(self, patience: float) -> bool:
        """Shows what has come, up to so many seconds of silence. Returns False at the end of the conversation."""
        with suppress(queue.Empty):
            for _ in range(self._came.maxsize):  # a server that never pauses must not keep us
                if not self._show(self._came.get(patience > 0, patience)):
                    return False
        return True

    def _show(self, message: Message | None) -> bool:
        if isinstance(message, str):
            click.echo(f"text {len(message.encode())}: {_plain(message)}")
        elif message is not None:
            more = " …" if len(message) > _SHOWN_BYTES else ""
            click.echo(f"binary {len(message)}: {message[:_SHOWN_BYTES].hex(' ')}{more}")
        return message is not None


def _plain(text: str) -> str:
    """The text in one line: nothing that a server sends reaches the terminal as a control code."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _say(line: str) -> None:
    click.echo(line, err=True)
