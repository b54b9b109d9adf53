"""What a kernel says: prints, displays, a flood of small messages, one large buffer; until a client has heard it."""

from __future__ import annotations

from bench import Bench, Figure, turns
from start import side

FIGURES = (
    Figure("iopub.prints", "100k prints", "ms", 1.05),
    Figure("iopub.displays", "3,000 displays", "ms", 1.10),
    Figure("iopub.buffer", "100 MB buffer", "ms", 1.12),
    Figure("iopub.small", "20k small messages, until the last that came", "ms"),
    Figure("iopub.arrived", "how many of these 20k came", "messages"),
)

SEND = "kernel = get_ipython().kernel\nsend = lambda **more: kernel.send_response(kernel.iopub_socket, "
SEND += "'comm_msg', {'comm_id': 'x', 'data': {}}, **more)"

# Figure, what is run once before, the cell, rounds in full and quick.
CELLS = (
    ("iopub.prints", "", "for i in range(100_000): print(i)", 10, 2),
    ("iopub.displays", "from IPython.display import display", "for i in range(3_000): display(i)", 10, 2),
    ("iopub.buffer", f"{SEND}\nblob = b'x' * 100_000_000", "send(buffers=[blob])", 15, 2),
    ("iopub.small", SEND, "for i in range(20_000): send()", 6, 1),
)


def measure(bench: Bench) -> None:
    for name, before, cell, full, quick in CELLS:
        also = ("iopub.arrived",) if name == "iopub.small" else ()
        with bench.taking(name, *also) as wanted:
            if not wanted:
                continue
            with bench.servers("stock", "isolated") as servers:
                for kind, server in servers.items():
                    server.ask("start", name="a", spec=kind, code=before)
                    server.ask("settle")
                for number in bench.rounds(name, full, quick):
                    for kind, server in turns(servers, number):
                        heard = server.ask("stream", names=["a"], code=cell)
                        bench.note(name, side(kind), heard["ms"])
                        for figure in also:
                            bench.note(figure, side(kind), heard["messages"] - 3)  # busy, execute_input, idle
