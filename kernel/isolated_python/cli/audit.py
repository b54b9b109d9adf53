"""`audit`: what happened to your kernels, and what they tried."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import click

FIRST = ("version", "time", "event", "kernel", "supervisor", "uid")  # shown before the rest, or not at all


@click.command()
@click.option("--kernel", default="", metavar="ID", help="Of kernels whose id begins so.")
@click.option("--event", default="", metavar="NAME", help="Of one event, such as call-refused.")
@click.option("--last", default=20, show_default=True, type=click.IntRange(min=0), help="How many records; 0: all.")
@click.option("--follow", is_flag=True, help="Go on with each record as it is written, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as it was written.")
def audit(kernel: str, event: str, last: int, follow: bool, as_json: bool) -> None:
    """Show what the supervisors of your servers have written: starts, ends, limits, refusals.

    \b
    Examples:
      jupyter isolated audit --kernel 3f2a
      jupyter isolated audit --event call-refused --json | jq .call
      jupyter isolated audit --follow
    """
    from isolated_python.audit.read import Reader
    from isolated_python.engine import places
    from isolated_python.linux.inotify import Watch

    path = places.audit_file()

    def meant(record: dict[str, Any]) -> bool:
        return str(record.get("kernel", "")).startswith(kernel) and event in ("", record["event"])

    def show(records: Iterator[dict[str, Any]]) -> None:
        for record in records:
            if meant(record):
                click.echo(json.dumps(record) if as_json else line(record))

    reader = Reader(path)
    watch = None
    if follow:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        watch = Watch(os.path.dirname(path))
    found = deque(filter(meant, _all(reader)), maxlen=last or None)
    show(iter(found))
    if not found and not follow:
        click.echo(f"there is no such record in {path}", err=True)
    try:
        while watch is not None:
            watch.wait()
            show(reader.newer())
    except KeyboardInterrupt:  # that is how one stops following
        return
    finally:
        reader.close()


def _all(reader: Any) -> Iterator[dict[str, Any]]:
    yield from reader.older()
    yield from reader.newer()


def line(record: dict[str, Any]) -> str:
    """A record for a person: when, what, which kernel, and the rest as it is called in the schema."""
    rest = {name: value for name, value in record.items() if name not in FIRST and value not in ("", [], {}, None)}
    host = record.get("host")
    if record["event"] == "supervisor-started" and isinstance(host, dict):
        rest = {name: host[name] for name in ("release", "root", "cgroup", "landlock_abi") if name in host}
    words = "  ".join(f"{_plain(name)} {_plain(value)}" for name, value in rest.items())
    which = record.get("kernel", f"supervisor {record.get('supervisor')}")
    return f"{_plain(record.get('time', ''))[:19]}Z  {_plain(record['event']):18} {_plain(which):.12}  {words}".rstrip()


def _plain(value: Any) -> str:
    """What a kernel has caused to be written must not move the cursor of whoever reads it."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
