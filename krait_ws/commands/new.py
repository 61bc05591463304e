"""``krait-ws new``: a site to begin with."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from krait_ws.errors import SiteError

_TEMPLATE = Path(__file__).parents[1] / "template"
_ENDING = ".txt"  # of the templates: they are no modules of krait-ws


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
def new(path: Path) -> None:
    """Write a page, a route script, a controller and its test into PATH, a new or empty folder.

    The folder is a site of its own, or a part of one: sites/room is at /room/.
    """
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise SiteError(f"{path} is there already: name a folder that is new or empty")
        for file in _write(_TEMPLATE, path):
            click.echo(f"wrote {file}")
    except OSError as error:
        raise SiteError(f"{error.filename or path}: {error.strerror}") from None
    name = shlex.quote(str(path))
    click.echo(
        f"\nkrait-ws serve {name}     serves it on http://127.0.0.1:8000\n"
        f"python -m pytest {name}  runs its test, with pytest installed"
    )


def _write(template: Path, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for entry in sorted(template.iterdir(), key=lambda entry: (entry.is_dir(), entry.name)):
        if entry.is_dir():
            written += _write(entry, folder / entry.name)
        elif entry.name.endswith(_ENDING):
            file = folder / entry.name.removesuffix(_ENDING)
            file.write_text(entry.read_text(encoding="utf-8"), encoding="utf-8")
            written.append(file)
    return written
