"""What attackers reach for: made by the test, harmless, and able to tell whether harm was done to it.

A target is made afresh for each run, by the owner of the server, so the control reaches it with that owner's rights.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from tests.escapes.attack import ROOT, helper

if TYPE_CHECKING:
    from tests.escapes.attack import Attack
    from tests.escapes.places import Place, Said

WAITS = "import sys; sys.stdin.read()"  # a process that ends when its maker does


def comes_true(question: Callable[[], bool], seconds: float) -> bool:
    """A signal that was sent has been delivered; what it does may take a moment, more of it on a busy machine."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not question():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.01)
    return True


def stands_still(process: psutil.Process) -> bool:
    return process.is_running() and process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class Target:
    """The base of all targets: used by `with`; `facts` is what the attacker knows of it."""

    def __init__(self, place: Place, attack: Attack, *, inside: bool) -> None:
        self.place, self.attack, self.inside = place, attack, inside
        self.token = secrets.token_hex(16)
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.prepare()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def prepare(self) -> None:
        """Put it in place."""

    def remove(self) -> None:
        """Take it away."""

    def harm(self, said: Said) -> str:
        """What harm was done, in a sentence; empty if none."""
        raise NotImplementedError


class Secret(Target):
    """A text that only the owner of the server may know. The harm: the attacker knows it."""

    def prepare(self) -> None:
        self.path = self.place.private / f"secret-{secrets.token_hex(4)}" / "notes.txt"
        self.path.parent.mkdir(mode=0o700)
        self.path.write_text(self.token)
        self.path.chmod(0o600)
        self.place.belongs_to_owner(self.path.parent, self.path)
        status = self.path.stat()
        self.facts = {"path": str(self.path), "name": self.path.name, "inode": status.st_ino}
        if self.attack.control == ROOT:
            handle, generation = handle_of(str(self.path))
            self.facts |= {"handle": handle, "generation": generation}

    def remove(self) -> None:
        for path in (self.path, self.path.parent):
            path.unlink() if path == self.path else path.rmdir()

    def harm(self, said: Said) -> str:
        return "the secret came out" if self.token in said.loot else ""


class Descriptor(Secret):
    """The folder of a secret, open in the server and inheritable; the control is given it in the same way."""

    def prepare(self) -> None:
        self.path = self.place.private / "open" / "notes.txt"
        self.token = self.place.token
        self.facts = {"name": self.path.name}

    def remove(self) -> None:
        """The server has it open for as long as it runs."""


class HostFile(Target):
    """A file of the host's own. The harm: the attacker has its content."""

    def harm(self, said: Said) -> str:
        path = self.attack.facts["file"]
        return f"{path} came out" if said.loot and said.loot == Path(path).read_text() else ""


class SharedFile(Target):
    """A file among the packages that every kernel of this interpreter sees. The harm: it changed."""

    def prepare(self) -> None:
        self.path = Path(sysconfig.get_path("purelib")) / f"isolated_test_{secrets.token_hex(4)}.py"
        self.path.write_text(self.token)
        self.path.chmod(0o666)
        self.facts = {"shared": str(self.path)}

    def remove(self) -> None:
        self.path.unlink()

    def harm(self, said: Said) -> str:
        return "" if self.path.read_text() == self.token else f"it is now {self.path.read_text()[:100]!r}"


class Loot(Target):
    """Something of Linux itself. The harm: the attacker got anything but nothing."""

    def harm(self, said: Said) -> str:
        return f"it got {said.loot[:300]}" if said.loot not in ("", "None", "False", "[]", "{}", "0") else ""


class Reached(Loot):
    """System calls. The harm: one of them got to Linux. The control must reach every one that this Linux has."""

    def harm(self, said: Said) -> str:
        names = [name for name, *_ in self.attack.facts["calls"]]
        reached = json.loads(said.loot or "[]")
        if self.inside:
            return f"Linux answered {', '.join(reached)}" if reached else ""
        missing = {*names} - {*reached} - NOT_EVERYWHERE
        return f"Linux answered {', '.join(reached)}" if reached and not missing else ""


