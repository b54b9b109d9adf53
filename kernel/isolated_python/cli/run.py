"""`run`: a notebook, from its first cell to its last, in a sandbox."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from isolated_python.cli.completion import profiles
from isolated_python.errors import ProfileError


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option(
    "--profile", default="standard", show_default=True, shell_complete=profiles, help="What the kernel is granted."
)
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the notebook with its outputs.")
@click.option("--timeout", type=float, help="Seconds that a cell may take.  [default: no limit]")
@click.option("--allow-errors", is_flag=True, help="Go on after a cell that fails.")
def run(notebook: Path, profile: str, output: Path | None, timeout: float | None, allow_errors: bool) -> None:
    """Run NOTEBOOK in a sandbox and show what came out.

    \b
    Examples:
      jupyter isolated run notebook.ipynb
      jupyter isolated run notebook.ipynb --profile shared --output done.ipynb

    Exit status: 0 every cell ran, 1 a cell failed or the kernel died, 2 it could not begin.
    """
    from isolated_python.policy import sources

    sources.load(profile)
    book = _read(notebook)
    if output is not None and not os.access(output.absolute().parent, os.W_OK):
        raise ProfileError(f"nothing can be written to {output.absolute().parent}", remedy="choose another --output")

    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    manager = AsyncKernelManager(kernel_name="isolated-python")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"] = {"profile": profile}
    folder = notebook.absolute().parent
    client = NotebookClient(
        book, km=manager, timeout=timeout, allow_errors=allow_errors, resources={"metadata": {"path": str(folder)}}
    )
    total = sum(cell.cell_type == "code" for cell in book.cells)
    show, errors = Console(highlight=False), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    running, why = None, ""
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("starting the kernel", total=total)

        def begun(cell: Any, cell_index: int, **_: Any) -> None:
            nonlocal running
            running = cell
            bar.update(task, description=f"cell {cell_index + 1}")

        def done(cell: Any, **_: Any) -> None:
            nonlocal running
            running = None
            bar.update(task, advance=1)
            _show(cell, show)

        client.on_cell_start, client.on_cell_executed = begun, done
        try:
            client.execute()
        except CellExecutionError:
            why = "a cell failed"  # its traceback is among the cell's outputs
        except CellTimeoutError:
            why = f"a cell took more than {timeout:g} s"
        except DeadKernelError:
            why = "the kernel died"
        if running is not None:
            _show(running, show)
    # A cell with this tag is one that should fail; nbclient goes on after it.
    meant = (cell for cell in book.cells if "raises-exception" not in cell.metadata.get("tags", ()))
    if not why and any(out.output_type == "error" for cell in meant for out in cell.get("outputs", ())):
        why = "a cell failed"
    if output is not None:
        nbformat.write(book, output)
    show.print(f"[{'red' if why else 'green'}]{escape(notebook.name)}: {why or f'{total} cells ran'}[/]")
    sys.exit(1 if why else 0)


def _read(path: Path) -> Any:
    """The notebook in a file. Raises ProfileError where it is not one, or not a whole one."""
    import nbformat

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}", remedy="check the path") from None
    except UnicodeDecodeError:
        raise ProfileError(f"{path} is not a notebook: it is not text", remedy="check the path") from None
    try:
        if not isinstance(json.loads(text), dict):
            raise ValueError("its JSON is not an object")
        book = nbformat.reads(text, as_version=4)
        nbformat.validate(book)
    except json.JSONDecodeError as error:
        words = f"its JSON ends or breaks off in line {error.lineno}"
        raise ProfileError(f"{path} is not a whole notebook: {words}", remedy="save it again") from None
    except Exception as error:  # nbformat lets through what a wrong shape happens to raise
        words = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ProfileError(f"{path} is not a notebook: {words}", remedy="save it again") from None
    return book


def _show(cell: Any, show: Any) -> None:
    """A cell's code and outputs, as a terminal can show them."""
    from rich.text import Text

    if cell.cell_type != "code" or not cell.source.strip():
        return
    show.print(f"[dim]In [{cell.execution_count}]: {escape(cell.source.splitlines()[0])}[/dim]")
    for out in cell.outputs:
        if out.output_type == "stream":
            show.print(Text.from_ansi(out.text.rstrip("\n")))
        elif out.output_type == "error":
            show.print(Text.from_ansi("\n".join(out.traceback)))
        else:
            kinds = ", ".join(kind for kind in out.data if kind != "text/plain")
            show.print(escape(out.data.get("text/plain", "")) + (f" [dim]({kinds})[/dim]" if kinds else ""))
