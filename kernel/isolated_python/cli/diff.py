"""`diff`: what kernels have changed in copy-on-write workspaces, where their profile keeps it."""

from __future__ import annotations

import shutil
import time

import click


@click.command()
@click.argument("id", default="")
@click.option(
    "--output", metavar="FILE", help="Write the changes as a tar archive, a layer as container images know it."
)
@click.option("--discard", is_flag=True, help="Remove them.")
def diff(id: str, output: str | None, discard: bool) -> None:
    """Show what the kernel whose id begins with ID has changed; without ID, list whose changes are kept.

    A profile keeps them by `workspace = "copy-on-write"` and `changes = "keep"`. Files are compared with the workspace
    as it is now. Nothing is ever applied.

    \b
    Examples:
      jupyter isolated diff
      jupyter isolated diff 3f2a
      jupyter isolated diff 3f2a --output changes.tar
      jupyter isolated diff 3f2a --discard
    """
    from isolated_python.engine import kept
    from isolated_python.errors import IsolatedPythonError

    if not id:
        if output or discard:
            raise click.UsageError("whose changes? The ID is missing")
        for one in kept.found():
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.when))
            click.echo(f"{one.id}  {when}  {one.profile}  {kept.plain(one.workspace)}")
        return
    one = kept.find(id)
    try:
        if output:
            shutil.copyfile(one.archive, output)
        elif not discard:
            for line in kept.difference(one):
                click.echo(line)
    except OSError as error:
        raise IsolatedPythonError(f"the changes of {one.id} cannot be shown: {error}") from error
    if discard:
        kept.discard(one)
