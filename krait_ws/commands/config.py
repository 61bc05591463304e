"""``krait-ws config``: what is in force, and where each value came from."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import click

from krait_ws.config import options
from krait_ws.flags import config_flags
from krait_ws.settings import read_settings


@click.command()
@config_flags
def config(**flags: Any) -> None:
    """Print every setting in force and where it came from: default, file, environment or flag.

    What is printed is itself a file for --config.
    """
    settings = read_settings(flags, os.environ)
    rows = []
    for option in options():
        value = getattr(settings.config, option.name)
        hides = option.metadata["unit"] == "secret" and value
        shown = (
            f"# {option.name} is set, not shown"
            if hides
            else f"{option.name} = {'inf' if value == math.inf else json.dumps(value, ensure_ascii=False)}"
        )
        rows.append((shown, settings.sources.get(option.name, "default")))
    width = max(len(shown) for shown, _ in rows)
    for shown, source in rows:
        click.echo(f"{shown:<{width}}  # {source}")