# What a Linux can be built without, or be too old for; where it is so, the call proves nothing and costs nothing.
NOT_EVERYWHERE = {
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "iopl", "ioperm"),
    *("statmount", "listmount", "open_tree_attr", "quotactl_fd", "set_mempolicy_home_node", "modify_ldt"),
    *("futex_wake", "futex_wait", "futex_requeue", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"),
    *("mseal", "setxattrat", "getxattrat", "listxattrat", "removexattrat", "cachestat", "file_getattr", "file_setattr"),
    *(
        "sysfs",
        "ustat",
        "pkey_mprotect",
        "pkey_free",
        "pkey_alloc",
        "map_shadow_stack",
        "uselib",
        "ARCH_GET_UNTAG_MASK",
        "ARCH_SET_CPUID",
    ),
    *("PR_GET_TID_ADDRESS", "PR_GET_SPECULATION_CTRL", "acct", "swapon", "swapoff", "landlock_restrict_self"),
}


class Untouched(Target):
    """A file of the owner's that must not change. The harm: it did."""

    def prepare(self) -> None:
        self.path = self.place.private / f"untouched-{secrets.token_hex(4)}"
        self.path.write_text(self.token)
        self.place.belongs_to_owner(self.path)
        self.facts = {"path": str(self.path), "token": self.token}

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def harm(self, said: Said) -> str:
        found = self.path.read_text() if self.path.exists() else "(removed)"
        return "" if found == self.token else f"the file is now {found[:100]!r}"


class Victim(Target):
    """A process of the owner's that does nothing. The harm: it ended, stopped, or was told to run differently."""

    def prepare(self) -> None:
        self.process = self.place.start([sys.executable, "-I", "-S", "-c", WAITS, self.token], stdin=subprocess.PIPE)
        self.seen = psutil.Process(self.process.pid)
        self.before = self._state()
        self.facts = {"pid": self.process.pid}

    def _state(self) -> dict[str, object]:
        pid = self.process.pid
        return {
            "nice": self.seen.nice(),
            "ionice": self.seen.ionice(),
            "cores": os.sched_getaffinity(pid),
            "class": os.sched_getscheduler(pid),
            "limits": Path(f"/proc/{pid}/limits").read_text(),
            "badness": Path(f"/proc/{pid}/oom_score_adj").read_text(),
        }

    def _traced(self) -> bool:
        try:
            return "TracerPid:\t0\n" not in Path(f"/proc/{self.process.pid}/status").read_text()
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        finally:
            self.process.communicate()

    def harm(self, said: Said) -> str:
        if self.token in said.loot:
            return "it was seen"
        if self._traced():
            return "it is traced"
        now = self._state() if self.process.poll() is None else self.before
        if now != self.before:
            return f"it has another {', another '.join(name for name in now if now[name] != self.before[name])}"
        if comes_true(lambda: self.process.poll() is not None or stands_still(self.seen), 0.2 if self.inside else 10):
            return "it was stopped" if self.process.poll() is None else f"it ended with {self.process.returncode}"
        return ""


class Service(Target):
    """A service of the host's, which tells its secret to whoever connects. The harm: it was told."""

    def listen(self) -> socket.socket:
        """The listener; it also says where, in `facts`."""
        one = socket.create_server((self.address, 0), family=self.family)
        self.facts = {"host": self.address, "port": one.getsockname()[1]}
        return one

    family, address = socket.AF_INET, "127.0.0.1"

    def prepare(self) -> None:
        self.listener = self.listen()
        self.met = 0
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer:
                self.met += 1
                try:
                    peer.sendall(self.token.encode())
                except OSError:
                    pass

    def remove(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def harm(self, said: Said) -> str:
        if self.token in said.loot:
            return "the service's secret came out"
        return "the service was reached" if self.met else ""


class Service6(Service):
    family, address = socket.AF_INET6, "::1"


class AbstractService(Service):
    def listen(self) -> socket.socket:
        name = f"isolated-test-{secrets.token_hex(6)}"
        one = socket.socket(socket.AF_UNIX)
        one.bind("\0" + name)
        one.listen()
        self.facts = {"name": name}
        return one


class PathService(Service):
    """In a folder that everybody may enter: only that it is not there can keep an attacker away."""

    def listen(self) -> socket.socket:
        path = self.place.person.home / f"service-{secrets.token_hex(4)}"
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(path))
        path.chmod(0o666)
        one.listen()
        self.facts = {"path": str(path)}
        return one

    def remove(self) -> None:
        super().remove()
        os.unlink(self.facts["path"])


