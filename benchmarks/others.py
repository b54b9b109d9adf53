"""How long other ways to isolate a kernel take to its first reply: the stock kernel inside each of them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from bench import Absent, Bench, Figure, stock, turns

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")
HOME = "HOME={folder}"

BUBBLEWRAP = [
    *("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
    *("--tmpfs", "/tmp", "--bind", "{folder}", "{folder}", "--setenv", "HOME", "{folder}", "--chdir", "{folder}", "--"),
]
PODMAN = [
    *("podman", "run", "--rm", "--interactive", "--network=none", "--cgroups=disabled", "--log-driver=none"),
    *("--env", HOME, "--volume", "{folder}:{folder}", "--workdir", "{folder}"),
]
TOOLS = {
    "bubblewrap": "bwrap",
    "crun": "crun",
    "runc": "runc",
    "podman": "podman",
    "gVisor": "runsc",
}
FIGURES = tuple(
    Figure(f"others.{name}", f"first reply of the stock kernel in {name}", "ms", side=name) for name in TOOLS
)


def measure(bench: Bench) -> None:
    for figure in FIGURES:
        tool = figure.side
        with bench.taking(figure.name) as wanted:
            if not wanted:
                continue
            if shutil.which(TOOLS[tool]) is None:
                raise Absent("not installed")
            if os.geteuid() != 0:
                raise Absent("as an ordinary user, each of them wants a set-up of its own")
            argv, files = command(tool, bench.folder)
            with bench.servers("stock", tool) as servers:
                for number in bench.rounds(f"starts in {tool}", 6, 1):
                    for kind, server in turns(servers, number):
                        how = {} if kind == "stock" else {"argv": argv, "files": files}
                        took = server.ask("start", name="a", spec="stock", transport="ipc", **how)
                        if number:  # the first finds nothing in memory
                            bench.note(figure.name, kind, took)
                        server.ask("stop", names=["a"])


def command(tool: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """What starts a kernel in it, and the files that it needs beside the connection file. {folder}: that place."""
    kernel = stock("{folder}/connection.json")
    shown = [*(path for path in SYSTEM if os.path.isdir(path)), *outside(sys.prefix, sys.base_prefix)]
    if tool == "bubblewrap":
        return [*BUBBLEWRAP, *kernel], {}
    if tool == "podman":
        root = folder / "root"
        root.mkdir(exist_ok=True)
        volumes = [word for path in shown for word in ("--volume", f"{path}:{path}:ro")]
        return [*PODMAN, *volumes, "--rootfs", str(root), *kernel], {}
    more = ["--network=none", "--host-uds=all", "--ignore-cgroups", "--root={folder}/state"] if tool == "gVisor" else []
    run = [TOOLS[tool], *more, "run", "--bundle", "{folder}", "{name}"]
    return run, {"config.json": json.dumps(bundle(kernel, shown)), "rootfs/.keep": ""}


def outside(*places: str) -> list[str]:
    """Those that do not lie in a folder of the system."""
    return [path for path in dict.fromkeys(places) if not path.startswith(tuple(f"{top}/" for top in SYSTEM))]


def bundle(kernel: list[str], shown: list[str]) -> dict[str, object]:
    """A container as the Open Container Initiative's runtime specification 1.0 tells it: everything new, no network."""
    fixed = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "noexec"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
    ]
    binds = [_bind(path, "ro") for path in shown] + [_bind("{folder}", "rw")]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": "kernel",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": kernel, "cwd": "{folder}", "env": ["PATH=/usr/bin:/bin", HOME],
            "noNewPrivileges": True, "capabilities": {},
        },
        "mounts": fixed + binds,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
    }  # fmt: skip


def _bind(path: str, mode: str) -> dict[str, object]:
    return {"destination": path, "type": "bind", "source": path, "options": ["rbind", mode]}
