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
    headings = ("profile", "state", "age", "MiB", "CPU", "weight", "tasks", "refused")
    table = Table(whole, *(Column(name, no_wrap=True) for name in headings), "weakened", box=None)
    for one in kernels:
        limits = one.get("limits", {})  # which a server of an older version does not tell
        table.add_row(
            one["kernel"][:12],
            one["profile"],
            one["state"],
            f"{one['seconds']:.0f} s",
            _of(one["memory"], limits.get("memory"), 20),
            f"{one['cpu_seconds']:.1f} s" if one["cpu_seconds"] is not None else "?",
            str(one.get("cpu_weight", "?")),
            _of(one["processes"], limits.get("processes")),
            str(sum(one["refused"].values())),
            "; ".join(one["weakened"]),
        )
    Console().print(table)


def _of(used: int | None, limit: int | None, shift: int = 0) -> str:
    """What is used, and of how much if that is limited; in units of two to the power of `shift`."""
    if used is None:
        return "?"
    return f"{used >> shift}" if limit is None else f"{used >> shift} of {limit >> shift}"
