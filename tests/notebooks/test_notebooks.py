"""The notebooks that come with the package run from their first cell to their last, and show what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.conftest import BIN, Ordinary
from tests.kernel.conftest import has_cgroup

# Those about profiles are run in theirs: see test_profiles.py.
NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("0[12]-*.ipynb"))
REFUSED = next(path for path in NOTEBOOKS if path.name.startswith("02"))


@pytest.fixture
def ran(life: bool, ordinary: Ordinary, request: pytest.FixtureRequest) -> Any:
    """A notebook, as `jupyter isolated run` leaves it."""
    if not has_cgroup(root=life):
        pytest.skip("an ordinary user has no cgroup on this host, and the notebooks meet its limits")
    folder = ordinary.home / "work"
    folder.mkdir()
    source = request.param
    shutil.copy(source, folder)
    environment = ordinary.environment | {"ISOLATED_PYTHON_AUDIT_DIR": str(ordinary.home / "audit")}
    command = [f"{BIN}/jupyter-isolated", "run", source.name, "--output", "done.ipynb"]
    asked: dict[str, Any] = {"cwd": folder, "env": environment}
    if life:
        asked |= {"user": os.getuid(), "group": os.getgid(), "extra_groups": os.getgroups()}
    elif os.geteuid() == 0:
        shutil.chown(folder, ordinary.uid, ordinary.gid)
    process = ordinary.start(command, stderr=subprocess.STDOUT, **asked)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 0, said
    return nbformat.read(folder / "done.ipynb", as_version=4)


@pytest.mark.parametrize("ran", [path for path in NOTEBOOKS if path != REFUSED], indirect=True, ids=lambda path: path.stem)
def test_every_cell_runs(ran: Any) -> None:
    assert all(cell.execution_count for cell in ran.cells if cell.cell_type == "code" and cell.source)


@pytest.mark.parametrize("ran", [REFUSED], indirect=True, ids=lambda path: path.stem)
def test_every_attack_is_refused_as_the_notebook_shows(ran: Any) -> None:
    """Nothing is got; and the outputs that are kept in the file are of the attacks that are in it."""
    kept = nbformat.read(REFUSED, as_version=4)
    assert all(cell.execution_count for cell in ran.cells if cell.cell_type == "code")
    lines, before = ([line for cell in book.cells for line in printed(cell).splitlines()] for book in (ran, kept))
    assert [line[:42] for line in lines] == [line[:42] for line in before]
    assert sum(line[42:].startswith("refused: ") for line in lines) > 40
    assert [line for line in (*lines, *before) if line[42:].startswith("GOT")] == []


def printed(cell: Any) -> str:
    return "".join(out.get("text", "") for out in cell.get("outputs", ()))
