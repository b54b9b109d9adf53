"""A small server of kernels for the tests: one JSON object a line in, one out. It runs as whoever the test says.

{"do": "start", "name": …, "overrides": …, "cwd": …}   → {"pid": …} or {"error": "…"}
                                                         "spec": what to change in the kernelspec
                                                         "manager": what to change in its manager
{"do": "run", "name": …, "code": …, "timeout": …}      → {"text": …, "status": "ok" | "error" | "dead"}
{"do": "send", "name": …, "type": …, "content": …}     → {"heard": [[type, content, digests of buffers], …]}
{"do": "request", "name": …, "channel": …, "type": …, "content": …, "header": …}  → {"content": …} of the reply
{"do": "connect", "name": …, "as": …}                  a further client of the same kernel, under a name of its own
{"do": "restart" | "interrupt" | "stop" | "alive", "name": …}
{"do": "connection", "name": …}                        → as in a connection file
{"do": "supervisor"}                                   → {"pid": …, "folder": …}

With "pool": true, or how many, in a start, the kernel is one that stood before it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import io
import json
import logging
import os
import queue
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import KernelManager

log = io.StringIO()
logging.basicConfig(stream=log)
managers: dict[str, KernelManager] = {}
clients: dict[str, Any] = {}
running: dict[str, str] = {}
beginning: list[Future[str]] = []

Deed = Callable[[dict[str, Any]], dict[str, Any]]
deeds: dict[str, Deed] = {}


def deed(function: Deed) -> Deed:
    deeds[function.__name__] = function
    return function


@deed
def start(ask: dict[str, Any]) -> dict[str, Any]:
    manager = KernelManager(kernel_name=ask.get("kernel", "isolated-python"))
    stanza = {"provisioner_name": "isolated-python", "config": {"overrides": ask.get("overrides", {})}}
    if "profile" in ask:
        stanza["config"]["profile"] = ask["profile"]
    if ask.get("pool"):
        stanza["config"]["pool"] = int(ask["pool"])
    manager.kernel_spec.metadata["kernel_provisioner"] = stanza
    for trait, value in ask.get("spec", {}).items():
        setattr(manager.kernel_spec, trait, value)
    for trait, value in ask.get("manager", {}).items():
        setattr(manager, trait, value)
    if ask.get("pool") and can_wait(manager):
        prime(manager, ask)
    began = time.monotonic()
    manager.start_kernel(cwd=ask["cwd"], **ask.get("arguments", {}))
    managers[ask["name"]] = manager
    client = clients[ask["name"]] = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    seconds, key = time.monotonic() - began, manager.session.key.decode()
    return {"pid": manager.provisioner.pid, "seconds": seconds, "key": key, "id": manager.kernel_id}


@deed
def begin(ask: dict[str, Any]) -> dict[str, Any]:
    """Start a kernel in the background; returns when the supervisor has the request, with the kernel's id."""
    known = {one["kernel"] for one in sandboxes()}
    beginning.append(ThreadPoolExecutor(1).submit(lambda: refusal(ask)))
    while not (new := {one["kernel"] for one in sandboxes()} - known):
        assert not beginning[-1].done(), beginning[-1].result()
    return {"id": new.pop()}


@deed
def begun(ask: dict[str, Any]) -> dict[str, Any]:
    """How the start that began last has ended."""
    return {"error": beginning.pop().result(30)}


@deed
def busy(ask: dict[str, Any]) -> dict[str, Any]:
    """Start a kernel that dies, in a loop that does something else from the request until the kernel has ended."""
    from jupyter_client.manager import AsyncKernelManager

    async def both() -> bool:
        manager = AsyncKernelManager(kernel_name="isolated-python")
        manager.kernel_spec.metadata = {
            "kernel_provisioner": {"provisioner_name": "isolated-python", "config": {"overrides": ask["overrides"]}}
        }
        start = asyncio.create_task(manager.start_kernel(cwd=ask["cwd"], **ask["arguments"]))
        while not sandboxes():
            assert not start.done(), start
            await asyncio.sleep(0)
        while sandboxes():
            pass
        await start
        return await manager.is_alive()

    first = KernelManager(kernel_name="isolated-python")  # so that there is a supervisor, and it knows of no other
    first.start_kernel(cwd=ask["cwd"])
    first.shutdown_kernel(now=True)
    return {"alive": asyncio.run(both())}


