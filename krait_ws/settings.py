"""What is in force and who said so: the flag wins over the environment, that over the file, that over the default.

Comes in: flags, ``KRAIT_*`` variables and a TOML file. Goes out: a ``Config`` and where each of its values came from.
Every mistake is one line that names the place and the setting.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krait_ws.config import Config, from_environment, options, parse
from krait_ws.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_FLAG = "config"
FILE_VARIABLE = "KRAIT_CONFIG"


@dataclass(frozen=True)
class Settings:
    """The configuration in force.

    Attributes:
        sources: Where the value of a setting came from: ``--port``, ``KRAIT_PORT`` or the file's name. Settings that
            have their default are not in it.
    """

    config: Config
    sources: Mapping[str, str] = field(default_factory=dict)


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Flags over environment over file over defaults. The file is what the flag ``config`` or ``KRAIT_CONFIG`` names;
    without them none is read.

    Args:
        flags: By the names of the settings; ``None`` is a flag that was not given.

    Raises:
        ConfigError: A value cannot be used, or the file cannot be read; the message names flag, variable, or file and
            key.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    file = given.pop(FILE_FLAG, None) or environment.get(FILE_VARIABLE)
    found: dict[str, _Value] = {
        name: _Value(str(file), name, value) for name, value in (_read_file(Path(file)) if file else {}).items()
    }
    found |= {name: _Text(f"KRAIT_{name.upper()}", name, text) for name, text in from_environment(environment).items()}
    found |= {name: _Text("--" + name.replace("_", "-"), name, value) for name, value in given.items()}
    config = Config(**{name: value.checked() for name, value in found.items()})
    return Settings(config, {name: value.source for name, value in found.items()})


@dataclass(frozen=True)
class _Value:
    """A value that a file gives. Sizes may be text, lists may be lists; all else is of its own type."""

    source: str
    name: str
    value: Any

    @property
    def place(self) -> str:
        return f"{self.source}: {self.name}"

    def checked(self) -> Any:
        try:
            return getattr(Config(**{self.name: self.parsed()}), self.name)
        except ConfigError as error:
            raise ConfigError(f"{self.place}: {str(error).removeprefix(f'{self.name}: ')}") from None

    def parsed(self) -> Any:
        (unit,) = (option.metadata["unit"] for option in options() if option.name == self.name)
        if unit == "bytes" and isinstance(self.value, str):
            return parse(self.name, self.value)
        if unit == "list" and isinstance(self.value, list) and all(isinstance(item, str) for item in self.value):
            return ",".join(self.value)
        return self.value


class _Text(_Value):
    """A value that a flag or a variable gives, as text; a flag that is on or off is so already."""

    @property
    def place(self) -> str:
        return self.source

    def parsed(self) -> Any:
        return parse(self.name, self.value) if isinstance(self.value, str) else self.value


def _read_file(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{file}: {error}") from None
    known = [option.name for option in options()]
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, 1)
            hint = f"; is it {near[0]}?" if near else "; krait-ws config prints the settings"
            raise ConfigError(f"{file}: {key}: there is no such setting{hint}")
    return found
