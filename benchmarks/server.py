"""
A server of kernels, driven by JSON: one object a line in, {"do": …}, and one out, {"is": …} or {"error": …}.

It stands for a Jupyter server: one process, one event loop, asynchronous managers. Times are in milliseconds. It ends
with its standard input, or by SIGTERM, and takes every kernel with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import resource
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil
import unisolated
import zmq
from jupyter_client.manager import AsyncKernelManager

PATIENCE = 120.0  # seconds for any single answer,
PATIENCE_OF_MANY = 40.0  # and for those of kernels that start at the same time
QUIET = 0.03  # of one core: below this everything that was started has come to rest
# Another thread says that it spins: a SIGINT that finds the main thread in a print can be lost, in a stock kernel, too.
SPIN = """
import threading, time
threading.Timer(0.05, print, ["spins"]).start()
end = time.monotonic() + 90
while time.monotonic() < end: pass
"""
LEAST_FREE = 1 << 30  # bytes of memory, below which no further kernel is started


def ms(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 3)


class Kernel:
    def __init__(self, spec: str, transport: str = "tcp") -> None:
        self.folder = tempfile.mkdtemp(prefix="work-", dir=HOME)
        self.manager = AsyncKernelManager(kernel_name=spec)
        self.asked = ""
        if transport == "ipc":
            self.manager.transport, self.manager.ip = "ipc", f"{self.folder}/s"
        self.manager.connection_file = f"{self.folder}/connection.json"

    async def launch(self, argv: list[str] | None = None) -> None:
        if argv:
            self.manager.kernel_spec.argv = argv
        await self.manager.start_kernel(cwd=self.folder)
        self.client = self.manager.client()

    async def start(self, code: str, argv: list[str] | None = None) -> float:
        """From the call of start_kernel to the reply to a request that is sent at once."""
        began = time.perf_counter()
        await self.launch(argv)
        self.client.start_channels(stdin=False, hb=False)
        await self.run(code)
        return ms(began)

    async def run(self, code: str) -> dict[str, Any]:
        self.ask(code)
        return await self.answer()

    def ask(self, code: str, **how: Any) -> None:
        self.asked = self.client.execute(code, **how)

    async def answer(self) -> dict[str, Any]:
        """The content of the reply to what was asked last. Raises RuntimeError where the cell failed."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                message = await self.client.get_shell_msg(timeout=2)
            except queue.Empty:
                if not await self.manager.is_alive():
                    raise RuntimeError("the kernel ended before it answered") from None
                if time.monotonic() > until:
                    raise TimeoutError(f"no answer came within {PATIENCE:.0f} s") from None
                continue
            if message["parent_header"].get("msg_id") == self.asked:
                break
        content: dict[str, Any] = message["content"]
        if content["status"] == "error" and content["ename"] != "KeyboardInterrupt":
            raise RuntimeError(f"a cell failed with {content['ename']}: {content['evalue']}")
        return content

    def iopub(self) -> zmq.Socket[bytes]:
        return zmq.Socket.shadow(self.client.iopub_channel.socket.underlying)

    def drain(self) -> None:
        """Forget what it has said so far."""
        with contextlib.suppress(zmq.Again):
            for _ in range(1_000_000):
                self.iopub().recv_multipart(zmq.NOBLOCK, copy=False)

    async def end(self, *, now: bool = True) -> float:
        began = time.perf_counter()
        await self.manager.shutdown_kernel(now=now)
        took = ms(began)
        if hasattr(self, "client"):
            self.client.stop_channels()
        shutil.rmtree(self.folder, ignore_errors=True)
        return took


def listen(kernels: list[Kernel]) -> int:
    """Hear every kernel until it is idle after what it was asked last; how many messages those were."""
    waiting = {kernel.iopub(): kernel.asked.encode() for kernel in kernels}
    poller, heard, until = zmq.Poller(), 0, time.monotonic() + PATIENCE
    for one in waiting:
        poller.register(one, zmq.POLLIN)
    while waiting:
        ready = poller.poll(1000 * max(0.0, until - time.monotonic()))
        if not ready:
            raise TimeoutError(f"{len(waiting)} kernels were not idle after {PATIENCE:.0f} s")
        for one, _ in ready:
            with contextlib.suppress(zmq.Again):
                for _ in range(1000):
                    frames = one.recv_multipart(zmq.NOBLOCK, copy=False)
                    heard += 1
                    if len(frames) > 6 and frames[6].bytes.find(b'"idle"') >= 0 and waiting[one] in frames[4].bytes:
                        poller.unregister(one)
                        del waiting[one]
                        break
    return heard


