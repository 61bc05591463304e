"""The ``krait-ws`` command: finds the commands and says what was wrong.

Comes in: the arguments. Goes out: the call of a command of ``krait_ws.commands``, imported when it is called. A mistake
of the user is one line on stderr and exit code 2; Ctrl-C, where a command does not end by it, is exit code 130.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

import click

from krait_ws import commands
from krait_ws.errors import KraitError
from krait_ws.logs import escaped
from krait_ws.version import __version__

COMPLETE_VARIABLE = "_KRAIT_WS_COMPLETE"
"""By which a shell asks for completions; ``krait-ws completion`` writes it."""


class _Commands(click.Group):
    """The modules of ``krait_ws.commands``."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(context):
            return None
        command: click.Command = getattr(importlib.import_module(f"{commands.__name__}.{name}"), name)
        return command

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs the command; a mistake is one line, whether click found it or the library."""
        try:
            return super().main(*args, **{**extra, "standalone_mode": False, "complete_var": COMPLETE_VARIABLE})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except click.ClickException as error:
            message = error.format_message().replace("\n", " ")
        except KraitError as error:
            message = str(error)
        except click.Abort:
            click.echo("krait-ws: aborted", err=True)  # Ctrl-C, or no answer to a question
            sys.exit(130)
        # It may hold what a server said.
        click.echo(f"krait-ws: {escaped(message)}", err=True)
        sys.exit(2)


@click.group(cls=_Commands)
@click.version_option(__version__)
def main() -> None:
    """WebSocket back ends in plain blocking code."""
