"""
The privileged service: hands each connection to the supervisor of the user whose process it is.

It reads not one byte of what a client sends. Linux says who calls (SO_PEERCRED); each user has a supervisor of their
own (hosted.py), so that whoever wrecks one has wrecked their own; and what those leave behind is cleared away here.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from isolated_python.engine import ROOT, places
from isolated_python.engine.hosted import MINUTE
from isolated_python.engine.identities import COUNT, FIRST, identities_file, leave
from isolated_python.engine.loop import Loop
from isolated_python.errors import HostError, IsolatedPythonError, RequestError
from isolated_python.launcher.spawn import program, spawn
from isolated_python.layers import cgroup
from isolated_python.layers.filters import kept
from isolated_python.linux import packets
from isolated_python.policy.service import Settings

BACKLOG = 128
LOCK = f"{places.IDENTITIES}/lock"
GRACE = 20.0  # seconds that a supervisor has to clear away, before it is killed and we do
MOST_REFUSED = 64  # connections that are kept a moment, so that they read why


class User:
    """A user who has a supervisor."""

    def __init__(self, uid: int, pid: int, channel: socket.socket, identities: int) -> None:
        """`identities`: a descriptor, open as long as a process may have one of them."""
        self.uid, self.pid, self.channel, self.identities = uid, pid, channel, identities
        self.given = 0  # connections
        self.ended = False


class Service:
    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.settings, self.listener = settings, listener
        self.loop = Loop()
        self.base = os.path.dirname(settings.socket)
        self.cache = places.cache_folder()
        self.users: dict[int, User] = {}
        self.leaving: set[User] = set()
        self.starts: dict[int, int] = {}  # uid → memory in which its supervisors note when they started kernels
        self.came: dict[int, deque[float]] = {}  # uid → when its last connections came
        self.refused: deque[socket.socket] = deque()
        cgroup.sweep()
        kept.cached("relay", self.cache, sys.executable)  # now, and not when the first user waits

    def serve(self) -> None:
        """Until a SIGTERM, or a Ctrl-C."""
        self.loop.end_at(signal.SIGTERM, signal.SIGINT)
        self.listener.setblocking(False)
        self.loop.listen(self.listener, self._admit)
        self.loop.run()

    # ---- who comes -------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        try:
            caller, _ = self.listener.accept()
        except OSError:  # gone again, or no descriptor left: somebody else's turn
            return
        uid, gid = struct.unpack("iII", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1:]
        try:
            self._check(uid)
            user = self.users.get(uid) or self._begin(uid, gid)
            packets.send(user.channel, {"event": "connection"}, [caller.fileno()])
            user.given += 1
            caller.close()
        except IsolatedPythonError as error:
            self._refuse(caller, error)
        except OSError as error:
            self._refuse(caller, RequestError(f"the service cannot serve you now: {error}", remedy="try again"))

    def _check(self, uid: int) -> None:
        """Raises RequestError where this one is not served."""
        if uid == 0:
            raise RequestError("root needs no service", remedy="leave its path unset: root's servers have their own")
        try:
            # A uid of somebody's user namespace is no further user, with a further quota.
            pwd.getpwuid(uid)
        except KeyError:
            raise RequestError(f"the uid {uid} is no user of this machine") from None
        if FIRST <= uid < FIRST + COUNT:
            raise RequestError(f"the uid {uid} belongs to kernels")
        most = self.settings.each_user.starts
        came = self.came.setdefault(uid, deque(maxlen=most))
        if len(came) == most and time.monotonic() - came[0] < MINUTE:
            raise RequestError(f"you have connected {most} times within a minute", remedy="try again in a minute")
        came.append(time.monotonic())

    def _refuse(self, caller: socket.socket, error: IsolatedPythonError) -> None:
        """Say why, and hang up when it has had the time to read it: a close throws away what was not read."""
        caller.setblocking(False)
        try:
            packets.send(caller, {"id": 1, **error.to_wire()})
        except OSError:
            pass
        self.refused.append(caller)
        if len(self.refused) > MOST_REFUSED:
            self.refused.popleft().close()
        self.loop.later(1.0, caller.close)

    # ---- their supervisors -----------------------------------------------------------------------------------------

    def _begin(self, uid: int, gid: int) -> User:
        most = self.settings.each_user.starts
        if uid not in self.starts:
            self.starts[uid] = os.memfd_create("starts", os.MFD_CLOEXEC)
            os.ftruncate(self.starts[uid], 8 * most)
        channel, theirs = packets.pair()
        channel.setblocking(False)
        command = [sys.executable, "-I", "-S", "-c", program(ROOT, "isolated_python.engine.hosted")]
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "ISOLATED_PYTHON_RUNTIME_DIR": self.base}
        identities = identities_file(LOCK)
        with theirs:
            pid = spawn(command, environment, {3: theirs.fileno()})
        user = self.users[uid] = User(uid, pid, channel, identities)
        self.loop.listen(channel, lambda: self._hear(user))
        self.loop.at_end(pid, lambda: self._ended(user))
        about = {"settings": self.settings.to_wire(), "uid": uid, "gid": gid, "cache": self.cache}
        packets.send(channel, about, [identities, self.starts[uid]])
        return user

    def _hear(self, user: User) -> None:
        message = packets.heard(user.channel)
        # Idle, unless it has not seen yet whom we sent last.
        if message is None or message.get("given") == user.given:
            self._let_go(user)

    def _let_go(self, user: User) -> None:
        """Our hanging up ends it. Whoever comes next gets another."""
        if self.users.get(user.uid) is user:
            del self.users[user.uid]
            self.leaving.add(user)
            self.loop.ignore(user.channel)
            user.channel.close()
            self.loop.later(GRACE, lambda: self._kill(user))

    def _kill(self, user: User) -> None:
        if not user.ended:
            os.kill(user.pid, signal.SIGKILL)  # a child of ours that nobody has reaped

    def _ended(self, user: User) -> None:
        """Clear away what it could not, itself being in it, and only then let others have its kernels' uids."""
        self._let_go(user)
        os.waitpid(user.pid, 0)
        user.ended = True
        pid = os.fork()
        if pid == 0:
            try:
                os.closerange(3, 1 << 20)  # the channels of others among them
                places.sweep(self.base)
                os._exit(0 if _swept(user.pid) else 1)
            finally:
                os._exit(1)
        self.loop.when_done(pid, lambda done: self._cleared(user, done=done))

    def _cleared(self, user: User, *, done: bool) -> None:
        self.leaving.discard(user)
        if done:
            leave(user.identities, LOCK)
        else:
            sys.stderr.write(f"processes of uid {user.uid} cannot be cleared away; their uids stay taken\n")

    def close(self) -> None:
        """End every supervisor, wait for all, and leave nothing."""
        for user in [*self.users.values()]:
            self._let_go(user)
        until = time.monotonic() + GRACE
        for user in self.leaving:
            if not user.ended:
                _await(user.pid, until - time.monotonic())
        cgroup.sweep()
        places.sweep(self.base)
        for user in self.leaving:
            leave(user.identities, LOCK)


