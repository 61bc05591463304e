"""The ``krait-ws`` command.

Comes in: arguments, ``KRAIT_*`` variables. Goes out: a running server or a printed table. A mistake of the user is one
line on stderr and exit code 2.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gevent

from krait_ws import __version__
from krait_ws.config import Config, from_environment, options, parse, unknown_variables
from krait_ws.errors import ConfigError, KraitError
from krait_ws.network.server import Server
from krait_ws.routing import Router, is_script
from krait_ws.scripts import Script

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_site_argument = click.argument("site", type=click.Path(path_type=Path), default="sites")


class _Group(click.Group):
    """Says what was wrong in one line, whether click found it or the library."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **{**extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except click.ClickException as error:
            message = error.format_message().replace("\n", " ")
        except KraitError as error:
            message = str(error)
        except click.Abort:
            message = "aborted"
        click.echo(f"krait-ws: {message}", err=True)
        sys.exit(2)


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """WebSocket back ends in plain blocking code."""


def _config_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for every option of ``Config``."""
    for option in reversed(options()):
        command = _config_flag(option)(command)
    return command


def _config_flag(option: dataclasses.Field[Any]) -> Callable[..., Callable[..., None]]:
    flag = option.name.replace("_", "-")
    unit, meaning = option.metadata["unit"], option.metadata["meaning"]
    if unit == "flag":
        return click.option(f"--{flag}/--no-{flag}", option.name, default=None, help=meaning)
    shown = f"[{'|'.join(option.metadata['choices']) or unit}; {option.default or 'none'}]"
    return click.option(f"--{flag}", option.name, metavar=unit.upper(), help=f"{meaning}  {shown}")


@main.command()
@_site_argument
@_config_flags
def serve(site: Path, **flags: Any) -> None:
    """Serve SITE, a folder of pages and route scripts.

    Every flag can also be set in the environment: --max-message-size as KRAIT_MAX_MESSAGE_SIZE.
    """
    config = read_config(flags, os.environ)
    for name in unknown_variables(os.environ):
        click.echo(f"krait-ws: {name} is no setting and does nothing", err=True)
    _keep_freed_memory()
    logging.basicConfig(
        level=logging.DEBUG if config.debug else logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    server = Server(site, config)
    for number in _STOP_SIGNALS:
        gevent.signal_handler(number, _stop, server)
    server.start()
    click.echo(f"krait-ws serves {site} on {server.url} (Ctrl-C ends it)")
    server.serve_forever()
    # Abandoned handlers are daemon threads; nothing of theirs may hold up the exit.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


@main.command()
@_site_argument
def routes(site: Path) -> None:
    """Print every URL of SITE, its file and what answers there."""
    rows = []
    for route in Router(site).routes():
        answers = _describe(route.file, site)
        rows.append((route.url, os.path.relpath(route.file, site.resolve()), answers))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for url, file, answers in rows:
        click.echo(f"{url:<{widths[0]}}  {file:<{widths[1]}}  {answers}")


def read_config(flags: dict[str, Any], environment: Any) -> Config:
    """Flags over environment over defaults.

    Raises:
        ConfigError: One of them has a value that cannot be used; the message names it.
    """
    given = {name: (f"KRAIT_{name.upper()}", text) for name, text in from_environment(environment).items()}
    given |= {name: ("--" + name.replace("_", "-"), value) for name, value in flags.items() if value is not None}
    values: dict[str, Any] = {}
    for name, (source, value) in given.items():
        try:
            values[name] = value if isinstance(value, bool) else parse(name, value)
            Config(**{name: values[name]})
        except ConfigError as error:
            raise ConfigError(f"{source}: {str(error).removeprefix(f'{name}: ')}") from None
    return Config(**values)


def _stop(server: Server) -> None:
    """A signal has come. The second one does not wait for anybody."""
    if server.is_stopping:
        os._exit(1)
    click.echo("krait-ws stops and waits for handlers; once more ends it now", err=True)
    server.request_stop()


def _keep_freed_memory() -> None:
    """Lets glibc keep what large messages have freed. Else it gives each buffer back to the system and takes it anew,
    with a page fault per 4 KiB: 408 µs of CPU for an echo of 1 MiB, 358 with this.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    for option, size in ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, 64 << 20), (_M_TOP_PAD, 4 << 20)):
        mallopt(option, size)


def _describe(file: Path, site: Path) -> str:
    if not is_script(file):
        return "page" if file.suffix == ".html" else "file"
    try:
        script = Script(file, "krait_site")
    except SyntaxError as error:
        return f"broken script: {error.msg} (line {error.lineno})"
    if script.form == "script":
        return "script, runs per request"
    return "function: " + " and ".join(sorted(script.hooks, reverse=True))
