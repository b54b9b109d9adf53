"""How long one cell may run, and what and how much it may show: the relay sees to it, and says so in the cell."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.conftest import Server

LOOP = "while True: pass"
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"


def shown(server: Server, code: str) -> dict[str, Any]:
    """What a cell showed, by mime type."""
    asked = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    heard = server.ask("send", name="kernel", type="execute_request", content=asked)["heard"]
    found: dict[str, Any] = {}
    for kind, content, _ in heard:
        assert kind != "error", content
        found |= content.get("data", {}) if kind in ("display_data", "execute_result") else {}
    return found


def test_a_cell_that_runs_too_long_is_interrupted_and_told(server: Server) -> None:
    """The kernel lives on, with all that it knew; and each cell has its own time."""
    server.start(overrides={"cells": {"wall_clock": "1 s"}})
    server.text("x = 42")
    answer = server.run(LOOP)
    assert answer["status"] == "error"
    assert "KeyboardInterrupt" in answer["text"]
    assert "this cell was interrupted: it has run for 1 s" in answer["text"]
    assert "cells.wall_clock" in answer["text"]
    assert server.text("print(x)") == "42"
    assert "KeyboardInterrupt" in server.run(LOOP)["text"]
    server.text("import time; time.sleep(0.2)")


def test_a_cell_that_no_interrupt_ends_is_ended_with_its_kernel(server: Server) -> None:
    server.start(overrides={"cells": {"wall_clock": "1 s"}})
    answer = server.run(DEAF)
    assert "an interrupt did not end it" in answer["text"], answer
    assert "cells.wall_clock" in answer["text"]
    ended = server.ask("ended", name="kernel")
    assert ended["status"] == -9
    assert "cells.wall_clock" in ended["reason"]


def test_a_cell_shows_so_much_and_no_more(server: Server) -> None:
    """It runs to its end, and says why where it fails; the next one shows what it likes."""
    server.start(overrides={"cells": {"output": "1 MiB", "messages": 50}})
    answer = server.run("for _ in range(40): print('x' * 100_000, flush=True)")
    assert answer["status"] == "ok"
    assert 500_000 < answer["text"].count("x") <= 1 << 20
    assert "grants one cell 1 MiB of output" in answer["text"]
    assert "were dropped" in answer["text"]
    answer = server.run("from IPython.display import display\nfor n in range(200): display(n)\n1 / 0")
    assert answer["status"] == "error"
    assert "grants one cell 50 messages" in answer["text"]
    assert "ZeroDivisionError" in answer["text"]
    assert server.text("print('next')") == "next"


@pytest.mark.parametrize(
    "more",
    [
        {"cells": {"output": "8 MiB"}},
        pytest.param({}, marks=pytest.mark.thorough),
        pytest.param({"capabilities": {"display": ["text/html"]}}, marks=pytest.mark.thorough),
    ],
)
def test_what_is_too_large_to_be_shown_at_once_is_dropped_and_the_cell_goes_on(
    root_server: Server, more: dict[str, Any]
) -> None:
    """It is told so, ends, and shows what comes after; the client stays connected."""
    root_server.start(overrides={"channels": {"message": "1 MiB"}, **more})
    for act in (
        "print('x' * (2 << 20), flush=True)",
        "display({'text/plain': 'x' * (3 << 20)}, raw=True)",
        "import comm; comm.create_comm(target_name='x', buffers=[bytes(2 << 20)])",
    ):
        answer = root_server.run(f"print('before', flush=True)\n{act}\nprint('after')")
        assert answer["status"] == "ok", answer
        assert answer["text"].startswith("before"), answer["text"][:300]
        assert answer["text"].count("larger than the 1 MiB that the profile standard grants") == 1, answer["text"][:900]
        assert "(channels.message)" in answer["text"]
        assert answer["text"].rstrip().endswith("after"), answer["text"][-300:]
    assert root_server.records("relay-refused", rule="message size (kernel)")


SHOW = (
    "from IPython.display import HTML, Javascript, display\n"
    "display({'text/html': '<b>', 'text/plain': 'plain'}, raw=True); display(HTML('<i>'), Javascript('x'))\n"
)
FIGURE = "import matplotlib.pyplot as p; p.plot([1]); p.show()"
WIDGET = "import ipywidgets; ipywidgets.HTML('<b>x</b>')"


def test_only_granted_mime_types_reach_the_notebook(server: Server) -> None:
    server.start(overrides={"capabilities": {"display": ["image/png"]}})
    assert {*shown(server, SHOW)} == {"text/plain"}
    assert {*shown(server, FIGURE)} == {"text/plain", "image/png"}
    assert {*shown(server, WIDGET)} == {"text/plain"}
    html = {"code": "x = 1", "silent": False, "user_expressions": {"a": "HTML('<b>')"}, "allow_stdin": False}
    reply = server.ask("request", name="kernel", channel="shell", type="execute_request", content=html)["content"]
    assert {*reply["user_expressions"]["a"]["data"]} == {"text/plain"}


def test_whoever_grants_everything_sees_everything(root_server: Server) -> None:
    root_server.start()
    assert {"text/html", "application/javascript", "text/plain"} <= {*shown(root_server, SHOW)}
    assert "application/vnd.jupyter.widget-view+json" in shown(root_server, WIDGET)