def _await(pid: int, seconds: float) -> None:
    """The end of a child; it is killed where it takes longer."""
    pidfd = os.pidfd_open(pid)
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    if not ended.poll(1000 * max(0.0, seconds)):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)


def _swept(pid: int) -> bool:
    """Whether nothing is left of the cgroup of a supervisor that has ended."""
    cgroup.sweep()
    return not any(name.startswith(f"isolated-python-{pid}-") for name in cgroup.choose().dead())


def listening(path: str) -> socket.socket:
    """The service's socket, to which everybody may connect: who is served is decided by uid. Raises HostError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    places.roots_own(Path(folder))
    os.chmod(folder, 0o755)  # noqa: S103 - nothing in it can be listed that is anybody's secret
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    if os.path.exists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise HostError(f"{path} is there already, and no socket", remedy="name another with --socket")
        if made.connect_ex(path) == 0:
            raise HostError(f"a service listens at {path} already", remedy="stop it, or name another with --socket")
        os.unlink(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    made.bind(path)
    os.chmod(path, 0o666)  # noqa: S103
    made.listen(BACKLOG)
    return made


def main() -> None:
    """argv: the settings as JSON; the listening socket is descriptor 3, if it is given there."""
    settings = Settings.from_wire(json.loads(sys.argv[1]))
    activated = len(sys.argv) > 2
    os.umask(0o077)

    def stop(*_: Any) -> None:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    service = None
    try:
        listener = socket.socket(fileno=3) if activated else listening(settings.socket)
        listener.set_inheritable(False)
        service = Service(settings, listener)
        sys.stdout.write(f"isolated-python serves at {settings.socket}\n")
        sys.stdout.flush()
        service.serve()
    except IsolatedPythonError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    finally:
        if service is not None:
            service.close()
            if not activated:
                os.unlink(settings.socket)
