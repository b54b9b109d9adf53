"""`run`: a notebook, from its first cell to its last, in a sandbox."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from isolated_python.errors import ProfileError


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option("--profile", default="standard", show_default=True, help="What the kernel is granted.")
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
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from isolated_python.policy import sources

    sources.load(profile)
    try:
        book = nbformat.read(notebook, as_version=4)
        nbformat.validate(book)
    except OSError as error:
        raise ProfileError(f"{notebook} cannot be read: {error.strerror}", remedy="check the path") from None
    except Exception as error:
        words = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ProfileError(f"{notebook} is not a whole notebook: {words}", remedy="save it again") from None
    manager = AsyncKernelManager(kernel_name="isolated-python")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"] = {"profile": profile}
    folder = notebook.absolute().parent
    client = NotebookClient(
        book, km=manager, timeout=timeout, allow_errors=allow_errors, resources={"metadata": {"path": str(folder)}}
    )
    total = sum(cell.cell_type == "code" for cell in book.cells)
    show = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failed = False
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting the kernel", total=total)

        def done(cell: Any, cell_index: int, **_: Any) -> None:
            bar.update(task, advance=1, description=f"cell {cell_index + 1}")
            _show(cell, show)

        client.on_cell_executed = done
        try:
            client.execute()
        except CellExecutionError:
            failed = True  # its traceback is among the cell's outputs
        except DeadKernelError:
            show.print("[red]the kernel died[/red]")
            failed = True
    failed = failed or any(out.output_type == "error" for cell in book.cells for out in cell.get("outputs", ()))
    if output is not None:
        nbformat.write(book, output)
    show.print(
        f"[{'red' if failed else 'green'}]{notebook.name}: {'a cell failed' if failed else f'{total} cells ran'}[/]"
    )
    sys.exit(1 if failed else 0)


def _show(cell: Any, show: Any) -> None:
    """A cell's code and outputs, as a terminal can show them."""
    from rich.markup import escape
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
