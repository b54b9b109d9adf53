"""The notebooks about profiles run as they say, and show what they were kept with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from isolated_python.policy import sources

from tests.cli.test_commands import Terminal
from tests.conftest import Ordinary

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
VOLATILE = ("%sandbox", "%sandbox modules")  # what is in use, what is installed


def told(cell: Any) -> list[Any]:
    """What a cell shows, as far as it is the same everywhere."""
    found = []
    for out in cell.outputs:
        match out.output_type:
            case "stream":
                found.append((out.name, "" if cell.source in VOLATILE else out.text))
            case "error":
                ours = [line for line in out.traceback if "Isolated Python: " in line]
                found.append((out.ename, out.evalue, *ours))
            case kind:
                found.append((kind, *sorted(out.data)))
    return found


@pytest.mark.parametrize(("name", "profile"), [("03-profiles", "standard"), ("04-classroom", "classroom")])
def test_a_notebook_shows_what_it_was_kept_with(name: str, profile: str, ordinary: Ordinary) -> None:
    terminal = Terminal(ordinary, root=os.geteuid() == 0)
    if not terminal.root:
        text = (sources.SHIPPED / f"{profile}.toml").read_text() + '\n[layers]\ncgroup = "prefer"\n'
        (ordinary.home / f"etc/isolated-python/profiles/{profile}.toml").write_text(text)
    for path in NOTEBOOKS.glob("*.ipynb"):
        shutil.copy(path, terminal.folder)
    done = terminal("run", f"{name}.ipynb", "--profile", profile, "--output", "done.ipynb")
    assert done.returncode == 0, done.stdout + done.stderr
    kept = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for ours, theirs in zip(terminal.read("done.ipynb").cells, kept.cells, strict=True):
        if ours.cell_type == "code":
            assert told(ours) == told(theirs), ours.source


def test_a_failure_that_is_meant_is_no_failure(ordinary: Ordinary) -> None:
    terminal = Terminal(ordinary, root=os.geteuid() == 0)
    terminal.notebook("1 / 0", "print('after')")
    book = terminal.read("a.ipynb")
    assert terminal("run", "a.ipynb", "--allow-errors").returncode == 1
    book.cells[0].metadata["tags"] = ["raises-exception"]
    nbformat.write(book, terminal.folder / "a.ipynb")
    done = terminal("run", "a.ipynb")
    assert (done.returncode, "after" in done.stdout) == (0, True)
