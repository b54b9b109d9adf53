"""The other ways to run a notebook: each gets its kernel from jupyter_client, and so in a sandbox."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.places.conftest import BIN, SMALL, environment

LOOK = "import os; print('host' if os.path.exists('/etc/shadow') else 'sand' + 'box')"
PARAMETERS = new_code_cell("n = 1", metadata={"tags": ["parameters"]})


@pytest.fixture
def folder(homes: Callable[[], Path]) -> Path:
    """With a notebook that names our kernel, and says where it ran."""
    folder = homes() / "work"
    folder.mkdir()
    kernelspec = {"name": "isolated-python", "display_name": "Isolated Python", "language": "python"}
    cells = [PARAMETERS, new_code_cell(LOOK), new_code_cell("open('made', 'w').write('x' * n)")]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), folder / "in.ipynb")
    return folder


def run(folder: Path, program: str, *arguments: str, said: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, f"{BIN}/{program}", *arguments], cwd=folder, env=environment(folder.parent, **more),
        input=said, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def printed(path: Path) -> str:
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", output.get("evalue", "")) for output in outputs)


def test_papermill_gives_parameters_and_its_notebook_runs_in_a_sandbox(folder: Path) -> None:
    done = run(folder, "papermill", "in.ipynb", "out.ipynb", "-p", "n", "3", "--no-progress-bar")
    assert done.returncode == 0, done.stderr
    assert "sandbox" in printed(folder / "out.ipynb")
    assert (folder / "made").read_text() == "xxx"


@pytest.mark.thorough
def test_nbconvert_executes_in_a_sandbox(folder: Path) -> None:
    done = run(folder, "jupyter-nbconvert", "--execute", "--to", "notebook", "--output", "out.ipynb", "in.ipynb")
    assert done.returncode == 0, done.stderr
    assert "sandbox" in printed(folder / "out.ipynb")
    assert (folder / "made").read_text() == "x"


@pytest.mark.thorough
def test_console_talks_with_a_sandbox(folder: Path) -> None:
    done = run(folder, "jupyter-console", "--kernel=isolated-python", "--simple-prompt", said=f"{LOOK}\n6 * 7\nexit\n")
    assert "sandbox" in done.stdout, done.stderr
    assert "42" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("tool", [("papermill", "in.ipynb", "out.ipynb"), ("jupyter-execute", "in.ipynb")])
def test_notebooks_that_name_python3_run_in_a_sandbox_too_where_the_environment_says_so(
    folder: Path, tool: tuple[str, ...]
) -> None:
    notebook = nbformat.read(folder / "in.ipynb", 4)
    notebook.metadata.kernelspec.name = "python3"
    nbformat.write(notebook, folder / "in.ipynb")
    arguments = (*tool[1:], "--inplace") if tool[0] == "jupyter-execute" else tool[1:]
    done = run(folder, tool[0], *arguments, JUPYTER_DEFAULT_PROVISIONER_NAME="isolated-python")
    assert done.returncode == 0, done.stderr
    assert "sandbox" in printed(folder / tool[-1])


@pytest.mark.thorough
def test_a_cell_that_takes_too_much_ends_papermill_with_the_reason(folder: Path) -> None:
    small = folder.parent / ".local/share/jupyter/kernels/small"
    shutil.copytree(Path(sys.prefix) / "share/jupyter/kernels/isolated-python", small)
    spec = json.loads((small / "kernel.json").read_text())
    spec["metadata"]["kernel_provisioner"]["config"] = {"profile": "standard", "overrides": SMALL}
    (small / "kernel.json").write_text(json.dumps(spec))
    notebook = nbformat.read(folder / "in.ipynb", 4)
    notebook.cells.append(new_code_cell("hoard = []\nwhile True: hoard.append(b'x' * (8 << 20))"))
    nbformat.write(notebook, folder / "in.ipynb")
    done = run(folder, "papermill", "in.ipynb", "out.ipynb", "--kernel", "small", "--no-progress-bar")
    assert done.returncode != 0
    assert "more than the 384 MiB of memory" in printed(folder / "out.ipynb")
