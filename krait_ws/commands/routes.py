"""``krait-ws routes``: every URL of a site, its file and what answers there. No script is run."""

from __future__ import annotations

import os
from pathlib import Path

import click

from krait_ws.flags import site_argument
from krait_ws.hooks import compile_script
from krait_ws.routing import Router, is_script


@click.command()
@site_argument
def routes(site: Path) -> None:
    """Print every URL of SITE, its file and what answers there."""
    rows = []
    for route in Router(site).routes():
        answers = _describe(route.file)
        rows.append((route.url, os.path.relpath(route.file, site.resolve()), answers))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for url, file, answers in rows:
        click.echo(f"{url:<{widths[0]}}  {file:<{widths[1]}}  {answers}")


def _describe(file: Path) -> str:
    if not is_script(file):
        return "page" if file.suffix == ".html" else "file"
    try:
        _, hooks = compile_script(file)
    except SyntaxError as error:
        return f"broken script: {error.msg} (line {error.lineno})"
    if not hooks:
        return "script, runs per request"
    return "function: " + " and ".join(sorted(hooks, reverse=True))