@deed
def hurry(ask: dict[str, Any]) -> dict[str, Any]:
    """Send a kernel a signal as soon as its start was answered, whatever it is doing then; its status."""
    from jupyter_client.manager import AsyncKernelManager

    async def both() -> int | None:
        manager = AsyncKernelManager(kernel_name="isolated-python")
        manager.kernel_spec.metadata = managers[ask["like"]].kernel_spec.metadata
        start = asyncio.create_task(manager.start_kernel(cwd=ask["cwd"]))
        while manager.provisioner is None or not manager.provisioner.has_process:
            assert not start.done(), start
            await asyncio.sleep(0)
        await manager.provisioner.send_signal(ask["signal"])
        status = await asyncio.wait_for(manager.provisioner.wait(), 10)
        await start
        return status

    return {"status": asyncio.run(both())}


def refusal(ask: dict[str, Any]) -> str:
    try:
        start(ask)
    except Exception as error:
        return str(error)
    return ""


@deed
def forget(ask: dict[str, Any]) -> dict[str, Any]:
    """As whoever gives a kernel up."""
    from isolated_python.engine import client

    return client.current().ask("forget", kernel=ask["id"]).result(10)


def can_wait(manager: KernelManager) -> bool:
    """Whether a pool has such kernels: of our own program, with a workspace that can come later, and no mounts."""
    from isolated_python.engine import interpreters
    from isolated_python.errors import IsolatedPythonError
    from isolated_python.policy import sources

    config = manager.kernel_spec.metadata["kernel_provisioner"].get("config", {})
    if not isinstance(config.get("profile", ""), str):  # the start itself will say so
        return False
    try:
        overrides = [("the test", config["overrides"])] if config.get("overrides") else []
        files = sources.load(config.get("profile", "standard"), overrides).profile.files
    except IsolatedPythonError:  # and this, too
        return False
    program = [sys.executable if word == "python" else word for word in manager.kernel_spec.argv]
    return interpreters.is_ours(program) and not files.mounts and files.workspace != "copy-on-write"


def prime(like: KernelManager, ask: dict[str, Any]) -> None:
    """Start one of the same kind and end it, and wait until another of that kind stands."""
    known = [kernel["kernel"] for kernel in waiting()]
    first = KernelManager(kernel_name=like.kernel_name)
    first.kernel_spec.metadata = like.kernel_spec.metadata
    first.start_kernel(cwd=ask["cwd"], **ask.get("arguments", {}))
    first.shutdown_kernel(now=True)
    deadline = time.monotonic() + 30
    while all(kernel["kernel"] in known for kernel in waiting()):
        assert time.monotonic() < deadline, "no kernel stands ready"


def waiting() -> list[dict[str, Any]]:
    return [kernel for kernel in sandboxes() if kernel["state"] == "waiting"]


def sandboxes() -> list[dict[str, Any]]:
    from isolated_python.engine import client, places

    found: list[dict[str, Any]] = client.current(places.service("auto")).ask("list").result(10)["kernels"]
    return found


@deed
def run(ask: dict[str, Any]) -> dict[str, Any]:
    client = clients[ask["name"]]
    running[ask["name"]] = client.execute(ask["code"], allow_stdin="answer" in ask)
    if "answer" in ask:
        client.get_stdin_msg(timeout=30)
        client.input(ask["answer"])
    return rest(ask)


