"""What commands share: the SITE argument and a flag for every setting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from krait_ws.config import Config, options
from krait_ws.settings import FILE_FLAG, read_settings

DAY = 86_400
"""Seconds that a command waits or works, at most."""


class Number(click.FloatRange):
    """A number between bounds; ``nan`` is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


site_argument = click.argument("site", type=click.Path(path_type=Path), default="sites")


def config_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for every option of ``Config``, and ``--config`` for a file of them."""
    for option in reversed(options()):
        command = _config_flag(option)(command)
    return click.option("--config", FILE_FLAG, metavar="FILE", help="A TOML file of settings.  [file; none]")(command)


def _config_flag(option: dataclasses.Field[Any]) -> Callable[..., Callable[..., None]]:
    flag = option.name.replace("_", "-")
    unit, meaning = option.metadata["unit"], option.metadata["meaning"]
    if unit == "flag":
        return click.option(f"--{flag}/--no-{flag}", option.name, default=None, help=meaning)
    choices = option.metadata["choices"]
    shown = f"[{'|'.join(choices) or unit}; {option.default or 'none'}]"
    return click.option(
        f"--{flag}",
        option.name,
        metavar=unit.upper(),
        help=f"{meaning}  {shown}",
        shell_complete=lambda context, parameter, begun: [choice for choice in choices if choice.startswith(begun)],
    )


def read_config(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Config:
    """The configuration in force, as ``read_settings`` has it."""
    return read_settings(flags, environment).config
