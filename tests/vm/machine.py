"""
A virtual machine under software emulation: booted once, then brought back from a snapshot in seconds.

It reaches nobody, and only we reach it: its one network card forwards a port of this machine's loopback to its sshd.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vm import image

SNAPSHOT = "ready"
BOOT = 600.0  # seconds; a quiet machine needs sixty
ANSWER = 300.0  # seconds that saving or loading the whole memory may take
PROCESSORS, MEMORY = 2, "2048"


class Machine:
    """One running machine. Its end is the end of this process, whatever that process dies of."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._serial, serial = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        self._monitor.settimeout(ANSWER)
        self._stands = threading.Event()
        booted = folder / "booted"
        say("Waking the virtual machine …" if booted.exists() else "Booting the virtual machine, once …")
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *self._hardware(serial, monitor)]
        with open(folder / "qemu.log", "w") as log:
            self.process = subprocess.Popen(
                [*command, *(["-loadvm", SNAPSHOT] if booted.exists() else [])],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(serial.fileno(), monitor.fileno()),
            )  # fmt: skip
        serial.close()
        monitor.close()
        self._answers = self._monitor.makefile("r")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self._answer("QMP")
            self.ask("qmp_capabilities")
            if not booted.exists():
                assert self._stands.wait(BOOT), f"the machine does not stand; see {folder}/serial.log"
                self.monitor(f"savevm {SNAPSHOT}")
                booted.touch()
            found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", self.monitor("info usernet"))
            assert found, "qemu forwards no port"
            self.port = int(found[1])
        except BaseException:
            self.close()
            raise

    def _hardware(self, serial: socket.socket, monitor: socket.socket) -> list[str]:
        options = {
            "accel": "tcg,thread=multi",
            "cpu": "max",
            "smp": str(PROCESSORS),
            "m": MEMORY,
            "display": "none",
            "kernel": str(self.folder / "vmlinuz"),
            "initrd": str(self.folder / "initrd.img"),
            "append": "root=/dev/vda rw console=ttyS0 quiet mitigations=off",
            "drive": f"file={self.folder}/disk.qcow2,if=virtio,cache=unsafe",
            "nic": "user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:0-:22",
            "serial": "chardev:line",
            "mon": "chardev=monitor,mode=control",
        }
        more = ["-nodefaults", "-no-user-config", "-device", "virtio-rng-pci"]
        for name, end in (("line", serial), ("monitor", monitor)):
            more += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        return more + [word for name, value in options.items() for word in (f"-{name}", value)]

    def _listen(self) -> None:
        """Keep what the machine says on its serial line, and hear when it stands."""
        with (
            self._serial,
            self._serial.makefile("rb") as lines,
            open(self.folder / "serial.log", "wb", buffering=0) as log,
        ):
            for line in lines:
                log.write(line)
                if image.READY.encode() in line:
                    self._stands.set()

    # ---- the monitor: one JSON object a line, docs/interop/qmp-spec of qemu ----------------------------------------

    def ask(self, verb: str, **arguments: Any) -> Any:
        self._monitor.sendall(json.dumps({"execute": verb, "arguments": arguments}).encode() + b"\n")
        return self._answer("return")

    def monitor(self, line: str) -> str:
        """A command of the monitor for people; what it says, which is nothing where savevm succeeds."""
        said = str(self.ask("human-monitor-command", **{"command-line": line}))
        assert not said.startswith("Error"), said
        return said

    def _answer(self, key: str) -> Any:
        for line in self._answers:
            message = json.loads(line)
            assert "error" not in message, message
            if key in message:
                return message[key]
        raise AssertionError(f"qemu has ended: {(self.folder / 'qemu.log').read_text().strip()}")

    # ---- inside ----------------------------------------------------------------------------------------------------

    def ssh(self, user: str, command: list[str], *more: str) -> list[str]:
        """The command line that runs `command` inside, as `user`, in a session of its own; `more`: options of ssh."""
        settings = {
            "IdentityFile": self.folder / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "HostKeyAlias": image.HOST,
            "BatchMode": "yes",
            "ConnectTimeout": 120,
            "LogLevel": "ERROR",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", *options, *more, "-p", str(self.port), f"{user}@127.0.0.1", shlex.join(command)]

    def run(self, user: str, *command: str, stdin: bytes = b"", timeout: float = 600) -> str:
        """Run a command inside to its end; fails with what it said where it fails."""
        done = subprocess.run(self.ssh(user, [*command]), input=stdin, capture_output=True, timeout=timeout)
        said = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{said}\n{done.stderr.decode()}"
        return said

    def close(self) -> None:
        """Off: the next one begins from the snapshot again, so nothing is to be kept."""
        self.process.kill()
        self.process.wait()
        self._listener.join()
        self._answers.close()
        self._monitor.close()
