"""The kernel program of a zygote's child: ipykernel on listeners that it inherited."""

from __future__ import annotations

import atexit
import importlib
import os
import random
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from typing import Any, ClassVar

import zmq
from ipykernel import heartbeat
from ipykernel.kernelapp import IPKernelApp

from isolated_python.guard import explain
from isolated_python.layers.step import Descriptors

# What a first cell would import one by one, behind the user's back. Costs nothing in a child of the zygote.
AHEAD = (
    "IPython.core.completer",
    "IPython.core.historyapp",
    "IPython.core.interactiveshell",
    "IPython.core.magics",
    "IPython.core.pylabtools",
    "asyncio",
    "comm",
    "debugpy",
    "ipykernel.debugger",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "jedi",
    "sqlite3",
)


class InheritedHeartbeat(heartbeat.Heartbeat):
    """Answers on the listener that was made before the sandbox closed."""

    listener = -1

    def _try_bind_socket(self) -> None:
        adopt(self.socket, self.listener, "hb")


class IsolatedKernelApp(IPKernelApp):
    """ipykernel, but for its sockets: they stand open already, and their paths do not exist in here."""

    listeners: ClassVar[Descriptors] = {}
    _names: Iterator[str] = iter(())

    def init_sockets(self) -> None:
        self._names = iter(("shell", "stdin-channel", "control", "iopub"))  # the order that IPKernelApp binds in
        super().init_sockets()

    def _bind_socket(self, s: Any, port: int) -> int:
        name = next(self._names)
        adopt(s, self.listeners[name], name)
        if name == "shell":
            # The debugger reaches the shell from inside, by its last endpoint.
            s.setsockopt(zmq.USE_FD, -1)
            s.bind("inproc://shell")
        return port

    def init_heartbeat(self) -> None:
        InheritedHeartbeat.listener = self.listeners["hb"]
        original, heartbeat_class = IPKernelApp.init_heartbeat, InheritedHeartbeat
        original.__globals__["Heartbeat"] = heartbeat_class
        super().init_heartbeat()


def adopt(socket: Any, listener: int, name: str) -> None:
    """Let a ZeroMQ socket listen where a descriptor listens already. zmq_setsockopt(3), ZMQ_USE_FD"""
    socket.setsockopt(zmq.USE_FD, listener)
    socket.bind(f"ipc:///run/{name}")


def prepare() -> None:
    """In the zygote: import what every kernel imports, without a thread, a socket or a file."""
    for name in AHEAD:
        try:
            importlib.import_module(name)
        except Exception as error:  # a head start, not a promise
            sys.stderr.write(f"importing {name} ahead failed: {error}\n")


def run(order: dict[str, Any], descriptors: Descriptors) -> None:
    """In the child, confined: become an ipykernel. Never returns."""
    _forget_the_zygote(order["environment"])
    os.chdir(order["cwd"])
    path, text = order["connection"]
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    sys.argv = ["ipykernel_launcher", "-f", path, *order["arguments"]]
    if sys.path[0] != "":
        sys.path.insert(0, "")
    IsolatedKernelApp.listeners = descriptors
    app = IsolatedKernelApp.instance()
    app.initialize(sys.argv[1:])
    explain.install(app.shell, order["granted"])
    app.start()
    # What the interpreter would do at its end; ours is the zygote's, whose stack is no place for a kernel to return to.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(0)


def _forget_the_zygote(environment: dict[str, str]) -> None:
    """What all children of a zygote would share otherwise: its environment and its random state."""
    os.environ.clear()  # noqa: TID251 - the kernel's own, from here on
    os.environ.update(environment)  # noqa: TID251
    random.seed()
    tempfile._name_sequence = None  # type: ignore[attr-defined]
    tempfile.tempdir = None
    uuid._node = None  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
