"""`list`: the sandboxes of this user's servers."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def list(as_json: bool) -> None:
    """List the sandboxes of your servers: profile, age, memory, CPU, what was weakened or refused.

    \b
    Examples:
      jupyter isolated list
      jupyter isolated list --json | jq '.[].kernel'
    """
    from rich.console import Console
    from rich.table import Column, Table

    from isolated_python.engine import visits

    kernels = visits.kernels()
    if as_json:
        click.echo(json.dumps(kernels, indent=2))
        return
    if not kernels:
        click.echo("no sandbox is running")
        return
    whole = Column("kernel", min_width=12)  # an id that is cut short ends nothing
    headings = ("profile", "state", "age", "memory", "CPU", "weight", "tasks", "refused", "weakened")
    table = Table(whole, *headings, box=None)
    for one in kernels:
        table.add_row(
            one["kernel"][:12],
            one["profile"],
            one["state"],
            f"{one['seconds']:.0f} s",
            f"{one['memory'] >> 20} MiB" if one["memory"] is not None else "?",
            f"{one['cpu_seconds']:.1f} s" if one["cpu_seconds"] is not None else "?",
            str(one.get("cpu_weight", "?")),
            str(one["processes"] or "?"),
            str(sum(one["refused"].values())),
            "; ".join(one["weakened"]),
        )
    Console().print(table)
