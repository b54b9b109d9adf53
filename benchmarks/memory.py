"""What one further idle kernel costs in memory, everything included; and what the relay costs."""

from __future__ import annotations

from bench import IMPORTS, Bench, Figure, Server
from start import side, warm_up

FIGURES = (
    Figure("memory.10", "PSS per further idle kernel, from 1 to 10", "MB", 0.35),
    Figure("memory.40", "PSS per further idle kernel, from 10 to 40", "MB", 0.35, slow=True),
    Figure("memory.science", "the same with the scientific stack imported, from 1 to 10", "MB", 0.17),
    Figure("memory.relay", "memory of the relay with 50 kernels", "MB", 20, by="value"),
    Figure("memory.message", "CPU of the relay per message, 50 kernels at once", "µs", 10, by="value"),
    Figure("memory.alone", "the same from one kernel, that says one each millisecond", "µs", by="value"),
    Figure(
        "memory.bare",
        "CPU of a loop that reads nothing, for the same messages",
        "µs",
        by="value",
        beneath=("memory.message",),
    ),
)
SPECS = (("isolated", "1", "memory.10", "memory.40"), ("isolated-science", IMPORTS, "memory.science", ""))
STREAM = "from IPython.display import display\nfor i in range({}): display(i)"
STEADY = "import time\nfrom IPython.display import display\nfor i in range({}): display(i); time.sleep(0.001)"


def measure(bench: Bench) -> None:
    for spec, code, to_10, to_40 in SPECS:
        names = [name for name in (to_10, to_40) if name]
        with bench.taking(*names) as wanted:
            for _ in bench.rounds("memory", 3, 1) if wanted else ():
                for kind in ("stock", spec):
                    with bench.servers(kind) as servers:
                        grow(bench, kind, servers[kind], code, to_10, to_40)
    with bench.taking("memory.relay", "memory.message", "memory.alone", "memory.bare") as wanted:
        for _ in bench.rounds("the relay with 50 kernels", 3, 1) if wanted else ():
            with bench.servers("isolated") as servers:
                _relay(bench, servers["isolated"])


def grow(bench: Bench, kind: str, server: Server, code: str, to_10: str, to_40: str) -> None:
    """Start kernels, and take the difference quotient: what is there once for all of them falls out."""
    warm_up(kind, server, code)
    count, before = 0, 0.0
    for name, goal in (("", 1), (to_10, 10), (to_40, 40)):
        if goal > 1 and not bench.wants(name):
            continue
        for number in range(count, goal):
            server.ask("start", name=str(number), spec=kind, code=code)
        server.ask("settle")
        held = server.ask("pss")
        if name:
            bench.note(name, side(kind), (held - before) / (goal - count))
        count, before = goal, held


def _relay(bench: Bench, server: Server) -> None:
    names = [str(number) for number in range(50)]
    for name in names:
        server.ask("start", name=name, spec="isolated")
    server.ask("settle")
    bench.note("memory.relay", "isolated", server.ask("relay")["mb"])
    code = STREAM.format(400)  # fewer are over before the relay begins to rest
    before = server.ask("relay")["cpu"]
    heard = server.ask("stream", names=names, code=code)["messages"]
    spent = server.ask("relay")["cpu"] - before
    bench.note("memory.message", "isolated", spent / (heard + 2 * len(names)))  # the requests and the replies
    server.ask("between", names=["0"])
    before = server.ask("relay")["cpu"], server.ask("bare")
    heard = server.ask("stream", names=["0"], code=STEADY.format(500 if bench.quick else 2000))["messages"]
    bench.note("memory.alone", "isolated", (server.ask("relay")["cpu"] - before[0]) / heard)
    bench.note("memory.bare", "isolated", (server.ask("bare") - before[1]) / heard)
