"""Interrupt, restart and shutdown: at once, and cleanly."""

from __future__ import annotations

from bench import Bench, Figure, Server, turns
from start import side, warm_up

FIGURES = (
    Figure("life.interrupt", "interrupt, until the cell's reply", "ms"),
    Figure("life.restart.now", "restart now, until the first reply", "ms", 0.2),
    Figure("life.restart.clean", "restart clean, until the first reply", "ms", 0.35),
    Figure("life.shutdown.now", "shutdown now", "ms", 0.2),
    Figure("life.shutdown.clean", "shutdown clean", "ms", 0.6),
)


def measure(bench: Bench) -> None:
    with bench.taking(*(figure.name for figure in FIGURES)) as wanted:
        if not wanted:
            return
        with bench.servers("stock", "isolated") as servers:
            for kind, server in servers.items():
                warm_up(kind, server)
            for number in bench.rounds("interrupts, restarts, shutdowns", 15, 3):
                for kind, server in turns(servers, number):
                    _live(bench, kind, server)


def _live(bench: Bench, kind: str, server: Server) -> None:
    for way, now in (("now", True), ("clean", False)):
        server.ask("start", name="a", spec=kind)
        if now and bench.wants("life.interrupt"):
            bench.note("life.interrupt", side(kind), server.ask("interrupt", name="a"))
        if bench.wants(f"life.restart.{way}"):
            bench.note(f"life.restart.{way}", side(kind), server.ask("restart", name="a", now=now))
        bench.note(f"life.shutdown.{way}", side(kind), *server.ask("stop", names=["a"], now=now))
