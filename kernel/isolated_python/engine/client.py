"""
The server's side of the supervisor: starts it, asks it, and hears from it how kernels end.

A provisioner's hooks run in whatever event loop their caller has, also in none between two calls. So one thread of our
own listens, and every answer is a concurrent.futures.Future that any loop can wait for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from isolated_python import __version__
from isolated_python.engine import ROOT, places, visits
from isolated_python.errors import HostError, IsolatedPythonError, LaunchError
from isolated_python.launcher.spawn import program, spawn_from_large
from isolated_python.linux import packets

if TYPE_CHECKING:
    from isolated_python.engine.sight import View


MOVER = "isolated_python.engine.mover"


class Kernel:
    """What the server knows of one running kernel."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended: Future[int] = Future()
        self.status: int | None = None  # as subprocess.Popen.returncode
        self.reason = ""
        self.words = ""  # the end of what it wrote to its standard streams
        self.explained = False  # the server's log knows why it ended


class Client:
    """One supervisor, for the life of this process or of the supervisor, whichever is shorter."""

    def __init__(self, service: str = "") -> None:
        """`service`: the socket of the privileged service; empty to start a supervisor of our own."""
        self.service = service
        self.kernels: dict[str, Kernel] = {}
        self.views: dict[object, str] = {}  # a list of modules in an environment → the view of it that was sent
        self.audited: Callable[[dict[str, Any]], None] | None = None  # told of each record, in a thread of ours
        self.prefixes: dict[str, str] = {}  # kernel → where its sockets are: kept from one start to the next
        self.holders: dict[str, int] = {}  # kernel → the id() of the provisioner that started it last
        self.alive = True
        self.owner = os.getpid()
        self._answers: dict[int, Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        # A finaliser may ask, at any point of any thread, also of one that is asking.
        self._lock = threading.RLock()
        self.folder, self.pid = "", 0
        about = {} if service else self._start()
        if service:
            self._socket = visits.connect(service)
        threading.Thread(target=self._listen, name="isolated-python", daemon=True).start()
        self.hello = self.ask("hello", **about)

    def _start(self) -> dict[str, Any]:
        """A supervisor of our own. Returns what it must be told."""
        self.folder = places.private_folder()
        self._socket, theirs = packets.pair()
        command = [sys.executable, "-I", "-S", "-c", program(ROOT, "isolated_python.engine.supervisor", MOVER)]
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        try:
            self.pid = spawn_from_large(command, environment, {3: theirs.fileno()})
        except OSError as error:
            self._socket.close()
            raise HostError(f"no supervisor can be started: {error}", remedy="see what limits this server") from error
        finally:
            theirs.close()
        from isolated_python.layers.cgroup import systemd  # while the supervisor starts

        if systemd.wanted():
            # Without it there will be no cgroup, and each profile says whether that refuses the start.
            with contextlib.suppress(HostError):
                systemd.delegate(self.pid)
        return {
            "interpreter": sys.executable,
            "folder": self.folder,
            "cache": places.cache_folder(),
            "audit": places.audit_file(),
            "identities": places.IDENTITIES,
        }

    def greeted(self, answer: dict[str, Any]) -> None:
        """What the answer to hello says. Raises HostError where the service is of another version than we are."""
        version = answer.get("version", __version__)
        if version != __version__:
            raise HostError(
                f"the service of this machine is isolated-python {version}, and this server has {__version__}",
                remedy="install the same version for both",
            )
        self.folder = answer["folder"]

    def ask(self, verb: str, descriptors: list[int] | tuple[int, ...] = (), **values: Any) -> Future[dict[str, Any]]:
        """Send a request; the future gives the answer or raises what the supervisor raised."""
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            number = next(self._numbers)
            if not self.alive:
                answer.set_exception(LaunchError("the supervisor has ended", remedy="start the kernel again"))
                return answer
            self._answers[number] = answer
            try:
                packets.send(self._socket, {"id": number, "verb": verb, **values}, descriptors)
            except (OSError, IsolatedPythonError) as error:
                del self._answers[number]
                answer.set_exception(LaunchError(f"the supervisor does not listen: {error}"))
        return answer

    def see(self, made: View | None) -> str:
        """The name of a view, of which the supervisor is told before it is asked for it."""
        if made is None:
            return ""
        if self.views.get(made.of) != made.digest:
            with os.fdopen(os.memfd_create("view", os.MFD_CLOEXEC), "w", encoding="utf-8") as file:
                json.dump(made.to_wire(), file)
                file.flush()
                self.ask("see", [file.fileno()], digest=made.digest, replaces=self.views.get(made.of))
            self.views[made.of] = made.digest
        return made.digest

    def _listen(self) -> None:
        while True:
            try:
                message, _ = packets.receive(self._socket)
            except (OSError, IsolatedPythonError):
                message = None
            if message is None:
                break
            if message.get("event") == "ended":
                self._kernel_ended(message)
                continue
            if message.get("event") == "audit":
                if self.audited is not None:
                    self.audited(message["record"])
                continue
            answer = self._answers.pop(int(message.get("id", 0)), None)
            if answer is None:
                continue
            if "error" in message:
                answer.set_exception(IsolatedPythonError.from_wire(message))
            else:
                answer.set_result(message)
        self._supervisor_ended()

    def _kernel_ended(self, message: dict[str, Any]) -> None:
        kernel = self.kernels.pop(str(message["kernel"]), None)
        if kernel is not None:
            kernel.status, kernel.reason, kernel.words = message["status"], message["reason"], message["words"]
            kernel.ended.set_result(message["status"])

    def _supervisor_ended(self) -> None:
        """Every kernel has gone with it. Its folder cannot be removed by itself any more, if it was killed."""
        with self._lock:
            self.alive = False
            answers, self._answers = self._answers, {}
        if self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
        self._socket.close()
        for answer in answers.values():
            answer.set_exception(HostError("the supervisor ended; the server's log says why"))
        for kernel in [*self.kernels.values()]:
            reason = f"the {'service' if self.service else 'supervisor'} ended, and every kernel with it"
            self._kernel_ended({"kernel": kernel.name, "status": -9, "reason": reason, "words": ""})
        if not self.service:
            shutil.rmtree(self.folder, ignore_errors=True)
            if _current.get("") is self and not sys.is_finalizing():
                replace(self)


_current: dict[str, Client] = {}  # by the socket of its service; empty for our own
_guard = threading.Lock()


def current(service: str = "") -> Client:
    """The supervisor of this process; started if there is none, or if the last one has ended.

    `service`: the socket of the privileged service that has it, if it is not our own.
    """
    with _guard:
        found = known(service)
        if found is None:
            found = _current[service] = Client(service)
        return found


def known(service: str = "") -> Client | None:
    """The same, where there is one already: this takes no time."""
    found = _current.get(service)
    return found if found is not None and found.alive and found.owner == os.getpid() else None


def replace(ended: Client) -> None:
    """A supervisor that was killed leaves empty cgroups; its successor sweeps them up as it starts."""
    with _guard:
        if _current.get("") is ended and ended.kernels is not None:
            _current[""] = Client()


def _after_fork() -> None:
    """The child of a server is no server: its copy of the lifeline must not keep the supervisor alive."""
    global _guard
    _guard = threading.Lock()
    for one in _current.values():
        lifeline = one._socket.detach()
        if lifeline >= 0:  # not closed already, because the supervisor had ended
            os.close(lifeline)
        one.alive = False
    _current.clear()


os.register_at_fork(after_in_child=_after_fork)
