"""``krait-ws bench``: loads a WebSocket URL and says what came of it."""

from __future__ import annotations

import json
import ssl
import sys

import click

from krait_ws.bench.load import Load
from krait_ws.bench.plan import Plan, header_of, target_of
from krait_ws.flags import DAY, Number


@click.command()
@click.argument("url")
@click.option("--connections", "-c", type=click.IntRange(1, 100_000), default=100, show_default=True, metavar="N")
@click.option(
    "--in-flight", "-f", type=click.IntRange(1, 10_000), default=1, show_default=True, metavar="N",
    help="Messages of a connection that are on their way at once.",
)  # fmt: skip
@click.option(
    "--size", "-s", type=click.IntRange(0, 16 << 20), default=32, show_default=True, metavar="BYTES",
    help="Payload of a message.",
)  # fmt: skip
@click.option(
    "--seconds", "-d", type=Number(0.1, DAY), default=5.0, show_default=True,
    help="Time to measure, once all are connected.",
)  # fmt: skip
@click.option("--ramp", type=Number(0, DAY), default=0.0, help="Seconds over which the connections are opened.")
@click.option(
    "--rate", type=Number(0, 1e6), default=0.0,
    help="Messages a second in all, on a fixed schedule: latency counts from when a message was due.",
)  # fmt: skip
@click.option("--push", is_flag=True, help="Only receive: count what the server sends.")
@click.option("--hello", default="", metavar="TEXT", help="Send this once after connecting, with --push to subscribe.")
@click.option("--binary/--text", default=False, help="Binary messages.  [text]")
@click.option("--subprotocol", "-p", default="", metavar="NAMES", help="Offered subprotocols, with commas between.")
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the handshakes.")
@click.option("--insecure", is_flag=True, help="Do not check the certificate of a wss server.")
@click.option(
    "--timeout", type=Number(0.1, DAY), default=10.0, show_default=True,
    help="Seconds that a handshake, an echo and a close may take.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench(
    url: str,
    connections: int,
    in_flight: int,
    size: int,
    seconds: float,
    ramp: float,
    rate: float,
    push: bool,
    hello: str,
    binary: bool,
    subprotocol: str,
    headers: tuple[str, ...],
    insecure: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Load URL, which echoes or, with --push, sends on its own.

    Every echo must be what was sent, in its order. Exit code 1 when anything failed. Ctrl-C ends it early, with the
    figures so far.
    """
    if push and rate:
        raise click.UsageError("--push only receives: --rate has nothing to send")
    target = target_of(url)
    plan = Plan(
        target, connections, in_flight, size, seconds, ramp, rate, push, binary, hello, subprotocol,
        tuple(header_of(header) for header in headers), timeout, _tls(insecure) if target.is_secure else None,
    )  # fmt: skip
    result = Load(plan).run(_show if sys.stderr.isatty() else _ignore)
    _show("")
    click.echo(json.dumps(result.as_json(), indent=2, ensure_ascii=False) if as_json else result.as_text())
    sys.exit(result.has_failed)


def _tls(insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _show(line: str) -> None:
    """Writes over the line before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


def _ignore(line: str) -> None:
    """Nobody looks."""