@deed
def rest(ask: dict[str, Any]) -> dict[str, Any]:
    """What the running cell says from here on, until it ends, or until `until` is among it."""
    client, manager, asked = clients[ask["name"]], managers[ask["name"]], running[ask["name"]]
    found: list[str] = []
    status = "ok"
    deadline = time.monotonic() + ask.get("timeout", 60)
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=1)
        except queue.Empty:
            if not manager.is_alive():
                return {"text": "".join(found), "status": "dead"}
            continue
        if message["parent_header"].get("msg_id") != asked:
            continue
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                found.append(content["text"])
                if ask.get("until") and ask["until"] in "".join(found):
                    return {"text": "".join(found), "status": "running"}
            case "execute_result" | "display_data":
                found.append(content["data"].get("text/plain", ""))
            case "error":
                status = "error"
                found.append("\n".join(content["traceback"]))
            case "status" if content["execution_state"] == "idle":
                return {"text": "".join(found), "status": status}
    replies = [client.get_shell_msg() for _ in iter(client.shell_channel.msg_ready, False)]
    replied = any(reply["parent_header"].get("msg_id") == asked for reply in replies)
    doings = doing(manager.provisioner.pid)
    return {"text": "".join(found), "status": "timeout", "replied": replied, "doing": doings}


@deed
def hear_out(ask: dict[str, Any]) -> dict[str, Any]:
    """Read what other clients' cells have published, to the end.

    Who does not read while others ask a thousand times loses what comes next: of the next cell, too. zmq_socket(3), PUB
    """
    with contextlib.suppress(queue.Empty):
        while True:
            clients[ask["name"]].get_iopub_msg(timeout=0.5)
    return {}


