"""``krait-ws serve``: serves a site until a signal ends it."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import gevent

from krait_ws.config import unknown_variables
from krait_ws.flags import config_flags, read_config, site_argument
from krait_ws.patching import patch_standard_library

if TYPE_CHECKING:
    from krait_ws.network.server import Server

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@click.command()
@site_argument
@config_flags
def serve(site: Path, **flags: Any) -> None:
    """Serve SITE, a folder of pages and route scripts.

    Every flag can also be set in the environment, --max-message-size as KRAIT_MAX_MESSAGE_SIZE, or in the file that
    --config names, as max_message_size. `krait-ws config` prints what is in force.
    """
    config = read_config(flags, os.environ)
    if config.runs_on == "greenlet":
        patch_standard_library()
    from krait_ws.network.server import Server  # not before the patch

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
