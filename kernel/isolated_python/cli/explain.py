"""`explain`: the plan of a profile on this machine, step by step."""

from __future__ import annotations

import json
import sys

import click

from isolated_python.cli.completion import profiles


@click.command()
@click.option(
    "--profile", default="standard", show_default=True, shell_complete=profiles, help="The profile to explain."
)
@click.option("--json", "as_json", is_flag=True, help="The steps as they travel into the sandbox.")
def explain(profile: str, as_json: bool) -> None:
    """Print, step by step, what a profile does to a kernel on this machine.

    \b
    Examples:
      jupyter isolated explain
      jupyter isolated explain --profile shared --json
    """
    from isolated_python.engine import interpreters, places
    from isolated_python.guard.magic import strength
    from isolated_python.layers import seccomp
    from isolated_python.layers.catalogue import plan
    from isolated_python.layers.filters import kept
    from isolated_python.linux import host, namespaces
    from isolated_python.policy import sources

    resolved = sources.load(profile)
    facts = host.probe()
    filter = (
        None if facts.lacks("seccomp")[0] else kept.cached(seccomp.table_of(resolved.profile), places.cache_folder())
    )
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    trees, view = interpreters.shown(command, resolved.profile)
    hidden = view.hidden if view is not None else ()
    made = plan(resolved.profile, facts, trees, filter, hidden)
    parts = {
        "The zygote, once, before it imports anything, will": made.view,
        "Process 1 of the sandbox will": made.init,
        "The kernel will": [*made.kernel, *made.check],
    }
    born = [name for name, flag in namespaces.FLAGS.items() if made.namespaces & flag]
    modules = strength(resolved.profile.to_wire(), len(view.granted) if view is not None else 0)
    if as_json:
        wire = {words: [step.to_wire() for step in steps] for words, steps in parts.items()}
        told = {"profile": profile, "namespaces": born, "modules": modules, "steps": wire, "weakened": made.notes}
        click.echo(json.dumps(told, indent=2))
        return
    group = "" if resolved.profile.layers.cgroup == "off" else "a cgroup of its own, and in "
    click.echo(f"A kernel of the profile {profile} is born in {group}new namespaces: {', '.join(born)}.")
    click.echo(f"Modules that a cell may import: {modules}.")
    for words, steps in parts.items():
        click.echo(f"\n{words}")
        for step in steps:
            click.echo(f"  {type(step).__name__:20} {step.describe()}")
    for note in (*resolved.notes, *(f"weakened: {note}" for note in made.notes)):
        click.echo(f"\n{note}")
