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
    from isolated_python.engine import interpreters, packages, sight
    from isolated_python.policy import notebooks as reading

    wanted = reading.read(notebooks)
    environment = packages.environment(interpreters.own())
    grant, missing = reading.grants(wanted, {name: one.modules for name, one in environment.packages.items()})
    used = sight.used_if_there(environment, grant)
    if as_json:
        found = {"grant": grant, "missing": missing, "beside": sorted(wanted.here), "unread": [*wanted.unread]}
        click.echo(json.dumps({**found, "used if there": used}, indent=2))
    else:
        click.echo("[modules]\ngrant = [" + "".join(f"\n    {json.dumps(name)}," for name in grant) + "\n]")
        for name, asked in used.items():
            click.echo(f"# some of {name} works only where these are granted, too: {', '.join(asked)}")
        for name in missing:
            click.echo(f"# {name}: not installed here")
        for words in wanted.unread:
            click.echo(f"# not read: {words}")
    sys.exit(1 if missing else 0)
