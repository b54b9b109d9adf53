"""The attacks of `doctor --probe`: on one's own machine, with a control for each, and harmless where they succeed."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

PASS, VOID, FAIL = "PASS", "VOID", "FAIL"
COLOURS = {PASS: "green", VOID: "yellow", FAIL: "red"}

Ask = Callable[[str], str]  # a cell → what it prints
SAID = "@probe "  # before the one line that an attack prints
PATIENCE = 30.0  # seconds for a control
GONE = 5.0  # seconds after the kernel's end, in which all that was its must have gone

# Less than what the attacks on limits ask for, which is little enough for a control.
LIMITS = {"memory": "256 MiB", "processes": 64, "tmp": "16 MiB", "shm": "16 MiB"}


@dataclass(frozen=True, slots=True)
class Attack:
    wants: str
    layer: str  # what should stop it
    code: str  # finds `facts`, and leaves in `loot` what it got


WAITS = (sys.executable, "-I", "-S", "-c", "import signal; signal.pause()")

CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(x86_64, aarch64, *words):
    number = {"x86_64": x86_64, "aarch64": aarch64}[os.uname().machine]
    if (found := libc.syscall(number, *words)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return f"answer {found}"
"""

PROGRAM = """
import subprocess, sys
ran = subprocess.run([sys.executable, "-I", "-S", "-c", {program!r}], capture_output=True, text=True)
loot = ran.stdout.strip()
if not loot:
    raise OSError((ran.stderr.strip().splitlines() or [f"it ended with {{ran.returncode}}"])[-1])
"""

FORKS = """
import os, signal
children = []
try:
    for _ in range(100):
        children.append(os.fork())
        if not children[-1]:
            signal.pause()
    print("100 processes")
finally:
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""

FILLS = """
path = "/dev/shm/isolated-probe-" + facts["name"]
import os
try:
    with open(path, "wb", buffering=0) as file:
        for _ in range(24):
            if file.write(bytes(1 << 20)) < 1 << 20:
                raise OSError("No space left on device")
    loot = "24 MiB"
finally:
    os.unlink(path)
"""

SEES = """
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if pid != str(os.getpid()) and facts["token"] in open(f"/proc/{pid}/cmdline").read():
            loot = f"process {pid}"
    except OSError:
        continue
