"""What attackers take too much of, and what they leave running: targets that count and look afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
from isolated_python.policy.profile import MiB

from tests.escapes.places import Said
from tests.escapes.targets import WAITS, Service, Target, comes_true, stands_still

# A kernel with little, so that an attack need not ask for much.
LITTLE = {"resources": {"memory": "192 MiB", "tmp": "16 MiB", "shm": "16 MiB"}}
MOST_MEMORY, MOST_SCRATCH = 192 * MiB, 16 * MiB
FEW = {"resources": {"processes": 64}}


class Taken(Target):
    """Something of which so much was granted, `most`. The harm: the attacker had more of it at one time."""

    def harm(self, said: Said) -> str:
        most = self.attack.facts["most"]
        return f"it had {said.loot}, and {most} is the most" if float(said.loot or 0) > most else ""


class OnDisk(Taken):
    """A file in the workspace. The harm: it has grown beyond what one file may be, whoever says so."""

    def prepare(self) -> None:
        self.path = self.place.workspace("attacker" if self.inside else "outside") / f"large-{secrets.token_hex(4)}"
        self.facts = {"name": self.path.name}

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def harm(self, said: Said) -> str:
        size = self.path.stat().st_size if self.path.exists() else 0
        return f"the file has {size} bytes" if size > self.attack.facts["most"] else ""


class Survivor(Target):
    """Whoever has a word of ours on its command line. The harm: it runs although the kernel has ended."""

    def prepare(self) -> None:
        self.facts = {"word": f"survivor-{self.token}"}

    def _found(self) -> list[int]:
        """Read afresh: psutil keeps what it knew of a pid, and pids come again."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if self.facts["word"].encode() in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def harm(self, said: Said) -> str:
        assert not any(self.attack.name in key for key in self.place.running), "the kernel still runs"
        # A program that has just been started shows its words a moment later.
        there = comes_true(lambda: bool(self._found()), 0 if self.inside else 10)
        return f"{len(self._found())} processes outlived it" if there else ""

    def remove(self) -> None:
        for _ in range(100):  # some start others when they die
            left = self._found()
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            if not left:
                return
        raise AssertionError(f"left running: {left}")


class ProcessOne(Target):
    """The process that keeps an attacker's sandbox; for the control, one of its owner's. The harm: it stands still."""

    def prepare(self) -> None:
        if self.inside:
            self.place.kernel("attacker")
            self.process = psutil.Process(self.place.pids["attacker"])
            # Without a pid namespace, process 1 would be the machine's.
            self.facts = {"pid": self.process.pid if self.place.without == "pid" else 1}
        else:
            self.control = self.place.start([sys.executable, "-I", "-S", "-c", WAITS], stdin=subprocess.PIPE)
            self.process = psutil.Process(self.control.pid)
            self.facts = {"pid": self.control.pid}

    def harm(self, said: Said) -> str:
        if not comes_true(lambda: self._ended() or stands_still(self.process), 0.2 if self.inside else 10):
            return ""
        if self._ended():
            return "" if self.inside else "it ended"  # with it everything in the sandbox, which is all that it keeps
        return "it was stopped"

    def _ended(self) -> bool:
        return not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE

    def remove(self) -> None:
        if not self.inside:
            self.control.send_signal(signal.SIGKILL)
            self.control.communicate()


class Caller(Target):
    """Somebody on the host who connects to a port, again and again. The harm: the attacker met them."""

    def prepare(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.facts = {"port": free.getsockname()[1], "name": f"isolated-{secrets.token_hex(6)}"}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._call, daemon=True)
        self.thread.start()

    def _call(self) -> None:
        places = ((socket.AF_INET, ("127.0.0.1", self.facts["port"])), (socket.AF_UNIX, "\0" + self.facts["name"]))
        while not self.over.wait(0.02):
            for family, place in places:
                with socket.socket(family) as one:
                    try:
                        one.connect(place)
                        one.sendall(self.token.encode())
                    except OSError:
                        pass

    def remove(self) -> None:
        self.over.set()
        self.thread.join()

    def harm(self, said: Said) -> str:
        return "it met a caller of the host's" if self.token in said.loot else ""


class Listed(Service):
    """A port of the host's on which somebody listens. The harm: the attacker knows."""

    def harm(self, said: Said) -> str:
        return "it was seen" if f":{self.facts['port']:04X}" in said.loot else ""


class MovedFolder(Target):
    """A folder of the workspace that its owner moves out while the attacker is in it, to beside a secret."""

    def prepare(self) -> None:
        self.home = self.place.private / f"archive-{secrets.token_hex(4)}"
        self.home.mkdir()
        (self.home / "notes.txt").write_text(self.token)
        self.folder = self.place.workspace("attacker" if self.inside else "outside") / f"moved-{secrets.token_hex(4)}"
        self.folder.mkdir(mode=0o777)
        self.place.belongs_to_owner(self.home, self.home / "notes.txt", self.folder)
        self.facts = {"folder": self.folder.name}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._move, daemon=True)
        self.thread.start()

    def _move(self) -> None:
        while not self.over.wait(0.01):
            if (self.folder / "here").exists():
                self.folder.rename(self.home / self.folder.name)
                return

    def remove(self) -> None:
        self.over.set()
        self.thread.join()
        where = self.folder if self.folder.exists() else self.home / self.folder.name
        (where / "here").unlink(missing_ok=True)
        where.rmdir()
        (self.home / "notes.txt").unlink()
        self.home.rmdir()

    def harm(self, said: Said) -> str:
        return "the secret beside it came out" if self.token in said.loot else ""


