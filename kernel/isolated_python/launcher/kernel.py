"""The kernel program of a zygote's child: ipykernel on listeners that it inherited."""

from __future__ import annotations

import atexit
import importlib
import os
import random
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from typing import Any

import zmq
from ipykernel.ipkernel import IPythonKernel
from ipykernel.zmqshell import ZMQInteractiveShell
from tornado.ioloop import IOLoop

from isolated_python import guard
from isolated_python.launcher import debugger
from isolated_python.launcher.application import IsolatedKernelApp, apart
from isolated_python.layers.step import Descriptors
from isolated_python.linux import packets

# What a first cell would import one by one, behind the user's back. Costs nothing in a child of the zygote.
AHEAD = (
    "IPython.core.completer",
    "IPython.core.interactiveshell",
    "IPython.core.logger",
    "IPython.core.magics",
    "asyncio",
    "comm",
    "faulthandler",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "sqlite3",
    "tornado.platform.asyncio",
)

# What one of the next cells would: the Tab key, a figure, a breakpoint. The first kernel does not wait for it.
LATER = ("IPython.core.historyapp", "IPython.core.pylabtools", "jedi", debugger.HEAVY)


def prepare(soon: Callable[[], None]) -> None:
    """In the zygote: import and build what every kernel needs, without a thread, a socket or a file.

    `soon`: called when the long part is done, which is the import of IPython.
    """
    soon()
    for name in AHEAD:
        try:
            importlib.import_module(name)
        except Exception as error:  # a head start, not a promise
            sys.stderr.write(f"importing {name} ahead failed: {error}\n")
    try:
        debugger.put_off()
        IsolatedKernelApp.instance().build()
    except Exception as error:
        sys.stderr.write(f"building a kernel ahead failed: {error!r}\n")
        _clear()
    note_modules()


def note_modules() -> None:
    """In the zygote, when all is imported: note what `%reset -s aggressive` leaves. It costs a write to each name."""
    if ZMQInteractiveShell.initialized():
        ZMQInteractiveShell.instance()._sys_modules_keys = set(sys.modules)


def run(order: dict[str, Any], descriptors: Descriptors) -> None:
    """In the child, confined: become an ipykernel. Never returns."""
    handover = descriptors.pop("handover", None)
    path = _settle(order)
    if sys.path[0] != "":
        sys.path.insert(0, "")
    IsolatedKernelApp.listeners = descriptors
    if apart(order["arguments"]):
        _clear()
    app = IsolatedKernelApp.instance()
    if app.kernel is not None:
        app.complete(path, order["arguments"])
    else:
        app.initialize(sys.argv[1:])
    if handover is None:
        guard.install(app.shell, order["granted"])
    else:
        _wait(app, socket.socket(fileno=handover))
    app.start()
    # What the interpreter would do at its end; ours is the zygote's, whose stack is no place for a kernel to return to.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(0)


def _settle(order: dict[str, Any]) -> str:
    """Take on what is one person's: environment, folder, arguments, connection file, whose path is returned."""
    _forget_the_zygote(order["environment"])
    os.chdir(order["cwd"])
    path, text = order["connection"]
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    sys.argv = ["ipykernel_launcher", "-f", path, *order["arguments"]]
    return str(path)


def _wait(app: IsolatedKernelApp, handover: socket.socket) -> None:
    """When the loop runs: answer one request of our own, then stand until somebody is handed this kernel."""
    loop = IOLoop.current()
    assert app.context is not None
    probe = app.context.socket(zmq.DEALER)
    probe.connect("inproc://shell")
    # What a first cell does for the first time is done now.
    content = {"code": "1", "silent": True, "store_history": False, "user_expressions": {}, "allow_stdin": False}

    def ask() -> None:
        app.session.send(probe, "execute_request", content)
        loop.call_later(0, listen)

    def listen() -> None:
        if probe.poll(0):
            probe.close(linger=0)
            packets.send(handover, {"event": "waiting"})
            loop.add_handler(handover.fileno(), take_over, IOLoop.READ)
        else:
            loop.call_later(0.005, listen)

    def take_over(*_: object) -> None:
        loop.remove_handler(handover.fileno())
        order, _descriptors = packets.receive(handover)
        if order is None:
            os._exit(0)
        os.unlink(app.connection_file)
        app.settle(_settle(order))
        guard.install(app.shell, order["granted"])
        packets.send(handover, {"event": "taken"})
        handover.close()

    loop.add_callback(ask)


def _clear() -> None:
    """Forget what was built ahead."""
    for built in (IsolatedKernelApp, IPythonKernel, ZMQInteractiveShell):
        built.clear_instance()


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
