"""`kill`: the end of a sandbox, whatever goes on in it."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("id")
def kill(id: str) -> None:
    """End the sandboxes whose id begins with ID (see `list`). Exit status 1 when there is none.

    \b
    Example:
      jupyter isolated kill 3f2a
    """
    from isolated_python.engine import visits

    ended = visits.kill(id)
    click.echo(f"{ended} ended")
    sys.exit(0 if ended else 1)
