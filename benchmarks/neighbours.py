"""The round trip of one kernel while four others spin, all on the same two cores, beside its own quiet self."""

from __future__ import annotations

from statistics import median

from bench import Bench, Figure, turns
from start import side

FIGURES = (Figure("neighbours.spin", "round trip beside four spinning kernels, quiet = 1", "×", 1.3, by="value"),)
SPINNERS = ["b", "c", "d", "e"]


def measure(bench: Bench) -> None:
    with bench.taking("neighbours.spin") as wanted:
        if not wanted:
            return
        with bench.servers("stock", "isolated") as servers:
            for kind, server in servers.items():
                server.ask("narrow", cores=2)
                for name in ("a", *SPINNERS):
                    server.ask("start", name=name, spec=kind)
                server.ask("trips", name="a", count=30)
            for number in bench.rounds("a busy neighbourhood", 8, 2):
                for kind, server in turns(servers, number):
                    server.ask("settle")
                    quiet = median(server.ask("trips", name="a", count=40))
                    server.ask("spin", names=SPINNERS)
                    busy = median(server.ask("trips", name="a", count=40))
                    server.ask("calm", names=SPINNERS)
                    bench.note("neighbours.spin", side(kind), busy / quiet)
