"""`cryptfs completion`."""

from __future__ import annotations

import click

from cryptfs.cli.commands import command
from cryptfs.cli.params import debug_option

_SHELLS = ("bash", "zsh", "fish")


@command()
@click.argument("shell", type=click.Choice(_SHELLS), metavar="SHELL", required=False)
@debug_option
@click.pass_context
def completion(ctx: click.Context, shell: str | None) -> None:
    """Print the script that makes SHELL complete cryptfs commands.

    \b
    bash:  mkdir -p ~/.local/share/bash-completion/completions
           cryptfs completion bash > ~/.local/share/bash-completion/completions/cryptfs
    zsh:   cryptfs completion zsh > "${fpath[1]}/_cryptfs"
    fish:  mkdir -p ~/.config/fish/completions
           cryptfs completion fish > ~/.config/fish/completions/cryptfs.fish
    """
    if shell is None:
        raise click.UsageError(f"name a shell: cryptfs completion {'|'.join(_SHELLS)}", ctx)
    click.echo(script_of(shell))


def script_of(shell: str) -> str:
    """The script for one of the shells above. It asks the command itself, so it fits all versions of it."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    return found(click.Command("cryptfs"), {}, "cryptfs", "_CRYPTFS_COMPLETE").source()