# ---- deeds ---------------------------------------------------------------------------------------------------------

kernels: dict[str, Kernel] = {}


async def start(name: str, spec: str, code: str = "1", **how: Any) -> float:
    """`argv` is another command than the kernelspec's; `files` are those that it wants to find in {folder}."""
    kernel = kernels[name] = Kernel(spec, how.get("transport", "tcp"))

    def here(text: str) -> str:
        return text.replace("{folder}", kernel.folder).replace("{name}", os.path.basename(kernel.folder))

    for path, text in how.get("files", {}).items():
        place = os.path.join(kernel.folder, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "w") as file:
            file.write(here(text))
    return await kernel.start(code, [*map(here, how.get("argv", []))])


async def ready(name: str, spec: str) -> float:
    """As nbclient waits for a kernel: with all channels, and by wait_for_ready."""
    kernel = kernels[name] = Kernel(spec)
    began = time.perf_counter()
    await kernel.launch()
    kernel.client.start_channels()
    await kernel.client.wait_for_ready(timeout=PATIENCE)
    return ms(began)


async def start_many(names: list[str], spec: str, code: str = "1") -> float:
    """All at the same time; when the last one has answered. Where one of them cannot be had, all are ended."""

    async def one(name: str) -> None:
        if psutil.virtual_memory().available < LEAST_FREE:
            raise MemoryError("less than 1 GiB of memory was left")
        await start(name, spec, code)

    began = time.perf_counter()
    tasks = [asyncio.create_task(one(name)) for name in names]
    done, late = await asyncio.wait(tasks, timeout=PATIENCE_OF_MANY)
    took = ms(began)
    failed = [str(task.exception()) for task in done if task.exception()]
    if late:
        failed += [f"no answer came within {PATIENCE_OF_MANY:.0f} s"] * len(late)
        for task in late:
            task.cancel()
        await asyncio.wait(late)
    if failed:
        await stop([name for name in names if name in kernels])
        raise RuntimeError(f"of {len(names)} kernels {len(failed)} failed: {failed[0]}")
    return took


async def trips(name: str, count: int) -> list[float]:
    found = []
    kernels[name].drain()
    for _ in range(count):
        began = time.perf_counter()
        await kernels[name].run("1")
        found.append(ms(began))
    return found


async def run(name: str, code: str) -> float:
    began = time.perf_counter()
    await kernels[name].run(code)
    return ms(began)


async def inside(name: str, code: str) -> float:
    """What the cell itself has measured and called `took`, in seconds; here in ms."""
    kernel = kernels[name]
    kernel.drain()
    kernel.ask(code, user_expressions={"took": "took"})
    content = await kernel.answer()
    return round(1000 * float(content["user_expressions"]["took"]["data"]["text/plain"]), 3)


async def stream(names: list[str], code: str) -> dict[str, Any]:
    """Run a cell in each kernel and hear all it says: {"ms": …, "messages": how many came}."""
    chosen = [kernels[name] for name in names]
    for kernel in chosen:
        kernel.drain()
    began = time.perf_counter()
    for kernel in chosen:
        kernel.ask(code)
    heard = listen(chosen)
    took = ms(began)
    for kernel in chosen:
        await kernel.answer()
    return {"ms": took, "messages": heard}


async def interrupt(name: str) -> float:
    """From the call to the reply of the cell that it ends. The cell is known to run, because it has said so."""
    kernel = kernels[name]
    await _spin(kernel)
    began = time.perf_counter()
    await kernel.manager.interrupt_kernel()
    await kernel.answer()
    return ms(began)


async def spin(names: list[str]) -> None:
    for name in names:
        await _spin(kernels[name])


async def calm(names: list[str]) -> None:
    for name in names:
        await kernels[name].manager.interrupt_kernel()
        await kernels[name].answer()


async def _spin(kernel: Kernel) -> None:
    kernel.drain()
    kernel.ask(SPIN)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        message = await kernel.client.get_iopub_msg(timeout=PATIENCE)
        if message["msg_type"] == "stream" and message["parent_header"].get("msg_id") == kernel.asked:
            return
    raise TimeoutError("a cell did not begin")


async def restart(name: str, now: bool) -> float:
    kernel = kernels[name]
    began = time.perf_counter()
    await kernel.manager.restart_kernel(now=now)
    await kernel.run("1")
    return ms(began)


