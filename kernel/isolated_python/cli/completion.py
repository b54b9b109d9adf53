"""`completion`: what a shell needs to complete our commands, options, profiles and ids at the Tab key."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, get_completion_class

PROGRAM = "jupyter-isolated"  # a shell completes the words of one program, and `jupyter` is not ours
VARIABLE = "_JUPYTER_ISOLATED_COMPLETE"


def profiles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from isolated_python.policy import sources

    return [CompletionItem(name) for name in sorted(sources.names()) if name.startswith(incomplete)]


def kernels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from isolated_python.engine import visits

    found = [(one["kernel"], one["profile"]) for one in visits.kernels()]
    return [CompletionItem(name, help=profile) for name, profile in found if name.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what SHELL must read to complete `jupyter-isolated …`.

    \b
    Examples:
      eval "$(jupyter isolated completion bash)"                         (in ~/.bashrc)
      eval "$(jupyter isolated completion zsh)"                          (in ~/.zshrc)
      jupyter isolated completion fish > ~/.config/fish/completions/jupyter-isolated.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source())
