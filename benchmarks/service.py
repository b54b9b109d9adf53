"""
Thirty users' kernels on one service at once, while one of them runs each denial of service: the victims' figures.

    python benchmarks/service.py [--users N] [--seconds S] [--pause S] [--json FILE]

Needs root; makes users isolated-bench-0 … of this machine, and removes them. Each has a server under its own uid, as on
a hub, and one kernel. The first is the attacker; the second answers `1` again and again, and its round trips are timed
while the attacker's kernel does its worst; each of the others runs one cell meanwhile. Nothing here is a test. Times
are in milliseconds, memory in MB (PSS).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from bench import mind, sweep
from rich.console import Console
from rich.table import Table

QUOTA = '[each_user]\nkernels = 4\nmemory = "1 GiB"\nprocesses = 512\n'
GRANT = {"resources": {"memory": "512 MiB", "processes": 128, "tmp": "64 MiB", "shm": "32 MiB"}}

# What the attacker runs, each in a kernel of its own, until it is ended. Bounded by the limits that are measured here.
ATTACKS = {
    "none": "",
    "spin": "import os\nfor _ in range(8):\n  if os.fork() == 0:\n    while True: pass\nwhile True: pass",
    "fork bomb": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
    "memory": "blocks = []\nwhile True: blocks.append(bytearray(1 << 20))",
    "memory, held": "import time\nblocks = [bytearray(1 << 20) for _ in range(400)]\nwhile True: bytes(blocks[0])",
    "files": "while True:\n  try:\n    with open('/tmp/x', 'wb') as file:\n"
    "      while True: file.write(bytes(1 << 20))\n  except OSError: pass",
    "output": "while True: print('x' * 100_000)",
    "displays": "from IPython.display import display\nwhile True: display({'text/plain': 'x'}, raw=True)",
    "refused calls": "import ctypes\nlibc = ctypes.CDLL(None)\nwhile True: libc.unshare(0x10000000)",
    "threads": "import threading\nwhile True:\n  try: threading.Thread(target=threading.Event().wait).start()\n"
    "  except RuntimeError: pass",
}
if shutil.which("stress-ng"):  # of Debian
    LOADS = "--cpu 4 --vm 2 --vm-bytes 200M --fork 4 --hdd 1 --hdd-bytes 16M --switch 2 --temp-path /tmp"
    ATTACKS["stress-ng"] = f"!stress-ng --quiet --timeout 120 {LOADS}"

# A server of one user. Lines of JSON in, lines of JSON out.
SERVER = """
import json, os, sys, time
from jupyter_client.manager import KernelManager
manager = client = None
def run(code, wait=True):
    asked = client.execute(code)
    while wait and client.get_shell_msg(timeout=300)["parent_header"].get("msg_id") != asked:
        pass
for line in sys.stdin:
    ask = json.loads(line)
    began = time.perf_counter()
    if ask["do"] == "start":
        manager = KernelManager(kernel_name="isolated-python")
        stanza = {"provisioner_name": "isolated-python", "config": {"overrides": ask["overrides"]}}
        manager.kernel_spec.metadata["kernel_provisioner"] = stanza
        manager.start_kernel(cwd=os.getcwd())
        client = manager.blocking_client()
        client.start_channels()
        run("1")
    elif ask["do"] == "run":
        run(ask["code"], ask.get("wait", True))
    elif ask["do"] == "stop":
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    elif ask["do"] == "time":
        took, end = [], time.perf_counter() + ask["seconds"]
        while time.perf_counter() < end:
            one = time.perf_counter()
            run("1")
            took.append(1000 * (time.perf_counter() - one))
            time.sleep(ask["pause"])
        print(json.dumps({"took": took}), flush=True)
        continue
    print(json.dumps({"took": 1000 * (time.perf_counter() - began)}), flush=True)