async def stop(names: list[str], now: bool = True) -> list[float]:
    return [await kernels.pop(name).end(now=now) for name in names]


async def settle() -> float:
    """Until nothing below this process is busy any more, at most 30 s: two looks, a fifth of a second apart."""
    began = time.perf_counter()
    before, known = _spent()
    for _ in range(150):
        await asyncio.sleep(0.2)
        spent, processes = _spent()
        if processes == known and spent - before < 0.2 * QUIET:
            break
        before, known = spent, processes
    return ms(began)


def _below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _spent() -> tuple[float, set[int]]:
    """Seconds of CPU of everything below this process, and its pids."""
    spent, known = 0.0, set()
    for process in _below():
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            spent += _cpu(process.pid)
            known.add(process.pid)
    return spent, known


def _cpu(pid: int) -> float:
    """Seconds, of all its threads: schedstat counts nanoseconds, where times(2) counts hundredths of a second."""
    threads = os.listdir(f"/proc/{pid}/task")
    found = 0
    for thread in threads:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            found += int(file.read().split()[0])
    return found / 1e9


async def pss() -> float:
    """MB of everything below this process; a page that n processes share counts 1/n in each."""
    found = 0
    for process in _below():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += process.memory_full_info().pss
    return found / 1e6


async def relay() -> dict[str, float]:
    """{"mb": its PSS, "cpu": the microseconds that it has worked}."""
    for process in _below():
        if any("isolated_python.relay" in word for word in process.cmdline()):
            return {"mb": process.memory_full_info().pss / 1e6, "cpu": 1e6 * _cpu(process.pid)}
    raise LookupError("no relay was found")


async def between(names: list[str]) -> None:
    """From here on a bare loop stands between what these isolated kernels publish and who hears it."""
    global bare_loop
    doors = []
    for name in names:
        client, door = kernels[name].client, f"{kernels[name].folder}/door"
        doors.append((door, f"{client.ip}-{client.iopub_port}"))
    argv = [sys.executable, os.path.join(os.path.dirname(__file__), "bare.py"), json.dumps(doors)]
    bare_loop = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert bare_loop.stdout is not None
    await bare_loop.stdout.readline()
    for name, (door, target) in zip(names, doors, strict=True):
        kernels[name].iopub().disconnect(f"ipc://{target}")
        kernels[name].iopub().connect(f"ipc://{door}")
        kernels[name].drain()
        while not kernels[name].iopub().poll(10):
            await kernels[name].run("1")


async def bare() -> float:
    """The microseconds that the loop of `between` has worked."""
    assert bare_loop is not None
    return 1e6 * _cpu(bare_loop.pid)


async def narrow(cores: int) -> None:
    """This process, and what it will start, on so many cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


async def _end() -> None:
    await asyncio.gather(*(kernel.end() for kernel in kernels.values()), return_exceptions=True)


async def dwell(prefix: str) -> None:
    """From here on this server's environment also lies there."""
    site.PREFIXES.append(prefix)


async def view(grant: list[str]) -> float:
    """Until it is known what this list shows of the environment, by one who knows nothing of it yet."""
    from isolated_python.engine import interpreters, packages, sight
    from isolated_python.policy.profile import Modules, Profile
    from isolated_python.record import replace

    packages._environment.cache_clear()
    sight._view.cache_clear()
    profile = replace(Profile(), modules=Modules(grant=tuple(grant)))
    began = time.perf_counter()
    interpreters.shown([sys.executable, "-m", "ipykernel_launcher"], profile)
    return ms(began)


DEEDS: dict[str, Callable[..., Any]] = {
    deed.__name__: deed
    for deed in (start, ready, start_many, trips, run, inside, stream, interrupt, spin, calm, restart, stop, settle)
} | {deed.__name__: deed for deed in (pss, relay, between, bare, narrow, dwell, view)}

HOME = ""
bare_loop: asyncio.subprocess.Process | None = None


def main() -> None:
    global HOME
    HOME = sys.argv[1]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Kernels inherit the standard output: the answers go another way.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    unisolated.register()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        for line in sys.stdin:
            ask = json.loads(line)
            try:
                answer = {"is": loop.run_until_complete(DEEDS[ask.pop("do")](**ask))}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(TimeoutError):
            loop.run_until_complete(asyncio.wait_for(_end(), 10))


main()
