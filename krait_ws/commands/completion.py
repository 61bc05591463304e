"""``krait-ws completion``: what a shell needs to complete commands and flags."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the code that makes SHELL complete krait-ws.

    bash: eval "$(krait-ws completion bash)" in ~/.bashrc. zsh: the same with zsh in ~/.zshrc. fish: krait-ws
    completion fish > ~/.config/fish/completions/krait-ws.fish
    """
    completes = get_completion_class(shell)
    assert completes is not None
    click.echo(completes(context.find_root().command, {}, "krait-ws", "_KRAIT_WS_COMPLETE").source())
