"""`kill`: the end of a sandbox, whatever goes on in it."""

from __future__ import annotations

import sys

import click

from isolated_python.cli.completion import kernels


@click.command()
@click.argument("id", shell_complete=kernels)
def kill(id: str) -> None:
    """End the sandboxes whose id begins with ID (see `list`). Exit status 1 when there is none.

    \b
    Example:
      jupyter isolated kill 3f2a
    """
    from isolated_python.engine import visits

    if not id:  # of a script whose variable is not set: that does not mean everything
        raise click.UsageError("the ID is empty")
    ended = visits.kill(id)
    click.echo(f"{ended} ended")
    sys.exit(0 if ended else 1)
