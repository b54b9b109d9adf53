"""
The command line: `jupyter isolated …`, one module a command, loaded when it is called.

Runs:     in a terminal
Trusts:   the person at it
Imports:  errors, record, entry, policy, audit, engine, layers, linux, guard, doors
"""

from __future__ import annotations

import importlib
import sys

import click

from isolated_python import __version__
from isolated_python.cli.completion import VARIABLE
from isolated_python.entry import check
from isolated_python.errors import IsolatedPythonError

COMMANDS = {
    "run": "Run a notebook in a sandbox and show what came out.",
    "doctor": "Say which layers this machine can give, and what repairs the rest.",
    "explain": "Print, step by step, what a profile does to a kernel on this machine.",
    "list": "List the sandboxes of your servers.",
    "audit": "Show what happened to your kernels, and what they tried.",
    "kill": "End sandboxes by the beginning of their id.",
    "diff": "Show what kernels have changed in copy-on-write workspaces.",
    "profile": "List, show and check profiles.",
    "service": "Serve kernels to the unprivileged servers of this machine.",
    "modules": "Print the list of modules that notebooks need.",
    "install": "Write a kernelspec for a profile.",
    "completion": "Print what a shell needs to complete these commands.",
}


class Lazy(click.Group):
    """Imports a command's module only when that command is meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"isolated_python.cli.{cmd_name}")
        return getattr(module, cmd_name)  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jupyter isolated")
def cli() -> None:
    """Notebook kernels that live in a box of their own.

    \b
    Examples:
      jupyter isolated run notebook.ipynb
      jupyter isolated doctor
      jupyter isolated explain --profile shared

    Exit status: 0 done, 1 the answer is no (a cell failed, a layer is missing), 2 the question was wrong.
    """


def main() -> None:
    try:
        check()
        cli(prog_name="jupyter isolated", complete_var=VARIABLE)
    except IsolatedPythonError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
