"""`profile`: what can be chosen, what it says, whether a file is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from isolated_python.cli.completion import profiles
from isolated_python.policy import page, sources


@click.group()
def profile() -> None:
    """List, show and check profiles.

    \b
    Examples:
      jupyter isolated profile list
      jupyter isolated profile show shared --json
      jupyter isolated profile check exam.toml
    """


@profile.command("list")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def list_profiles(as_json: bool) -> None:
    """List the profiles that a kernelspec can name here.

    \b
    Example:
      jupyter isolated profile list --json
    """
    found = [
        {"name": name, "description": sources.read(path).description, "file": str(path)}
        for name, path in sources.names().items()
    ]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for one in found:
            click.echo(f"{one['name']:16} {one['description']}")


@profile.command()
@click.argument("name", shell_complete=profiles)
@click.option(
    "--json", "as_json", is_flag=True, help="The values in bytes, seconds and cores, below the site's ceiling."
)
@click.option("--page", "as_page", is_flag=True, help="As a page for the people who use it, in Markdown.")
def show(name: str, as_json: bool, as_page: bool) -> None:
    """Print a profile as it is written, or as it is meant.

    \b
    Examples:
      jupyter isolated profile show standard
      jupyter isolated profile show shared --json
      jupyter isolated profile show exam --page > exam.md
    """
    if as_page:
        click.echo(page.page(name), nl=False)
        return
    resolved = sources.load(name)
    if as_json:
        click.echo(json.dumps(resolved.profile.to_wire(), indent=2))
        return
    click.echo(Path(sources.find(name)).read_text(encoding="utf-8"), nl=False)
    for note in resolved.notes:
        click.echo(f"# {note}")


@profile.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Say whether FILE is a profile that a kernel of this environment can have; otherwise why not, and end with 2.

    \b
    Example:
      jupyter isolated profile check exam.toml
    """
    from isolated_python.engine import interpreters

    interpreters.shown([sys.executable, "-m", "ipykernel_launcher"], sources.read(file))
    click.echo(f"{file} is right")