def doing(pid: int) -> list[str]:
    """What a sandbox is at that does not answer: each thread's state, what it waits for, and in which system call."""
    found = []
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                said = [(thread / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
                state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
                found.append(f"{thread.name} of {process.pid}: {state} {' '.join(said)}")
    return found


@deed
def asked(ask: dict[str, Any]) -> dict[str, Any]:
    """The id of the cell that was run last."""
    return {"msg_id": running[ask["name"]]}


@deed
def send(ask: dict[str, Any]) -> dict[str, Any]:
    """A request on shell, and what iopub says because of it. Of texts beyond 1 MB only size and digest are told."""
    client = clients[ask["name"]]
    request = client.session.msg(ask["type"], ask["content"])
    client.shell_channel.send(request)
    heard: list[Any] = []
    while True:
        message = client.get_iopub_msg(timeout=ask.get("timeout", 60))
        if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "status" and content["execution_state"] == "idle":
            return {"heard": heard}
        if len(content.get("text", "")) > 1_000_000:
            content["text"] = digest(content["text"].encode())
        heard.append([kind, content, [digest(buffer) for buffer in message["buffers"]]])


@deed
def request(ask: dict[str, Any]) -> dict[str, Any]:
    """A request on any channel, and the content of its reply."""
    client = clients[ask["name"]]
    channel = getattr(client, f"{ask['channel']}_channel")
    asked = client.session.msg(ask["type"], ask["content"])
    asked["header"].update(ask.get("header", {}))
    channel.send(asked)
    while True:
        reply = channel.get_msg(timeout=ask.get("timeout", 30))
        if reply["parent_header"].get("msg_id") == asked["header"]["msg_id"]:
            return {"content": reply["content"]}


@deed
def connect(ask: dict[str, Any]) -> dict[str, Any]:
    manager = managers[ask["as"]] = managers[ask["name"]]
    client = clients[ask["as"]] = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    return {}


def digest(data: Any) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


@deed
def restart(ask: dict[str, Any]) -> dict[str, Any]:
    managers[ask["name"]].restart_kernel(now=ask.get("now", False))
    if ask.get("wait", True):
        clients[ask["name"]].wait_for_ready(timeout=60)
    return {"pid": managers[ask["name"]].provisioner.pid}


@deed
def ready(ask: dict[str, Any]) -> dict[str, Any]:
    clients[ask["name"]].wait_for_ready(timeout=20)
    return {}


@deed
def interrupt(ask: dict[str, Any]) -> dict[str, Any]:
    managers[ask["name"]].interrupt_kernel()
    return {}


@deed
def interrupt_as_all_ends(ask: dict[str, Any]) -> dict[str, Any]:
    """Interrupt a kernel whose supervisor ends before it answers."""
    provisioner = managers[ask["name"]].provisioner

    async def interrupt() -> None:
        os.kill(provisioner._client.pid, signal.SIGSTOP)
        asked = asyncio.ensure_future(provisioner.send_signal(signal.SIGINT))
        await asyncio.wait([asked], timeout=0)
        os.kill(provisioner._client.pid, signal.SIGKILL)
        await asked

    asyncio.run(interrupt())
    return {}


@deed
def stop(ask: dict[str, Any]) -> dict[str, Any]:
    clients.pop(ask["name"]).stop_channels()
    managers.pop(ask["name"]).shutdown_kernel(now=ask.get("now", False))
    return {}


@deed
def lose(ask: dict[str, Any]) -> dict[str, Any]:
    """Forget a kernel without a word to its provisioner, as a server does after the fifth restart that failed."""
    clients.pop(ask["name"]).stop_channels()
    managers.pop(ask["name"])
    gc.collect()
    return {}


@deed
def info(ask: dict[str, Any]) -> dict[str, Any]:
    """What a provisioner says of its kernel, and what another says who was told that."""
    manager = managers[ask["name"]]
    told = asyncio.run(manager.provisioner.get_provisioner_info())
    another = type(manager.provisioner)(kernel_id="", kernel_spec=manager.kernel_spec, parent=None)
    asyncio.run(another.load_provisioner_info(json.loads(json.dumps(told, default=bytes.decode))))
    again = asyncio.run(another.get_provisioner_info())
    return {
        name: [repr(one.get(name)) for one in (told, again)] for name in ("kernel_id", "pid", "name", "prefix", "cwd")
    }


@deed
def alive(ask: dict[str, Any]) -> dict[str, Any]:
    return {"alive": managers[ask["name"]].is_alive()}


@deed
def ended(ask: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a kernel, as the supervisor tells it."""
    kernel = managers[ask["name"]].provisioner._kernel
    return {"status": kernel.ended.result(10), "reason": kernel.reason}


@deed
def logged(ask: dict[str, Any]) -> dict[str, Any]:
    return {"text": log.getvalue()}


@deed
def identities(ask: dict[str, Any]) -> dict[str, Any]:
    """Before the first kernel: where this server's supervisor will look for free uids."""
    from isolated_python.engine import places

    places.IDENTITIES = ask["folder"]
    return {}


@deed
def supervisor(ask: dict[str, Any]) -> dict[str, Any]:
    from isolated_python.engine import client

    found = client.current()
    found.hello.result(30)
    return {"pid": found.pid, "folder": found.folder}


@deed
def listed(ask: dict[str, Any]) -> dict[str, Any]:
    """What the supervisor tells of a kernel, as `jupyter isolated list` shows it."""
    from isolated_python.engine import client

    kernels = client.current().ask("list").result(10)["kernels"]
    return next(kernel for kernel in kernels if kernel["kernel"] == managers[ask["name"]].kernel_id)


@deed
def spares(ask: dict[str, Any]) -> dict[str, Any]:
    return {"names": [kernel["kernel"] for kernel in waiting()]}


@deed
def connection(ask: dict[str, Any]) -> dict[str, Any]:
    """Where a client connects to a kernel, and with which key."""
    info = managers[ask["name"]].get_connection_info()
    return {**info, "key": info["key"].decode()}


for line in sys.stdin:
    ask = json.loads(line)
    try:
        answer = deeds[ask.pop("do")](ask)
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