"""

STAYS = """
import os, subprocess, sys
process = subprocess.Popen(
    [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()", facts["heir"]], start_new_session=True,
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
loot = "left"
"""

CONNECTS = "import socket\none = socket.socket({0})\none.settimeout(5)\none.connect({1})\nloot = one.recv(100).decode()"

ATTACKS = (
    Attack("read a file in the home folder", "mount", "loot = open(facts['secret']).read()"),
    Attack("reach it by a link in the workspace", "mount", "loot = open(facts['name']).read()"),
    Attack("change the packages that others import", "mount", "loot = open(facts['package'], 'w').write('x')"),
    Attack("fill the machine's shared memory", "mount", FILLS),
    Attack("read the server's token", "environment", "import os; loot = os.environ.get('JUPYTER_TOKEN', '')"),
    Attack("see the processes of others", "pid", SEES),
    Attack("signal a process of the same person", "pid", "import os; os.kill(facts['pid'], 0); loot = 'sent'"),
    Attack("connect to a service of this machine", "net", CONNECTS.format("", "('127.0.0.1', facts['port'])")),
    Attack("connect to it by an abstract socket", "net", CONNECTS.format("socket.AF_UNIX", "'\\0' + facts['name']")),
    Attack(
        "find a way to the internet", "net",
        "import socket\none = socket.socket(type=socket.SOCK_DGRAM)\none.connect(('192.0.2.1', 9))\nloot = 'a route'",
    ),
    Attack("take more memory than was granted", "cgroup", PROGRAM.format(program="print(len(b'x' * (400 << 20)))")),
    Attack("start more processes than were granted", "cgroup", PROGRAM.format(program=FORKS)),
    Attack("make namespaces of its own", "seccomp", CALL + "loot = call(272, 97, 0x10000000)"),
    Attack("be traced, or trace", "seccomp", CALL + "loot = call(101, 117, 0, 0, 0, 0)"),
    Attack("use the kernel's keyrings", "seccomp", CALL + "loot = call(250, 219, 0, -3, 1)"),
    Attack("use io_uring", "seccomp", CALL + "loot = call(425, 425, 4, ctypes.create_string_buffer(256))"),
    Attack("use the kernel's ciphers", "seccomp", "import socket; loot = socket.socket(socket.AF_ALG, 5).family"),
    Attack(
        "leave a set-user-ID program behind", "seccomp",
        "import os\nopen('left', 'w').close()\nos.chmod('left', 0o4755)\nloot = oct(os.stat('left').st_mode)",
    ),
)  # fmt: skip
OUTLIVE = Attack("outlive its kernel", "pid", STAYS)


@dataclass(frozen=True, slots=True)
class Result:
    attack: str
    verdict: str
    stopped_by: str  # the layer, as far as it was stopped
    said: str  # inside


class Service:
    """Tells its secret to whoever connects."""

    def __init__(self, family: int, address: Any, secret: str) -> None:
        self._secret = secret.encode()
        self._listener = socket.socket(family)
        self._listener.bind(address)
        self._listener.listen()
        self.address = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed, or left before it was told
            while True:
                with self._listener.accept()[0] as one:
                    one.sendall(self._secret)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Stage:
    """What the attacks reach for: made for them, and taken away afterwards. `token`: the kernel's server has it."""

    def __init__(self, workspace: Path, token: str) -> None:
        self._workspace, self._token, self._heir = workspace, token, secrets.token_hex(16)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._facts = self._set_up()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _set_up(self) -> dict[str, Any]:
        name, home = f"isolated-probe-{secrets.token_hex(8)}", _folder()
        self._stack.callback(shutil.rmtree, home)
        self._stack.callback(self._end_heirs)
        (home / "secret").write_text(self._token)
        (self._workspace / name).symlink_to(home / "secret")
        self._package = Path(sysconfig.get_path("purelib")) / f"{name}.py"
        services = [Service(socket.AF_INET, ("127.0.0.1", 0), self._token)]
        services.append(Service(socket.AF_UNIX, "\0" + name, self._token))
        for service in services:
            self._stack.callback(service.close)
        victim = subprocess.Popen([*WAITS, self._token], stdin=subprocess.DEVNULL)
        self._stack.callback(victim.wait)
        self._stack.callback(victim.kill)
        return {
            "secret": str(home / "secret"), "name": name, "package": str(self._package), "token": self._token,
            "pid": victim.pid, "port": services[0].address[1], "heir": self._heir,
        }  # fmt: skip

    def attack(self, ask: Ask) -> list[Result]:
        """Make each attack: without a sandbox, then by a cell."""
        return [self._result(one, self._outside(one), said(ask(program(one, self._facts)))) for one in ATTACKS]

    def stay(self, ask: Ask) -> None:
        """Leave a process behind, in the kernel whose end comes next."""
        ask(program(OUTLIVE, self._facts))

    def outlived(self) -> Result:
        """Whether it is still there; to be asked when the kernel has ended."""
        inside = psutil.wait_procs(self._heirs(), timeout=GONE)[1]
        got = {"loot": f"{len(inside)} processes"} if inside else {"refused": "it has ended with the kernel"}
        self._end_heirs()
        self._outside(OUTLIVE)
        control = {"loot": "left"} if self._heirs() else {"refused": "it ended by itself"}
        return self._result(OUTLIVE, control, got)

    def _outside(self, attack: Attack) -> dict[str, str]:
        command = [sys.executable, "-I", "-S", "-c", program(attack, self._facts)]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "JUPYTER_TOKEN": self._token}
        try:
            ran = subprocess.run(
                command, cwd=self._workspace, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"refused": "it did not end"}
        finally:
            self._package.unlink(missing_ok=True)
        return said(ran.stdout)

    def _result(self, attack: Attack, outside: dict[str, str], inside: dict[str, str]) -> Result:
        if inside.get("loot"):
            return Result(attack.wants, FAIL, "", f"it got {self._shown(inside['loot'])}")
        words = self._shown(inside.get("refused") or "nothing is there")
        if not outside.get("loot"):
            without = self._shown(outside.get("refused") or "nothing is there")
            return Result(attack.wants, VOID, "", f"refused without a sandbox, too: {without}")
        return Result(attack.wants, PASS, attack.layer, words)

    def _shown(self, text: str) -> str:
        return " ".join(text.replace(self._token, "the secret").split())[:200]

    def _heirs(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter(["cmdline"]) if self._heir in (one.info["cmdline"] or ())]

    def _end_heirs(self) -> None:
        for one in self._heirs():
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _folder() -> Path:
    """In the home folder, where that can be written to."""
    try:
        return Path(tempfile.mkdtemp(prefix=".isolated-probe-", dir=Path.home()))
    except OSError:
        return Path(tempfile.mkdtemp(prefix="isolated-probe-"))


def tighten(stanza: dict[str, Any]) -> None:
    """Have the kernel of this kernelspec's stanza limited to LIMITS, whatever its profile grants."""
    overrides = stanza.setdefault("config", {}).setdefault("overrides", {})
    overrides["resources"] = {**overrides.get("resources", {}), **LIMITS}


def program(attack: Attack, facts: Mapping[str, Any]) -> str:
    """The attack as a program, and as a cell: it prints one line, with what it got or what refused it."""
    return f"""
import json
scope = {{"facts": {dict(facts)!r}, "loot": ""}}
try:
    exec({attack.code!r}, scope)
    answer = {{"loot": str(scope["loot"])}}
except BaseException as error:
    answer = {{"refused": f"{{type(error).__name__}}: {{error}}"}}
print("\\n" + {SAID!r} + json.dumps(answer))
"""


def said(text: str) -> dict[str, str]:
    """The answer in the output of a program; a text beside it is the attacker's."""
    line = next((one for one in text.splitlines() if one.startswith(SAID)), SAID + "{}")
    return {str(key): str(value) for key, value in json.loads(line.removeprefix(SAID)).items()}


def show(results: list[Result]) -> None:
    """The results as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Attacks from inside a kernel", title_justify="left", box=None, pad_edge=False)
    for heading in ("attack", "", "stopped by", "what it saw"):
        table.add_column(heading, overflow="fold")
    for one in results:
        verdict = Text(one.verdict, style=COLOURS[one.verdict])
        table.add_row(Text(one.attack), verdict, Text(one.stopped_by), Text(one.said))
    Console().print(table)
