"""How long other ways to isolate a kernel take to its first reply: the stock kernel inside each of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench import Absent, Bench, Figure, stock, turns

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")
HOME = "HOME={folder}"
LABEL = "isolated-bench"

# A JPY_PARENT_PID of another pid namespace would mean to the kernel that its parent has ended, and so would it.
BUBBLEWRAP = [
    *("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"),
    *("--tmpfs", "/tmp", "--bind", "{folder}", "{folder}", "--chdir", "{folder}"),
    *("--setenv", "HOME", "{folder}", "--setenv", "JPY_PARENT_PID", "1", "--"),
]
PODMAN = [
    *("podman", "run", "--rm", "--interactive", "--network=none", "--cgroups=disabled", "--log-driver=none"),
    # Its own default is above what root may ask for where CAP_SYS_RESOURCE is not there.
    *("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", f"--label={LABEL}"),
    *("--env", HOME, "--volume", "{folder}:{folder}", "--workdir", "{folder}"),
]
NSPAWN = [
    *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--link-journal=no", "--as-pid2"),
    *("--private-network", f"--machine={LABEL}", "--directory={folder}/rootfs"),
    *("--bind={folder}", "--chdir={folder}", f"--setenv={HOME}"),
]
# Beside cgroup v1, crun (and podman, which starts it) refuses a v2 mount with controllers: there it does not see that.
UNIFIED = "/sys/fs/cgroup/unified"
WITHOUT = ["unshare", "--mount", "sh", "-c", f'umount {UNIFIED} && exec "$0" "$@"']
TOOLS = {
    "bubblewrap": "bwrap",
    "crun": "crun",
    "runc": "runc",
    "podman": "podman",
    "systemd-nspawn": "systemd-nspawn",
    "gVisor": "runsc",
}
MORE = {"crun": ["--cgroup-manager=disabled"], "gVisor": ["--network=none", "--host-uds=all", "--ignore-cgroups"]}
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
            try:
                _starts(bench, figure, tool)
            except Absent as reason:
                words = bench.log.read_text(errors="replace").split("\n")
                raise Absent(f"{reason}; last words: {next(filter(None, reversed(words)), 'none')}") from None
            finally:
                _remove(tool, bench.folder)


def _starts(bench: Bench, figure: Figure, tool: str) -> None:
    argv, files = command(tool, bench.folder)
    if tool in ("crun", "podman") and os.path.ismount(UNIFIED):
        argv = [*WITHOUT, *argv]
    with bench.servers("stock", tool) as servers:
        for number in bench.rounds(f"starts in {tool}", 8, 3):
            for kind, server in turns(servers, number):
                how = {} if kind == "stock" else {"argv": argv, "files": files}
                took = server.ask("start", name="a", spec="stock", transport="ipc", **how)
                if number:  # the first finds nothing in memory
                    bench.note(figure.name, kind, took)
                server.ask("stop", names=["a"], now=False)


def _remove(tool: str, folder: Path) -> None:
    """Containers that were killed together with who started them are still known, and have cgroups."""

    def told(*words: str) -> str:
        return subprocess.run(words, check=False, capture_output=True, text=True, timeout=20).stdout

    if tool == "podman":
        for one in told("podman", "ps", "--all", "--quiet", f"--filter=label={LABEL}").split():
            told("podman", "rm", "--force", "--time=0", one)
    for state in (folder / tool).glob("*"):
        told(TOOLS[tool], f"--root={folder / tool}", "delete", "--force", state.name)


def command(tool: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """What starts a kernel in it, and the files that it needs beside the connection file. {folder}: that place."""
    kernel = stock("{folder}/connection.json")
    shown = [*(path for path in SYSTEM if os.path.isdir(path)), *outside(sys.prefix, sys.base_prefix)]
    if tool == "bubblewrap":
        return [*BUBBLEWRAP, *kernel], {}
    if tool == "systemd-nspawn":
        binds = [f"--bind-ro={path}" for path in shown]
        return [*NSPAWN, *binds, "--", *kernel], {"rootfs/usr/.keep": ""}
    if tool == "podman":
        root = folder / "root"
        root.mkdir(exist_ok=True)
        volumes = [word for path in shown for word in ("--volume", f"{path}:{path}:ro")]
        return [*PODMAN, *volumes, "--rootfs", str(root), *kernel], {}
    run = [TOOLS[tool], *MORE.get(tool, ()), f"--root={folder / tool}", "run", "--bundle", "{folder}", "{name}"]
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
