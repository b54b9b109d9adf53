"""What would be left to pay if isolation cost nothing: the least that a figure could be here."""

from __future__ import annotations

import memory
from bench import Bench, Figure, turns
from start import side, warm_up
from work import BEFORE, CELL, LINES

FIGURES = (
    Figure("floor.warm", "first reply of a fork that has imported all, no sandbox, no relay", "ms"),
    Figure("floor.pool", "first reply of a stock kernel that runs already, and has run a cell", "ms"),
    Figure("floor.memory", "PSS per further fork that has imported all, no sandbox, from 1 to 10", "MB"),
    Figure("floor.open", "open and close in a stock kernel with Landlock and nothing else", "ms"),
)
STARTS = {"floor.warm": "forked", "floor.pool": "waiting"}
LANDLOCK = """
from isolated_python.layers import landlock
from isolated_python.linux.landlock import abi
landlock.RestrictFiles(landlock.READABLE, (os.getcwd(), *landlock.WRITABLE), landlock.TERMINALS, abi()).execute({})
"""


def measure(bench: Bench) -> None:
    with bench.taking(*STARTS) as wanted:
        if wanted:
            _starts(bench)
    with bench.taking("floor.memory") as wanted:
        for _ in bench.rounds("memory of a fork", 3, 1) if wanted else ():
            for kind in ("stock", "forked"):
                with bench.servers(kind) as servers:
                    memory.grow(bench, kind, servers[kind], "1", "floor.memory", "")
    with bench.taking("floor.open") as wanted:
        if wanted:
            _open(bench)


def _starts(bench: Bench) -> None:
    with bench.servers("stock", *STARTS.values()) as servers:
        for kind, server in servers.items():
            warm_up(kind, server)
        for number in bench.rounds("starts without a sandbox", 15, 3):
            for kind, server in turns(servers, number):
                took = server.ask("start", name="a", spec=kind)
                for name, spec in STARTS.items():
                    if kind in ("stock", spec):
                        bench.note(name, side(kind), took)
                server.ask("stop", names=["a"])
                server.ask("settle")


def _open(bench: Bench) -> None:
    with bench.servers("stock") as servers:
        server = servers["stock"]
        for name, before in (("stock", BEFORE), ("isolated", BEFORE + LANDLOCK)):
            server.ask("start", name=name, spec="stock", code=before)
        server.ask("settle")
        line, times = LINES["work.open"]
        for number in bench.rounds("open and close", 40, 5):
            for name, _ in turns({"stock": server, "isolated": server}, number):
                bench.note("floor.open", name, server.ask("inside", name=name, code=CELL.format(times, line)))