"""


@contextlib.contextmanager
def account(name: str) -> Iterator[str]:
    """A user of this machine, and their home."""
    home = f"/home/{name}"
    try:
        subprocess.run(["useradd", "--system", "--no-create-home", "--home-dir", home, name], check=True)
        user = pwd.getpwnam(name)
        os.makedirs(f"{home}/course")
        for folder in (home, f"{home}/course"):
            os.chown(folder, user.pw_uid, user.pw_gid)
        yield name
    finally:
        subprocess.run(["userdel", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(home, ignore_errors=True)


class User:
    """A server of their own, under their uid."""

    def __init__(self, name: str, service: str) -> None:
        self.name = name
        account, home = pwd.getpwnam(name), f"/home/{name}"
        environment = {"PATH": "/usr/bin:/bin", "HOME": home, "LANG": "C.UTF-8", "ISOLATED_PYTHON_SERVICE": service}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            user=account.pw_uid, group=account.pw_gid, extra_groups=[], env=environment, cwd=f"{home}/course",
        )  # fmt: skip

    def ask(self, do: str, **values: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the server of {self.name} ended")
        return json.loads(line)["took"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def service() -> Iterator[tuple[subprocess.Popen[str], str]]:
    with tempfile.TemporaryDirectory(prefix="isolated-bench-", dir="/run") as folder:
        os.chmod(folder, 0o755)
        settings = Path(folder, "service.toml")
        settings.write_text(f'socket = "{folder}/service.sock"\naudit = "{folder}/audit/log"\n{QUOTA}')
        command = [sys.executable, "-m", "isolated_python", "service", "--config", str(settings)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process, f"{folder}/service.sock"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            sweep()


def pss(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return float(process.memory_full_info().pss) / 1e6
    return 0.0


def figures(took: list[float]) -> dict[str, float]:
    ordered = sorted(took)
    return {
        "round trips": len(took),
        "median": statistics.median(took),
        "p99": ordered[len(ordered) * 99 // 100],
        "worst": ordered[-1],
    }


def measure(count: int, seconds: float, pause: float) -> dict[str, Any]:
    users: list[User] = []
    with contextlib.ExitStack() as stack:
        names = [stack.enter_context(account(f"isolated-bench-{number}")) for number in range(count)]
        process, path = stack.enter_context(service())
        for name in names:
            users.append(User(name, path))
            stack.callback(users[-1].close)
        began = time.perf_counter()
        for one in users:
            one.ask("start", overrides=GRANT)
        first = [one.answer() for one in users]
        found: dict[str, Any] = {
            "users": count,
            "all ready": 1000 * (time.perf_counter() - began),
            "first reply, median": statistics.median(first),
        }
        psutil.wait_procs(psutil.Process(process.pid).children(recursive=True), timeout=3)  # who is on their way out
        below = psutil.Process(process.pid).children(recursive=True)
        supervisors = psutil.Process(process.pid).children()
        kernels = [one for one in below if one.uids().real and "zygote" in " ".join(one.cmdline())]
        found |= {
            "service": pss(psutil.Process(process.pid)),
            "supervisor, each": statistics.mean(map(pss, supervisors)),
            "all, each user": sum(map(pss, [psutil.Process(process.pid), *below])) / count,
            "processes": len(below) + 1,
            "kernels and zygotes": len(kernels),
        }
        attacker, victim, others = users[0], users[1], users[2:]
        found["attacks"] = {}
        for number, (name, code) in enumerate(ATTACKS.items()):
            print(f"{name}, {number + 1} of {len(ATTACKS)}", file=sys.stderr)
            if code:
                attacker.ask("run", code=code, wait=False)
                attacker.answer()
            victim.ask("time", seconds=seconds, pause=pause)
            began = time.perf_counter()
            for one in others:  # each of the others has its turn meanwhile
                one.ask("run", code="sum(range(100_000))")
            for one in others:
                one.answer()
            turns = 1000 * (time.perf_counter() - began)
            one_of = found["attacks"][name] = {**figures(victim.answer()), "all others": turns}
            one_of["p99, quiet = 1"] = one_of["p99"] / found["attacks"]["none"]["p99"]
            attacker.ask("stop")
            attacker.answer()
            attacker.ask("start", overrides=GRANT)
            found["attacks"][name]["attacker's next kernel"] = attacker.answer()
    return found


def show(found: dict[str, Any]) -> None:
    console = Console()
    plain = Table("what", "figure", box=None)
    for name, value in found.items():
        if name != "attacks":
            plain.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    console.print(plain)
    columns = ("round trips", "median", "p99", "p99, quiet = 1", "worst", "all others", "attacker's next kernel")
    table = Table("one of them runs", *columns, box=None)
    for name, values in found["attacks"].items():
        table.add_row(
            name,
            *(f"{values[column]:.0f}" if column == "round trips" else f"{values[column]:.1f}" for column in columns),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between an answer and the next cell")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    mind()
    found = measure(asked.users, asked.seconds, asked.pause)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2))
    show(found)


if __name__ == "__main__":
    main()
