"""
Kernels without a sandbox, for the floors: what remains when isolation costs nothing.

*Forked*: a fork of a process that has imported and built all that ours has. *Waiting*: a stock kernel that runs already
and has run a cell. Both are there for jupyter_client as provisioners, since that has its own price.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import psutil
from jupyter_client import KernelConnectionInfo
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

LISTENERS = ("shell", "iopub", "stdin-channel", "control", "hb")  # as the ports of a connection file, in its order
GROUP = "jupyter_client.kernel_provisioners"


def register() -> None:
    """Let kernelspecs name them."""
    known = KernelProvisionerFactory.instance().provisioners
    for name in ("Forked", "Waiting"):
        known[name.lower()] = EntryPoint(name.lower(), f"unisolated:{name}", GROUP)


class Stranger:
    """What LocalProvisioner wants of a subprocess.Popen, for a process that is not our child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.stdin = self.stdout = self.stderr = None

    def poll(self) -> int | None:
        return None if psutil.pid_exists(self.pid) else 0

    def wait(self) -> int:
        return 0

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Forked(LocalProvisioner):
    nursery: ClassVar[subprocess.Popen[str] | None] = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """By unix sockets, as ours: so the kernel listens before it is born."""
        self.parent.transport, self.parent.ip = "ipc", f"{kwargs['cwd']}/s"
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        if Forked.nursery is None:
            code = "import unisolated; unisolated.nursery()"
            Forked.nursery = subprocess.Popen(
                [sys.executable, "-Xfrozen_modules=off", "-c", code],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent,
            )  # fmt: skip
        nursery = Forked.nursery
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        file = next(word for word in cmd if word.endswith(".json"))
        print(json.dumps({"file": file, "cwd": kwargs["cwd"]}), file=nursery.stdin, flush=True)
        self.process = Stranger(int(nursery.stdout.readline()))  # type: ignore[assignment]
        self.pid = self.process.pid
        return self.connection_info


def nursery() -> None:
    """Read requests, one a line, and answer each with the pid of a kernel that listens."""
    gc.disable()
    os.environ["JPY_PARENT_PID"] = "1"
    os.environ["IPYTHONDIR"] = folder = tempfile.mkdtemp()
    from isolated_python.launcher import application, kernel, zygote

    kernel.prepare(lambda: None)
    zygote.freeze(kernel.note_modules)
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        info = json.loads(Path(order["file"]).read_text())
        found = dict(zip(LISTENERS, _listen(info), strict=True))
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.chdir(order["cwd"])
            application.IsolatedKernelApp.listeners = {name: one.detach() for name, one in found.items()}
            app = application.IsolatedKernelApp.instance()
            shutil.rmtree(app.profile_dir.location, ignore_errors=True)  # in a sandbox it is everybody's own
            app.complete(order["file"], [])
            app.start()
            os._exit(0)
        for one in found.values():
            one.close()
        print(pid, flush=True)
    shutil.rmtree(folder)


def _listen(info: dict[str, Any]) -> Iterator[socket.socket]:
    for channel in ("shell", "iopub", "stdin", "control", "hb"):
        one = socket.socket(socket.AF_UNIX)
        one.bind(f"{info['ip']}-{info[f'{channel}_port']}")
        one.listen()
        yield one


class Waiting(LocalProvisioner):
    stand: ClassVar[list[tuple[subprocess.Popen[bytes], dict[str, Any]]]] = []

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Without ports: the kernel has its own."""
        if not self.stand:
            await self._prepare()
        self.connection_info = {}
        return {**kwargs, "cmd": []}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        self.process, info = self.stand.pop()
        self.pid = self.process.pid
        self.connection_info = {**info, "key": info["key"].encode()}
        return self.connection_info

    async def post_launch(self, **kwargs: Any) -> None:
        self._next = asyncio.get_running_loop().call_later(1, lambda: asyncio.ensure_future(self._prepare()))

    async def _prepare(self) -> None:
        folder = tempfile.mkdtemp()
        file = f"{folder}/connection.json"
        with open(os.devnull, "wb") as nowhere:
            started = subprocess.Popen(
                [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", file],
                stdout=nowhere, stderr=nowhere, cwd=folder,
            )  # fmt: skip
        client = AsyncKernelClient(connection_file=file)
        while not (os.path.exists(file) and Path(file).read_text().endswith("}")):
            await asyncio.sleep(0.05)
        client.load_connection_file()
        client.start_channels(stdin=False)
        await client.wait_for_ready(timeout=60)
        await client.execute_interactive("1", output_hook=lambda _: None)
        client.stop_channels()
        self.stand.append((started, json.loads(Path(file).read_text())))
        shutil.rmtree(folder)
