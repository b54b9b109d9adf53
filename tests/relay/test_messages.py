"""Which cells run, as the relay can tell from what passes."""

from __future__ import annotations

import json

import pytest
from isolated_python.relay.messages import DELIMITER, MOST, Cells


def header(name: str, session: str = "one", **more: str) -> dict[str, str]:
    return {"msg_id": name, "msg_type": "execute_request", "session": session, **more}


def asked(cells: Cells, name: str, session: str = "one", **more: str) -> None:
    cells.asked([DELIMITER, b"", json.dumps(header(name, session, **more)).encode(), b"{}", b"{}", b"{}"])


def idle(cells: Cells, name: str) -> bool:
    """What the kernel says at the end of a cell."""
    parts = [{}, header(name), {}, {"execution_state": "idle"}]
    return cells.published([b"kernel.status", DELIMITER, b"", *(json.dumps(part).encode() for part in parts)])


@pytest.fixture
def cells() -> Cells:
    return Cells()


def running(cells: Cells) -> str:
    return (cells.running or {}).get("msg_id", "")


def test_of_many_cells_that_were_asked_the_oldest_runs(cells: Cells) -> None:
    """As when all cells of a notebook are run: the others wait, and the kernel rests only after the last."""
    for name in ("a", "b", "c"):
        asked(cells, name)
    assert running(cells) == "a"
    assert not idle(cells, "a")
    assert running(cells) == "b"
    assert not idle(cells, "b")
    assert idle(cells, "c")
    assert running(cells) == ""


def test_a_cell_of_a_subshell_ends_beside_one_that_goes_on(cells: Cells) -> None:
    asked(cells, "long")
    asked(cells, "short", subshell_id="1")
    assert not idle(cells, "short")
    assert running(cells) == "long"
    assert idle(cells, "long")


def test_an_end_that_was_lost_is_made_up_for_by_the_next(cells: Cells) -> None:
    """A slow reader's messages are dropped by libzmq; what one client asked earlier has ended when a later cell has."""
    asked(cells, "a")
    asked(cells, "other", session="two")
    asked(cells, "b")
    assert not idle(cells, "b")
    assert running(cells) == "other"


def test_the_end_of_a_cell_that_nobody_knows_of_is_an_end(cells: Cells) -> None:
    """The relay was replaced while it ran."""
    assert idle(cells, "a")


def test_a_client_that_asks_without_end_costs_a_bounded_memory(cells: Cells) -> None:
    for number in range(2 * MOST):
        asked(cells, str(number))
    assert len(cells.open) == MOST
