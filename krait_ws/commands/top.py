"""``krait-ws top``: what the dashboard of a server shows, in the terminal."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import click
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

_TIMEOUT = 10.0  # seconds that the server has to answer
_CLEAR, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_HINTS = {
    401: "the server wants its token: give it in KRAIT_DASHBOARD_TOKEN",
    403: "the server shows its dashboard to its own machine only: serve with a dashboard token",
    404: "there is no dashboard: serve with --dashboard",
}

View = dict[str, Any]


@click.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--token", envvar="KRAIT_DASHBOARD_TOKEN", metavar="SECRET", help="The server's dashboard token.")
@click.option("--once", is_flag=True, help="Print one look and end; for scripts.")
def top(url: str, token: str | None, once: bool) -> None:
    """Show what the server at URL does, once a second, until Ctrl-C.

    The server must be served with --dashboard. Give the token in the environment rather than as a flag, which everybody
    on the machine can see.
    """
    is_terminal = sys.stdout.isatty() and not once
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with suppress(KeyboardInterrupt):
        try:
            with connect(live_url(url), additional_headers=headers, open_timeout=_TIMEOUT) as connection:
                for view in _views(lambda: connection.recv(_TIMEOUT)):
                    _show(url, view, is_terminal=is_terminal)
                    if once:
                        return
        except InvalidStatus as error:
            status = error.response.status_code
            raise click.ClickException(_HINTS.get(status, f"{url} refuses with {status}")) from None
        except ConnectionClosed as closed:
            reason = "" if closed.rcvd is None else f" ({closed.rcvd.code} {closed.rcvd.reason})"
            raise click.ClickException(f"{url} closed the connection{reason}") from None
        except BrokenPipeError:
            raise  # of the output
        except (OSError, WebSocketException, ValueError) as error:  # TimeoutError is an OSError
            raise click.ClickException(f"{url}: {error or type(error).__name__}") from None


def live_url(url: str) -> str:
    """The WebSocket of the dashboard of a server, named by its address, its URL or that of its dashboard.

    Raises:
        ValueError: It is no such URL.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.hostname or parts.username is not None:
        raise ValueError("a server is named like http://127.0.0.1:8000")
    path = parts.path.partition("/_krait")[0].rstrip("/")
    return f"{schemes[parts.scheme]}://{parts.netloc}{path}/_krait/live"


def _views(receive: Callable[[], str | bytes]) -> Iterator[View]:
    """What comes; without a first view that cannot tell rates yet."""
    view = json.loads(receive())
    if view["rates"]:
        yield view
    while True:
        yield json.loads(receive())


def _show(url: str, view: View, *, is_terminal: bool) -> None:
    lines = [f"krait-ws {url}  {time.strftime('%H:%M:%S')}", *render(view)]
    if not is_terminal:
        click.echo("\n".join(lines) + "\n")
        return
    width, height = shutil.get_terminal_size()
    shown = (line[: width - 1] + _END_OF_LINE for line in lines[: height - 1])
    click.echo(_CLEAR + "\n".join(shown) + _END_OF_SCREEN, nl=False)


def render(view: View) -> list[str]:
    """A view as lines of text. Whatever comes from clients or controllers can do nothing to a terminal."""
    numbers = {name: {tuple(row[:-1]): row[-1] for row in rows} for name, rows in view["numbers"].items()}
    rates = [sum(column) for column in zip(*view["rates"].values(), strict=True)] or [0.0] * 4
    delay = view["delay"]
    lines = [
        f"workers {_total(numbers, 'krait_workers')}   threads {_total(numbers, 'krait_threads')}   "
        f"connections {_total(numbers, 'krait_connections')}   "
        f"in {_rate(rates[0])}/s {_size(rates[2])}/s   out {_rate(rates[1])}/s {_size(rates[3])}/s",
        f"loop delay p50 {_delay(delay['p50'])} p99 {_delay(delay['p99'])} max {_delay(delay['max'])}   "
        f"waiting to be sent {_size(_total(numbers, 'krait_mailbox_out_bytes'))}   "
        f"stuck handlers {_total(numbers, 'krait_handlers_stuck')}",
        "",
        *_routes(view, numbers),
    ]
    for title, rows in (("SLOWEST CONSUMERS", view["slowest"]), ("BUSIEST", view["busiest"])):
        if rows:
            head = (title, "ROUTE", "CLIENT", "IN", "OUT", "WAITING", "BLOCKED", "DROPPED")
            lines += ["", *_table(head, [_connection(row) for row in rows], words=3)]
    for row in view["stuck"]:
        lines += ["", _printable(f"STUCK {row['id']}  {row['controller']}  {row['route']}  worker {row['worker']}")]
        lines += [_printable(line) for stack in row["stacks"] for line in stack.splitlines()]
    ends = [(code, route, count) for (route, code), count in numbers.get("krait_connections_closed", {}).items()]
    if ends:
        lines += ["", *_table(("CLOSED", "ROUTE", "CONNECTIONS"), sorted(ends), words=2)]
    refusals = [(reason, count) for (reason,), count in numbers.get("krait_handshakes_refused", {}).items()]
    if refusals:
        lines += ["", *_table(("REFUSED", "HANDSHAKES"), sorted(refusals))]
    return lines


def _routes(view: View, numbers: dict[str, dict[tuple[str, ...], float]]) -> list[str]:
    def of(name: str, *labels: str) -> float:
        return numbers.get(name, {}).get(labels, 0)

    routes = sorted(
        (route for (route,) in numbers.get("krait_connections_opened", {})),
        key=lambda route: (-of("krait_connections", route), route),
    )
    rows = []
    for route in routes:
        rate_in, rate_out, *_ = view["rates"].get(route, (0.0, 0.0))
        rows.append(
            (
                route,
                of("krait_connections", route),
                _rate(rate_in),
                _rate(rate_out),
                _size(of("krait_mailbox_out_bytes", route)),
                of("krait_pushes_blocked", route),
                of("krait_pushes_dropped", route),
            )
        )
    return _table(("ROUTE", "OPEN", "IN/S", "OUT/S", "WAITING", "BLOCKED", "DROPPED"), rows)


def _connection(row: dict[str, Any]) -> Sequence[Any]:
    named = [row[name] for name in ("id", "route", "address", "messages_in", "messages_out")]
    return [*named, _size(row["out_bytes_waiting"]), row["blocked"], row["dropped"]]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], words: int = 1) -> list[str]:
    """Columns as wide as they need; all but the first ``words`` are numbers, to the right."""
    lines = [head, *([_printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _total(numbers: dict[str, dict[tuple[str, ...], float]], name: str) -> int:
    return int(sum(numbers.get(name, {}).values()))


def _rate(value: float) -> str:
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _delay(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
