"""What commands share: the SITE argument, a flag for every setting, and what flags and environment say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from krait_ws.config import Config, from_environment, options, parse
from krait_ws.errors import ConfigError

site_argument = click.argument("site", type=click.Path(path_type=Path), default="sites")


def config_flags(command: Callable[..., None]) -> Callable[..., None]:
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


def read_config(flags: dict[str, Any], environment: Mapping[str, str]) -> Config:
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
