"""The round trip of the smallest cell."""

from __future__ import annotations

from bench import Bench, Figure, turns
from start import side

FIGURES = (
    Figure("trip.p50", "round trip of 1, median", "ms", 1.05),
    Figure("trip.p99", "round trip of 1, 99th percentile", "ms", 1.10, by="p99"),
)
CHUNK = 20  # trips of one kernel before it is the other's turn


def measure(bench: Bench) -> None:
    with bench.taking("trip.p50", "trip.p99") as wanted, bench.servers(*_kinds(wanted)) as servers:
        for kind, server in servers.items():
            server.ask("start", name="a", spec=kind)
            server.ask("trips", name="a", count=50)
        for number in bench.rounds("round trips", 100, 10) if wanted else ():
            for kind, server in turns(servers, number):
                found = server.ask("trips", name="a", count=CHUNK)
                for figure in FIGURES:
                    bench.note(figure.name, side(kind), *found)


def _kinds(wanted: bool) -> tuple[str, ...]:
    return ("stock", "isolated") if wanted else ()
