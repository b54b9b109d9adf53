"""
Kernels without a sandbox, for the floors: what remains when isolation costs nothing.

*Forked*: a fork of a process that has imported and built all that ours has (nursery.py). *Waiting*: a stock kernel that
runs already and has run a cell. Both are there for jupyter_client as provisioners, since that has its own price.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from importlib.metadata import EntryPoint
from pathlib import Path
from subprocess import Popen
from typing import Any, ClassVar

import psutil
from isolated_python.linux import prctl
from jupyter_client import KernelConnectionInfo
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner
from traitlets import Bool, Int, List

GROUP = "jupyter_client.kernel_provisioners"

# The least that such a helper needs: to read a request, to mount by ctypes, and to wait for others meanwhile.
HELPER = "import ctypes, json, os, selectors, socket, sys; os.execv(sys.argv[1], sys.argv[1:])"


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
    preload: List[str] = List(config=True)
    helped = Bool(config=True)  # started by a helper, since who imports a package may not be who mounts what it sees

    nursery: ClassVar[asyncio.Task[asyncio.subprocess.Process] | None] = None
    turn: ClassVar = asyncio.Lock()

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """By unix sockets, as ours: so the kernel listens before it is born."""
        if Forked.nursery is None:
            code = "import nursery; nursery.main()"
            argv = [sys.executable, "-Xfrozen_modules=off", "-c", code, *self.preload]
            if self.helped:
                argv = [sys.executable, "-I", "-S", "-c", HELPER, *argv]
            start = asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, cwd=Path(__file__).parent)
            Forked.nursery = asyncio.create_task(start)
        self.parent.transport, self.parent.ip = "ipc", f"{kwargs['cwd']}/s"
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        assert Forked.nursery is not None
        nursery = await Forked.nursery
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        file = next(word for word in cmd if word.endswith(".json"))
        nursery.stdin.write(json.dumps({"file": file, "cwd": kwargs["cwd"]}).encode() + b"\n")
        async with self.turn:  # who wrote first is answered first
            self.process = Stranger(int(await nursery.stdout.readline()))  # type: ignore[assignment]
        self.pid = self.process.pid
        return self.connection_info


class Waiting(LocalProvisioner):
    count = Int(1, config=True)  # how many stand ready when none is in use

    stand: ClassVar[list[tuple[Popen[bytes], dict[str, Any]]]] = []
    used: ClassVar[int] = 0

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Without ports: the kernel has its own."""
        Waiting.used += 1
        if not self.stand:
            await _prepare()
        self.connection_info = {}
        return {**kwargs, "cmd": []}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        self.process, info = self.stand.pop()
        self.pid = self.process.pid
        self.connection_info = {**info, "key": info["key"].encode()}
        return self.connection_info

    async def cleanup(self, restart: bool = False) -> None:
        """When the last has ended all stand again: nobody measures how long this takes."""
        Waiting.used -= 1
        if not self.used:
            await asyncio.gather(*(_prepare() for _ in range(self.count - len(self.stand))))


def _end_with_us() -> None:
    prctl.set_parent_death_signal(signal.SIGKILL)


async def _prepare() -> None:
    folder = tempfile.mkdtemp()
    file = f"{folder}/connection.json"
    argv = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", file]
    with open(os.devnull, "wb") as nowhere:
        started = Popen(argv, stdout=nowhere, stderr=nowhere, cwd=folder, preexec_fn=_end_with_us)  # noqa: PLW1509
    client = AsyncKernelClient(connection_file=file)
    while not (os.path.exists(file) and Path(file).read_text().endswith("}")):
        await asyncio.sleep(0.05)
    client.load_connection_file()
    client.start_channels(stdin=False)
    await client.wait_for_ready(timeout=60)
    await client.execute_interactive("1", output_hook=lambda _: None)
    client.stop_channels()
    Waiting.stand.append((started, json.loads(Path(file).read_text())))
    shutil.rmtree(folder)