class NextKernel(Target):
    """A folder in the attacker's workspace, in which the owner starts the next kernels. The harm: one sees a secret."""

    tries = 6  # kernels that are started; a plain process is tried more often, for it costs less

    def prepare(self) -> None:
        home = bool(self.attack.facts.get("home"))
        self.secret = self.place.private if home else self.place.private / f"kept-{secrets.token_hex(4)}"
        self.secret.mkdir(exist_ok=True)
        (self.secret / "notes.txt").write_text(self.token)
        self.folder = self.place.workspace("attacker" if self.inside else "outside") / f"next-{secrets.token_hex(4)}"
        self.folder.mkdir()
        self.place.belongs_to_owner(self.secret / "notes.txt", self.folder, *([] if home else [self.secret]))
        self.facts = {"folder": self.folder.name, "secret": str(self.secret)}

    def harm(self, said: Said) -> str:
        for _ in range(self.tries if self.inside else 40):
            if self.token in (self._in_a_kernel() if self.inside else self._in_a_process()):
                return "what was started in that folder was given another"
        return ""

    def _in_a_process(self) -> str:
        code = "import os; os.chdir(os.sys.argv[1]); print(open('notes.txt').read())"
        return self.place.start([sys.executable, "-I", "-S", "-c", code, str(self.folder)]).communicate()[0]

    def _in_a_kernel(self) -> str:
        name = f"next-{secrets.token_hex(4)}"
        if "error" in self.place.server.refused(name, cwd=str(self.folder)):
            return ""
        try:
            return str(self.place.server.run(SEES, name)["text"])
        finally:
            self.place.server.ask("stop", name=name, now=True)

    def remove(self) -> None:
        if self.inside:
            self.place.drop("attacker")  # it may be busy exchanging
        (self.secret / "notes.txt").unlink()
        if not self.attack.facts.get("home"):
            self.secret.rmdir()
        over = self.folder.with_name(self.folder.name + "-over")
        over.touch()  # whoever exchanges them does so once more at most
        left = [self.folder, self.folder.with_name(self.folder.name + "-before")]
        for _ in range(1000):
            for path in left:
                with contextlib.suppress(OSError):
                    path.unlink() if path.is_symlink() else path.rmdir()
            if not any(map(os.path.lexists, left)):
                break
        over.unlink()


class RestartedKernel(NextKernel):
    """The same folder, in which a kernel works already; the owner restarts it."""

    tries = 1

    def prepare(self) -> None:
        super().prepare()
        self.name = f"works-{secrets.token_hex(4)}"
        if self.inside:
            self.place.kernel("attacker")
            self.place.server.start(self.name, cwd=str(self.folder))

    def _in_a_kernel(self) -> str:
        if "error" in self.place.server.ask("restart", name=self.name):
            return ""
        return str(self.place.server.run(SEES, self.name)["text"])

    def remove(self) -> None:
        if self.inside:
            self.place.server.ask("stop", name=self.name, now=True)
        super().remove()


SEES = "import os; print(open('notes.txt').read() if os.path.exists('notes.txt') else os.listdir('.'))"


class LaterStart(Target):
    """What the owner's next plain kernel would run: a start-up file in their home. The harm: it is there."""

    def prepare(self) -> None:
        self.path = self.place.private / self.attack.facts["file"]
        made = []
        for folder in reversed([one for one in self.path.parents if one.is_relative_to(self.place.private)]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        self.place.belongs_to_owner(*made)
        self.facts = {"path": str(self.path), "home": str(self.place.private)}

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def harm(self, said: Said) -> str:
        return f"{self.path} was left" if self.path.exists() else ""


class PrivateFile(Target):
    """A file in the owner's home of which everybody knows the name. The harm: its content came out."""

    def prepare(self) -> None:
        self.path = Path(self.place.private) / self.attack.facts["file"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.token)
        self.path.chmod(0o600)
        above = [
            one for one in self.path.parents if one.is_relative_to(self.place.private) and one != self.place.private
        ]
        self.place.belongs_to_owner(self.path, *above)
        self.facts = {"home": str(self.place.private), "path": str(self.path)}

    def remove(self) -> None:
        self.path.unlink()

    def harm(self, said: Said) -> str:
        return "it came out" if self.token in said.loot else ""


class HostName(Target):
    """The name of the machine. The harm: it is known."""

    def harm(self, said: Said) -> str:
        return f"the machine is called {said.loot}" if said.loot == os.uname().nodename else ""


class Program(Target):
    """A program among the packages that every kernel of this interpreter sees. The harm: it is another one now."""

    def prepare(self) -> None:
        import shutil
        import sysconfig

        self.path = Path(sysconfig.get_path("purelib")) / f"isolated_test_{secrets.token_hex(4)}"
        shutil.copyfile("/bin/cat", self.path)
        self.path.chmod(0o777)
        self.size = self.path.stat().st_size
        self.facts = {"program": str(self.path)}

    def remove(self) -> None:
        self.path.unlink()

    def harm(self, said: Said) -> str:
        return "" if self.path.stat().st_size == self.size else "it was changed"