class DatagramService(Service):
    """It answers every datagram with its secret."""

    def listen(self) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((self.address, 0))
        self.facts = {"host": self.address, "port": one.getsockname()[1]}
        return one

    def _serve(self) -> None:
        while True:
            data, peer = self.listener.recvfrom(100)
            if not data:
                return
            self.met += 1
            self.listener.sendto(self.token.encode(), peer)

    def remove(self) -> None:
        self.listener.sendto(b"", self.listener.getsockname())
        self.thread.join()
        self.listener.close()


class Neighbour(Target):
    """Another kernel of the same server, with a secret in its workspace, its /tmp, its memory and its environment."""

    def prepare(self) -> None:
        pid, folder = self.place.neighbour()
        self.place.text(NEIGHBOUR.format(token=self.token), "neighbour")
        self.facts = {"pid": pid, "kernel": self.place.kernel_below(pid), "folder": str(folder)}

    def harm(self, said: Said) -> str:
        return "the neighbour's secret came out" if self.token in said.loot else ""


NEIGHBOUR = """
import os, pathlib
for path in ("/mnt/workspace/secret.txt", "/tmp/secret.txt", "/home/user/secret.txt", "/dev/shm/secret.txt"):
    pathlib.Path(path).write_text({token!r})
held = open("/tmp/secret.txt")
kept = {token!r}
os.environ["SECRET"] = kept
"""


class Accomplice(Target):
    """Somebody in another kernel who wants to be heard. The harm: a word of theirs got through.

    For the control both are plain processes of the same owner.
    """

    def prepare(self) -> None:
        self.shared = Path(sysconfig.get_path("purelib")) / f"isolated_test_{secrets.token_hex(4)}.txt"
        self.shared.write_text("x" * 8192)
        self.shared.chmod(0o644)
        self.place.belongs_to_owner(self.shared)
        self.facts = {"shared": str(self.shared), "token": self.token, "number": secrets.randbelow(1 << 30) + 1}
        assert self.attack.accomplice is not None
        said = self.place.help(helper(self.attack.accomplice, self.facts), inside=self.inside)
        # The token is what the accomplice says; the attacker must hear it, not know it.
        del self.facts["token"]
        assert self.inside or said.loot, f"the accomplice of {self.attack} cannot speak even outside: {said}"

    def remove(self) -> None:
        self.place.help("", inside=self.inside)
        self.shared.unlink()

    def harm(self, said: Said) -> str:
        return "a word got through" if self.token in said.loot or said.loot == "heard" else ""


class Namespace(Target):
    """A namespace of the neighbour's; for the control, of the test's. The harm: it is shared."""

    def harm(self, said: Said) -> str:
        kind = self.attack.facts["kind"]
        other = self.place.kernel_below(self.place.neighbour()[0]) if self.inside else os.getpid()
        return f"both are in {said.loot}" if said.loot == os.readlink(f"/proc/{other}/ns/{kind}") else ""


class Memory(Target):
    """A process of the owner's with a secret in its memory, its environment and an open file without a name."""

    def prepare(self) -> None:
        environment = self.place.environment | {"SECRET": self.token}
        self.process = self.place.start(
            [sys.executable, "-I", "-S", "-c", HOLDS, self.token], stdin=subprocess.PIPE, env=environment
        )
        assert self.process.stdout is not None
        address, descriptor = map(int, self.process.stdout.readline().split())
        self.facts = {"pid": self.process.pid, "address": address, "descriptor": descriptor}

    def remove(self) -> None:
        self.process.kill()
        self.process.communicate()

    def harm(self, said: Said) -> str:
        if self.token in said.loot:
            return "the process's secret came out"
        return "its files came out" if ".so" in said.loot else ""


