"""
What a zygote is without a sandbox: a process that has imported and built all that ours has, and forks kernels.

One request a line, {"file": connection file, "cwd": folder}; the answer is the pid of a kernel that listens. Its argv
are the modules that it imports ahead. As little else as possible: a cold start waits for this.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHANNELS = {"shell": "shell", "iopub": "iopub", "stdin": "stdin-channel", "control": "control", "hb": "hb"}


def main() -> None:
    gc.disable()
    os.environ["JPY_PARENT_PID"] = "1"
    os.environ["IPYTHONDIR"] = folder = tempfile.mkdtemp()
    for name in sys.argv[1:]:
        importlib.import_module(name)
    from isolated_python.launcher import application, kernel, zygote

    kernel.prepare(lambda: None)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    shared = False
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        found = dict(_listen(json.loads(Path(order["file"]).read_text())))
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.chdir(order["cwd"])
            application.IsolatedKernelApp.listeners = {name: one.detach() for name, one in found.items()}
            app = application.IsolatedKernelApp.instance()
            app.profile_dir._location_isset = False  # one of its own, as in a sandbox
            app.profile_dir.location = f"{folder}/{os.getpid()}"
            shutil.rmtree(app.profile_dir.location)
            app.complete(order["file"], [])
            app.start()
            os._exit(0)
        for one in found.values():
            one.close()
        print(pid, flush=True)
        if not shared and not select.select([sys.stdin], [], [], zygote.PAUSE / 1000)[0]:
            zygote.share()
            shared = True
    shutil.rmtree(folder)


def _listen(info: dict[str, Any]) -> Iterator[tuple[str, socket.socket]]:
    for channel, name in CHANNELS.items():
        one = socket.socket(socket.AF_UNIX)
        one.bind(f"{info['ip']}-{info[f'{channel}_port']}")
        one.listen()
        yield name, one
