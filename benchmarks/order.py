"""
Writes the list of functions that process 1 and a kernel call until the first reply, for launcher/order.py.

    python benchmarks/order.py     # where ipykernel, IPython or Python have changed; an old list only helps less

It looks on from within a sandbox: a profile's preloaded module is in all of its processes. So it has to lie among the
packages of the environment, for as long as this runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

import bench
from isolated_python.launcher import order
from jupyter_client.manager import AsyncKernelManager

NAME = "isolated_python_order"
WATCH = """
import gc, os, sys, threading
from types import FunctionType
from isolated_python.launcher.order import name

called = set()

def note(frame, event, _):
    if event == "call":
        called.add(name(frame.f_globals.get("__name__"), frame.f_code))

def begin():
    sys.setprofile(note)
    threading.setprofile(note)

def tell():
    sys.setprofile(None)
    gc.unfreeze()
    functions = (one for one in gc.get_objects() if isinstance(one, FunctionType))
    there = {name(one.__globals__.get("__name__"), one.__code__) for one in functions}
    return sorted(one for one in called & there if not one.startswith((__name__, "__main__:")))

os.register_at_fork(after_in_parent=begin, after_in_child=begin)
"""
CELL = f"import {NAME}; open('order.txt', 'w').write('\\n'.join({NAME}.tell()) + '\\n')"


async def watch(folder: Path) -> None:
    manager = AsyncKernelManager(kernel_name="isolated")
    assert manager.kernel_spec is not None
    manager.kernel_spec.metadata["kernel_provisioner"]["config"]["profile"] = "order"
    await manager.start_kernel(cwd=str(folder))
    client = manager.client()
    client.start_channels()
    client.execute(CELL)
    await client.get_shell_msg(timeout=60)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    shutil.copyfile(folder / "order.txt", order.LIST)
    print(f"{len(order.LIST.read_text().split())} functions: {order.LIST}")


if __name__ == "__main__":
    module = Path(sysconfig.get_path("purelib")) / f"{NAME}.py"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        os.environ.update(bench.prepare(Path(place)))
        profiles = Path(place) / "config" / "isolated-python" / "profiles"
        (profiles / "order.toml").write_text(f'preload = ["{NAME}"]\n')
        module.write_text(WATCH)
        try:
            asyncio.run(watch(Path(place)))
        finally:
            module.unlink()