HOLDS = """
import ctypes, os, sys
kept = ctypes.create_string_buffer(sys.argv[1].encode())
file = os.memfd_create("kept")
os.write(file, sys.argv[1].encode())
print(ctypes.addressof(kept), file, flush=True)
sys.stdin.read()
"""


class Output(Target):
    """The socket on which another kernel publishes. The harm: it answers, or it is found."""

    def prepare(self) -> None:
        self.place.neighbour()
        folder = self.place.server.ask("supervisor")["folder"]
        # The newest is the neighbour's as well as any other's: they all lie in one folder.
        names = sorted(name for name in os.listdir(f"{folder}/clients") if name.endswith("-2"))
        self.facts = {"iopub": f"{folder}/clients/{names[0]}"}

    def harm(self, said: Said) -> str:
        return f"it got {said.loot[:200]}" if said.loot not in ("", "[]") else ""


class PathFiles(Secret):
    """A secret in a folder that all users of the machine share."""

    def prepare(self) -> None:
        self.path = Path(self.attack.facts["folder"]) / f"isolated-test-{secrets.token_hex(6)}"
        self.path.write_text(self.token)
        self.facts = {"path": str(self.path)}

    def remove(self) -> None:
        self.path.unlink()


class Terminal(Target):
    """A terminal of the owner's, into which a secret was typed."""

    def prepare(self) -> None:
        self.ours, self.theirs = os.openpty()
        path = os.ttyname(self.theirs)
        self.place.belongs_to_owner(Path(path))
        os.write(self.ours, self.token.encode() + b"\n")
        self.facts = {"path": path}

    def remove(self) -> None:
        os.close(self.ours)
        os.close(self.theirs)

    def harm(self, said: Said) -> str:
        return "what was typed came out" if self.token in said.loot else ""


class Workspace(Target):
    """The attacker's own folder. The harm: on disk there is something that lends rights to whoever meets it."""

    def prepare(self) -> None:
        folder = self.place.workspace("attacker" if self.inside else "outside")
        self.path = folder / f"left-{secrets.token_hex(4)}"
        self.facts = {"name": self.path.name}

    def remove(self) -> None:
        if self.path.is_dir():
            self.path.rmdir()
        else:
            self.path.unlink(missing_ok=True)

    def harm(self, said: Said) -> str:
        if not self.path.exists():
            return ""
        if "security.capability" in os.listxattr(self.path):
            return "a program with a capability was left"
        mode = self.path.stat().st_mode
        return f"it was left with mode {mode:o}" if mode & 0o6000 else ""


class SetUid(Target):
    """A program of root's with the set-user-ID bit, in the attacker's own folder. The harm: it ran as root."""

    def prepare(self) -> None:
        # The folder's mount may forbid such programs to everybody; then the control says so.
        self.path = self.place.workspace("attacker" if self.inside else "outside") / f"id-{secrets.token_hex(4)}"
        shutil.copyfile("/usr/bin/id", self.path)
        self.path.chmod(0o4755)
        self.facts = {"program": f"./{self.path.name}"}

    def remove(self) -> None:
        self.path.unlink()

    def harm(self, said: Said) -> str:
        return "it ran as root" if "euid=0" in said.loot or "uid=0" in said.loot else ""


class ServerToken(Target):
    """The token in the environment of the server that starts the kernels."""

    def prepare(self) -> None:
        self.token = self.place.token
        self.facts = {"server": self.place.server.process.pid}

    def harm(self, said: Said) -> str:
        return "the server's token came out" if self.token in said.loot else ""


def written(path: Path) -> int:
    """Bytes that a file takes up on disk."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def handle_of(path: str) -> tuple[str, int]:
    """The handle by which a file's system knows it, in hex, and the generation in it. name_to_handle_at(2)"""
    handle = ctypes.create_string_buffer(struct.pack("II", 128, 0), 136)
    mount = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.name_to_handle_at(-100, path.encode(), handle, ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle.raw.hex(), struct.unpack_from("I", handle.raw, 12)[0]
