"""
The zygote: a process that has imported everything a kernel needs, and forks.

It holds no secret, no network and no right; it has one task, one socket and no open file.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from typing import Any

from isolated_python.errors import LaunchError
from isolated_python.launcher import child
from isolated_python.layers.step import Descriptors
from isolated_python.linux import heap, packets, process

CONTROL = 3
PAUSE = 100  # milliseconds without a request, after which it imports something more
GRANTED = "sandbox.json"  # beside the connection file: what the guard of a foreign environment tells


def main() -> None:
    """Serve forks until the supervisor goes. argv: modules to import ahead; none where it only executes."""
    control = socket.socket(fileno=CONTROL)
    control.set_inheritable(False)
    program: child.Program = execute_program
    later: tuple[str, ...] = ()
    gc.disable()  # see spawn.program
    if sys.argv[1:]:
        from isolated_python.launcher import kernel

        program, later = kernel.run, kernel.LATER
        for name in sys.argv[1:]:
            _preload(name)
        kernel.prepare(lambda: packets.send(control, {"event": "soon"}))
    _end_threads()
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the supervisor may go at any time
        packets.send(control, {"event": "ready"})
        if _prepare(control, program, later):
            while serve(control, program):
                pass


def _prepare(control: socket.socket, program: child.Program, later: tuple[str, ...]) -> bool:
    """Do, bit by bit, what no kernel needs to begin, as long as nobody asks. False: the supervisor has gone."""
    asked = select.poll()
    asked.register(control, select.POLLIN)
    for name in later:
        while asked.poll(PAUSE):
            if not serve(control, program):
                return False
        _preload(name)
    if later:
        try:
            share()
        except Exception as error:  # nor is this a promise
            sys.stderr.write(f"sharing what is imported failed: {error!r}\n")
        packets.send(control, {"event": "prepared"})
    return True


def _preload(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # a preload is a head start, not a promise
        sys.stderr.write(f"preloading {name} failed: {error}\n")


def share() -> None:
    """Make all that is imported ready to be shared, once: a child has a page of its own for each that it writes to.

    What it calls lies together, and in what it shares there are no gaps to put something new into. The cache of
    attributes is empty: it counts a reference to each name that it holds, so who puts another name in its place writes
    to both. And nobody looks for garbage here.
    """
    from isolated_python.launcher import kernel, order

    _end_threads()
    kernel.note_modules()
    order.put_together()
    sys._clear_type_cache()
    heap.fill_gaps()
    gc.freeze()


def _end_threads() -> None:
    """Fork once, in vain: libraries that can live with fork(2) end their threads for it, and start them when needed.

    OpenBLAS, which numpy loads, is one: pthread_atfork(3). Our own forks are system calls of which libc knows nothing.
    """
    if _tasks() == 1:
        return
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def serve(control: socket.socket, program: child.Program) -> bool:
    """One fork. False: the supervisor has gone."""
    order, descriptors = packets.receive(control)
    if order is None:
        return False
    channel = socket.socket(fileno=descriptors[0])
    try:
        tasks = _tasks()
        if tasks != 1:
            raise LaunchError(f"the zygote has {tasks} threads: one of the preloaded modules started some")
        # CLONE_PARENT: the sandbox is the supervisor's child, not ours, and so outlives us.
        pid = process.fork(int(order["namespaces"]) | process.CLONE_PARENT)
    except (OSError, LaunchError) as error:
        child.report(channel, error)
        pid = -1
    if pid == 0:
        control.close()
        child.run(channel, program)
    channel.close()
    packets.send(control, {"event": "forked", "kernel": order["kernel"], "pid": pid})
    return True


def execute_program(order: dict[str, Any], descriptors: Descriptors) -> None:
    """Become the program that a kernelspec names. Never returns."""
    os.chdir(order["cwd"])
    if order["connection"] is not None:
        path, text = order["connection"]
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        with open(f"{os.path.dirname(path)}/{GRANTED}", "w") as file:
            json.dump(order["granted"], file)
    os.execvpe(order["argv"][0], order["argv"], order["environment"])
