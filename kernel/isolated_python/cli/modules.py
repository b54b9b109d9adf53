"""`modules`: what notebooks import, as the list that a profile would grant."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("notebooks", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def modules(notebooks: tuple[Path, ...], as_json: bool) -> None:
    """Read NOTEBOOKS and print the list of modules that they need. Nothing of them is run.

    \b
    Examples:
      jupyter isolated modules course/*.ipynb
      jupyter isolated modules exam.ipynb >> profiles/exam.toml

    Exit status: 0, or 1 where a module is not installed here.
    """
    from isolated_python.engine import interpreters, packages
    from isolated_python.policy import notebooks as reading

    wanted = reading.read(notebooks)
    installed = {name: one.modules for name, one in packages.environment(interpreters.own()).packages.items()}
    grant, missing = reading.grants(wanted, installed)
    if as_json:
        found = {"grant": grant, "missing": missing, "beside": sorted(wanted.here), "unread": [*wanted.unread]}
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("[modules]\ngrant = [" + "".join(f"\n    {json.dumps(name)}," for name in grant) + "\n]")
        for name in missing:
            click.echo(f"# {name}: not installed here")
        for words in wanted.unread:
            click.echo(f"# not read: {words}")
    sys.exit(1 if missing else 0)
