"""``krait-ws serve``: serves a site until a signal ends it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from krait_ws import log_output
from krait_ws.config import Config, unknown_variables
from krait_ws.flags import config_flags, read_config, site_argument
from krait_ws.patching import patch_standard_library
from krait_ws.tuning import tune_process


@click.command()
@site_argument
@config_flags
def serve(site: Path, **flags: Any) -> None:
    """Serve SITE, a folder of pages and route scripts.

    Every flag can also be set in the environment, --max-message-size as KRAIT_MAX_MESSAGE_SIZE, or in the file that
    --config names, as max_message_size. `krait-ws config` prints what is in force.
    """
    config = read_config(flags, os.environ)
    for name in unknown_variables(os.environ):
        click.echo(f"krait-ws: {name} is no setting and does nothing", err=True)
    tune_process()
    if config.workers == 1 and config.runs_on == "greenlet":
        patch_standard_library()  # first of all: it would give the log's writer a lock that the loop cannot wait for
    log_output.configure(config)
    read = partial(read_config, flags, os.environ)
    if config.workers > 1:
        _serve_with_workers(site, config, read)
    from krait_ws.serving import Serving  # not before the patch

    serving = Serving(site, config, read)
    serving.start()
    _announce(site, serving.server.url)
    serving.wait()
    # Abandoned handlers are daemon threads; nothing of theirs may hold up the exit.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _serve_with_workers(site: Path, config: Config, read: Callable[[], Config]) -> NoReturn:
    from krait_ws import gunicorn  # it costs a moment, and is there on Unix only

    gunicorn.run(site, config, read, partial(_announce, site))


def _announce(site: Path, url: str) -> None:
    click.echo(f"krait-ws serves {site} on {url} (Ctrl-C ends it)")
    sys.stdout.flush()
