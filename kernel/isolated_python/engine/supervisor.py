"""
The supervisor: holds every sandbox of one server, and takes them all down when that server goes.

It is one loop over descriptors. What may be asked of it is the table REQUESTS. Nothing that a kernel wrote ever gets
here, but for the numbers of the calls it was refused, and the end of what it wrote to its standard streams.
"""

from __future__ import annotations

import errno
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from isolated_python.audit.log import Log
from isolated_python.engine import workspace, zygotes
from isolated_python.engine.identities import Identities
from isolated_python.errors import HostError, IsolatedPythonError, LaunchError, ProtocolError, RequestError
from isolated_python.launcher.spawn import spawn
from isolated_python.layers import cgroup, seccomp
from isolated_python.layers.catalogue import Plan, plan
from isolated_python.layers.identity import USER
from isolated_python.linux import host as host_facts
from isolated_python.linux import mount, namespaces, packets, prctl
from isolated_python.linux import seccomp as notifications
from isolated_python.policy.profile import Profile

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
INSIDE = ("shell", "iopub", "stdin-channel", "control", "hb")  # "stdin" is the standard stream
VISITS = "visits"  # the socket in our folder where the command line may call
LAST_WORDS = 4096  # bytes of a kernel's standard output and error that are kept for the log
HEARD = 1 << 20  # bytes of that a second; a kernel that writes more waits
EPITAPH = 1.0  # seconds that the relay has to tell the cell why its kernel died
REFUSALS = 200  # refused calls a second that are answered at once; a kernel that makes more waits
MOST_RELAYS = 20  # that may end within a minute, before we take it that none can live
START = 60.0  # seconds until a sandbox must stand


@dataclass(slots=True)
class Sandbox:
    """One kernel, from the request to its end."""

    name: str
    profile: Profile
    plan: Plan
    order: dict[str, Any]
    descriptors: dict[str, int]
    channel: socket.socket
    reply: Callable[..., None]
    listens: bool  # on inherited listeners; else it binds ports on its own loopback
    ports: list[int]
    group: Any = None
    uid: int | None = None
    pid: int = -1
    pidfd: int = -1
    state: str = "asked"  # → born → confined → running → ended
    began: float = 0.0
    refusals: dict[str, int] = field(default_factory=dict)
    listener: int = -1
    output: int = -1
    last_words: bytes = b""
    heard: int = 0
    failure: str = ""
    deadline: str = ""
    cell: str = ""


@dataclass(slots=True)
class Door:
    """The client side of a kernel: sockets that outlive restarts."""

    key: str
    channels: dict[str, Any]
    listeners: list[socket.socket]
    paths: list[str]


class Supervisor:
    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.loop = selectors.DefaultSelector()
        self.sandboxes: dict[str, Sandbox] = {}
        self.doors: dict[str, Door] = {}
        self.zygotes: dict[zygotes.Kind, zygotes.Zygote] = {}
        self.waiting: dict[int, Callable[[], None]] = {}  # pidfd → what to do at its end
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.filters: dict[str, seccomp.Filter] = {}
        self.host: host_facts.Host | None = None
        self.parent: Any = None
        self.identities: Identities | None = None
        self.incarnations = 0
        self.inserted: dict[str, Callable[[], None]] = {}
        self.relay: socket.socket | None = None
        self.relay_ends: list[float] = []

    # ---- the server's requests -------------------------------------------------------------------------------------

    def hello(self, request: dict[str, Any], descriptors: list[int], reply: Callable[..., None]) -> None:
        """The first request, once: where things are. Builds what all kernels share."""
        self.interpreter: str = request["interpreter"]
        self.folder, self.cache = request["folder"], request["cache"]
        self.log = Log(request["audit"])
        host = self.host = host_facts.probe()
        cgroup.sweep()
        if host.root:
            namespaces.unshare(namespaces.CLONE_NEWNS)
            os.makedirs(request["identities"], mode=0o700, exist_ok=True)
            self.identities = Identities(os.path.join(request["identities"], "lock"))
        else:
            self._own_user_namespace()
        mount.make_slave()
        prctl.set_child_subreaper()
        for name in ("clients", "kernels"):
            os.makedirs(f"{self.folder}/{name}", mode=0o700)
        if self.identities:
            os.chown(f"{self.folder}/kernels", self.identities.first + 1, -1)
            os.chmod(self.folder, 0o711)  # noqa: S103 - the relay passes through, to a folder of its own
        self.folder_descriptor = os.open(f"{self.folder}/kernels", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.visits = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.visits.bind(f"{self.folder}/{VISITS}")
        self.visits.listen(8)
        self.loop.register(self.visits, selectors.EVENT_READ, self._admit)
        self._start_relay()
        self.log.write("supervisor-started", pid=os.getpid(), host=host.to_wire())
        reply()

    def warm(self, request: dict[str, Any], descriptors: list[int], reply: Callable[..., None]) -> None:
        """Start the zygote that such a kernel will come from, ahead of the request for it."""
        profile = Profile.from_wire(request["profile"])
        self._zygote(request, profile, self._plan(profile, tuple(request["trees"])))
        reply()

    def start(self, request: dict[str, Any], descriptors: list[int], reply: Callable[..., None]) -> None:
        """Start a kernel. Descriptors: its standard streams, the workspace if one is granted, further mounts."""
        name = request["kernel"]
        if name in self.sandboxes:
            raise RequestError(f"the kernel {name} runs already")
        profile = Profile.from_wire(request["profile"])
        made = self._plan(profile, tuple(request["trees"]))
        self.incarnations += 1
        channel, theirs = packets.pair()
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sandbox = Sandbox(name, profile, made, request, {}, channel, reply, request["argv"] is None, request["ports"])
        sandbox.began = time.monotonic()
        self.sandboxes[name] = sandbox
        try:
            self._prepare(sandbox, request, descriptors)
            zygote = self._zygote(request, profile, made)
            born = made.namespaces
            packets.send(zygote.control, {"kernel": name, "namespaces": born}, [theirs.fileno()])
            self.loop.register(channel, selectors.EVENT_READ, lambda: self._from_sandbox(sandbox))
            self._later(START, lambda: self._give_up(sandbox))
        except (OSError, IsolatedPythonError) as error:
            kind = error if isinstance(error, IsolatedPythonError) else LaunchError(str(error))
            reply(kind)
            self._release(sandbox)
        finally:
            theirs.close()

    def signal(self, request: dict[str, Any], descriptors: list[int], reply: Callable[..., None]) -> None:
        sandbox = self.sandboxes.get(request["kernel"])
        if sandbox is not None and sandbox.state == "running":
            number = int(request["signal"])
            if number == signal.SIGKILL:
                self._kill(sandbox)
            else:
                packets.send(sandbox.channel, {"signal": number})
        reply()

    def forget(self, request: dict[str, Any], descriptors: list[int], reply: Callable[..., None]) -> None:
        """End a kernel if it runs, and close its door for good."""
        sandbox = self.sandboxes.get(request["kernel"])
        if sandbox is not None:
            self._kill(sandbox)
        self._close_door(request["kernel"])
        reply()

    def report(self, request: dict[str, Any], descriptors: list[int], reply: Callable[..., None]) -> None:
        kernels = []
        for sandbox in self.sandboxes.values():
            usage = sandbox.group.usage() if sandbox.group is not None else None
            kernels.append(
                {
                    "kernel": sandbox.name,
                    "profile": sandbox.profile.name,
                    "state": sandbox.state,
                    "seconds": round(time.monotonic() - sandbox.began, 1),
                    "memory": usage.memory if usage else None,
                    "processes": usage.processes if usage else None,
                    "cpu_seconds": usage.cpu_seconds if usage else None,
                    "weakened": sandbox.plan.notes,
                    "refused": sandbox.refusals,
                }
            )
        reply(kernels=kernels)

    # What may be asked, and whether before hello.
    REQUESTS: ClassVar[dict[str, Callable[..., None]]] = {
        "hello": hello,
        "warm": warm,
        "start": start,
        "signal": signal,
        "forget": forget,
        "list": report,
    }

    # What the command line may ask, of the supervisor of any server of the same user.
    VISITS: ClassVar[dict[str, Callable[..., None]]] = {"list": report, "kill": forget}

    def _from_server(self) -> None:
        request, descriptors = self._request(self.server)
        if request is None:
            raise SystemExit(0)
        verb = self.REQUESTS.get(str(request.get("verb")))
        if verb is not None and (self.host is None) != (verb is Supervisor.hello):
            verb = None
        self._answer(request, descriptors, verb, self._tell_server)

    def _admit(self) -> None:
        """A visitor: the socket lies in our private folder, and the kernel says whose process it is."""
        visitor, _ = self.visits.accept()
        uid = struct.unpack("iii", visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid not in (0, os.getuid()):
            visitor.close()
            return

        def visit() -> None:
            request, descriptors = self._request(visitor)
            if request is None:
                self.loop.unregister(visitor)
                visitor.close()
                return
            verb = self.VISITS.get(str(request.get("verb")))
            self._answer(request, descriptors, verb, lambda message: _tell(visitor, message))

        self.loop.register(visitor, selectors.EVENT_READ, visit)

    @staticmethod
    def _request(peer: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
        try:
            return packets.receive(peer)
        except (ConnectionError, ProtocolError):
            return None, []

    def _answer(
        self, request: dict[str, Any], descriptors: list[int], verb: Callable[..., None] | None,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        number, answered = request.get("id"), False

        def reply(error: IsolatedPythonError | None = None, **values: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                tell({"id": number, **(error.to_wire() if error else values)})

        try:
            if verb is None:
                raise RequestError(f"there is no request {str(request.get('verb'))[:40]!r} in this state")
            verb(self, request, descriptors, reply)
        except IsolatedPythonError as error:
            reply(error)
        except (OSError, KeyError, TypeError, ValueError) as error:
            reply(LaunchError(f"{type(error).__name__}: {error}"))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _tell_server(self, message: dict[str, Any]) -> None:
        try:
            packets.send(self.server, message)
        except OSError:
            raise SystemExit(0) from None

    # ---- what all kernels share ------------------------------------------------------------------------------------

    def _own_user_namespace(self) -> None:
        """Become the one who may mount, in a user namespace that knows us alone. An ordinary user needs no more."""
        uid, gid = os.getuid(), os.getgid()
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
            namespaces.map_ids("self", [(uid, uid, 1)], [(gid, gid, 1)])
        except OSError as error:
            assert self.host is not None
            cause, remedy = self.host.lacks("user")
            raise HostError(f"no user namespace can be made: {cause or error}", remedy=remedy) from error

    def _plan(self, profile: Profile, trees: tuple[str, ...]) -> Plan:
        assert self.host is not None
        wanted = profile.layers.seccomp != "off" and not self.host.lacks("seccomp")[0]
        return plan(profile, self.host, trees, self._filter("kernel") if wanted else None)

    def _filter(self, name: str) -> seccomp.Filter:
        if name not in self.filters:
            self.filters[name] = seccomp.cached(name, self.cache, self.interpreter)
        return self.filters[name]

    def _zygote(self, request: dict[str, Any], profile: Profile, made: Plan) -> zygotes.Zygote:
        network = not made.namespaces & namespaces.CLONE_NEWNET
        trees, places = tuple(request["trees"]), tuple(grant.target for grant in profile.files.mounts)
        if request["argv"] is None:
            interpreter, flags, userbase = request["interpreter"]
            preload = ("ipykernel.kernelapp", *profile.preload)
            kind = zygotes.Kind(interpreter, tuple(flags), userbase, trees, places, preload, network)
        else:
            kind = zygotes.own_interpreter(network, trees, places)
        if kind not in self.zygotes:
            uid = self.identities.first if self.identities else None
            zygote = self.zygotes[kind] = zygotes.start(kind, made.view, uid)
            self.loop.register(zygote.control, selectors.EVENT_READ, lambda: self._from_zygote(zygote))
            self._at_end(zygote.pid, lambda: self._zygote_ended(zygote))
        return self.zygotes[kind]

    def _from_zygote(self, zygote: zygotes.Zygote) -> None:
        try:
            message, descriptors = packets.receive(zygote.control)
        except (ConnectionError, ProtocolError):
            message, descriptors = None, []
        _close(descriptors)
        if message is None:
            self.loop.unregister(zygote.control)
            zygote.control.close()
        elif message.get("event") == "ready":
            zygote.ready = True

    def _zygote_ended(self, zygote: zygotes.Zygote) -> None:
        """Kernels outlive their zygote; whoever asks next gets a new one."""
        if self.zygotes.get(zygote.kind) is zygote:
            del self.zygotes[zygote.kind]
        self.log.write("zygote-ended", pid=zygote.pid, ready=zygote.ready)
        for sandbox in [*self.sandboxes.values()]:
            if sandbox.state == "asked":
                sandbox.failure = sandbox.failure or "its zygote ended before it was born; see the server's log"
                self._release(sandbox)

    def _start_relay(self) -> None:
        ours, theirs = packets.pair()
        program = (
            f"import sys; sys.path.insert(0, {zygotes.ROOT!r}); from isolated_python.relay.broker import main; main()"
        )
        argv = [sys.executable, "-I", "-S", "-c", program]
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        pid = spawn(argv, environment, {3: theirs.fileno(), 4: self.folder_descriptor})
        theirs.close()
        self.relay = ours
        bpf = os.memfd_create("filter", os.MFD_CLOEXEC)
        os.write(bpf, self._filter("relay").program)
        os.lseek(bpf, 0, os.SEEK_SET)
        uid = self.identities.first + 1 if self.identities else None
        self._tell_relay({"verb": "hello", "uid": uid, "filter": True}, [bpf])
        os.close(bpf)
        self.loop.register(ours, selectors.EVENT_READ, self._from_relay)
        self._at_end(pid, lambda: self._relay_ended(ours))

    def _relay_ended(self, relay: socket.socket) -> None:
        """Start another, and hand it every door: clients connect again by themselves, kernels never notice."""
        if self.relay is not relay:
            return
        self.loop.unregister(relay)
        relay.close()
        self.log.write("relay-ended")
        self.relay_ends = [*(then for then in self.relay_ends if then > time.monotonic() - 60), time.monotonic()]
        if len(self.relay_ends) > MOST_RELAYS:
            raise SystemExit(f"the relay ended {len(self.relay_ends)} times within a minute; so do we")
        for name in [*self.inserted]:
            self._said(name)
        self._start_relay()
        for name, door in self.doors.items():
            self._open_door(name, door)
        for sandbox in self.sandboxes.values():
            if sandbox.state in ("confined", "running"):
                self._target(sandbox)

    def _tell_relay(self, message: dict[str, Any], descriptors: list[int] | tuple[int, ...] = ()) -> None:
        assert self.relay is not None
        try:
            packets.send(self.relay, message, descriptors)
        except OSError as error:
            self.log.write("relay-deaf", error=str(error))

    def _from_relay(self) -> None:
        assert self.relay is not None
        try:
            message, descriptors = packets.receive(self.relay)
        except (ConnectionError, ProtocolError):
            return
        _close(descriptors)
        if message is None:
            # Its end is dealt with when the process has ended; until then there is nothing to hear.
            self.loop.modify(self.relay, selectors.EVENT_READ, lambda: None)
            return
        name, event = str(message.get("kernel")), message.get("event")
        sandbox = self.sandboxes.get(name)
        if event == "inserted":
            self._said(name)
        elif event == "want" and sandbox is not None and sandbox.state == "running":
            packets.send(sandbox.channel, {"sockets": int(message["count"])})
        elif event == "refused":
            values = {key: message.get(key) for key in ("channel", "rule", "count")}
            self.log.write("relay-refused", kernel=name, **values)
        elif event == "activity" and sandbox is not None:
            sandbox.cell = str(message.get("msg_id"))[:64]

    def _said(self, name: str) -> None:
        """The cell knows why its kernel died, or has had its time."""
        told = self.inserted.pop(name, None)
        if told is not None:
            told()

    # ---- the life of a sandbox -------------------------------------------------------------------------------------

    def _prepare(self, sandbox: Sandbox, request: dict[str, Any], given: list[int]) -> None:
        """Everything that only we can make: cgroup, identity, mounts, sockets."""
        profile, slots = sandbox.profile, sandbox.descriptors
        if profile.layers.cgroup != "off":
            try:
                if self.parent is None:
                    self.parent = cgroup.choose().open()
                sandbox.group = self.parent.group(sandbox.name, profile.resources)
            except HostError as error:
                if profile.layers.cgroup == "require":
                    raise
                sandbox.plan.notes.append(f"cgroup is missing: {error.message}")
        if self.identities is not None:
            sandbox.uid = self.identities.take()
        names = iter(given)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        sandbox.output = read
        self.loop.register(read, selectors.EVENT_READ, lambda: self._hear(sandbox))
        for name, default in (("stdin", null), ("stdout", write), ("stderr", write)):
            slots[name] = os.dup(next(names) if request["streams"][name] else default)
        os.close(null)
        os.close(write)
        if profile.files.workspace != "none":
            writable = profile.files.workspace == "read-write"
            slots["workspace"] = workspace.detached(next(names), writable=writable, uid=sandbox.uid)
        for number, grant in enumerate(profile.files.mounts):
            slots[f"mount-{number}"] = workspace.detached(next(names), writable=grant.writable, uid=sandbox.uid)
        door = self.doors.get(sandbox.name)
        if door is not None and not all(map(os.path.exists, door.paths)):
            # jupyter_client unlinks the sockets of a manager at its restart; clients look for them at the same place.
            self._close_door(sandbox.name)
            door = None
        if door is None:
            door = self._make_door(sandbox.name, request["key"], request["profile"]["channels"], request["sockets"])
        door.key = request["key"]
        if sandbox.listens:
            for channel, inside in zip(CHANNELS, INSIDE, strict=True):
                slots[inside] = self._listen(f"{self.folder}/kernels/{self.incarnations}.{channel}").detach()
            sandbox.order["paths"] = [f"{self.incarnations}.{channel}" for channel in CHANNELS]

    def _make_door(self, name: str, key: str, channels: dict[str, Any], prefix: str) -> Door:
        paths = [f"{self.folder}/clients/{prefix}-{number}" for number in (1, 2, 3, 4, 5)]
        door = Door(key, channels, [], paths)
        self.doors[name] = door
        for path in paths:
            door.listeners.append(self._listen(path, ours=True))
        self._open_door(name, door)
        return door

    def _close_door(self, name: str) -> None:
        door = self.doors.pop(name, None)
        if door is not None:
            self._tell_relay({"verb": "close", "kernel": name})
            for listener, path in zip(door.listeners, door.paths, strict=True):
                listener.close()
                _unlink(path)

    def _open_door(self, name: str, door: Door) -> None:
        message = {"verb": "open", "kernel": name, "channels": door.channels, "key": door.key, "client": "ipc"}
        self._tell_relay(message, [listener.fileno() for listener in door.listeners])

    def _listen(self, path: str, *, ours: bool = False) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind(path)
        os.chmod(path, 0o600)
        if self.identities is not None and not ours:
            os.chown(path, self.identities.first + 1, -1)
        listener.listen(64)
        return listener

    def _from_sandbox(self, sandbox: Sandbox) -> None:
        """A message of process 1, or of the kernel before its first cell: our own code, but watched all the same."""
        try:
            if sandbox.state == "asked":
                self._born(sandbox)
                return
            message, descriptors = packets.receive(sandbox.channel)
        except (ConnectionError, ProtocolError):
            message, descriptors = None, []
        except (OSError, IsolatedPythonError) as error:
            sandbox.failure = str(error)
            self._kill(sandbox)
            if sandbox.pidfd < 0:
                self._release(sandbox)
            return
        if message is None:
            self.loop.unregister(sandbox.channel)
            return
        event = message.get("event")
        if event == "failed":
            sandbox.failure = str(message.get("reason"))[:1000]
            if sandbox.pidfd < 0:
                self._release(sandbox)
        elif event == "confined" and sandbox.state == "born":
            sandbox.state = "confined"
            if descriptors:
                sandbox.listener = descriptors.pop()
                self.loop.register(sandbox.listener, selectors.EVENT_READ, lambda: self._refused_call(sandbox))
        elif event == "running" and sandbox.state == "confined":
            self._runs(sandbox)
        elif event == "sockets" and sandbox.state == "running":
            if sandbox.order.get("targeted"):
                self._tell_relay({"verb": "sockets", "kernel": sandbox.name}, descriptors)
            else:
                sandbox.order["targeted"] = True
                target = {"verb": "target", "kernel": sandbox.name, "kind": "inet", "ports": sandbox.ports}
                self._tell_relay(target, descriptors)
        _close(descriptors)

    def _born(self, sandbox: Sandbox) -> None:
        """The first message carries, by the kernel's own word, the pid of its sender. unix(7), SCM_CREDENTIALS"""
        space = socket.CMSG_SPACE(12)
        encoded, ancillary, _, _ = sandbox.channel.recvmsg(1 << 14, space, socket.MSG_CMSG_CLOEXEC)
        if b'"failed"' in encoded or not encoded:
            import json

            reason = json.loads(encoded)["reason"] if encoded else "its zygote ended; see the server's log"
            raise LaunchError(str(reason)[:1000])
        pid = next((struct.unpack("iii", data)[0] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS), 0)
        # A child of ours that nobody has reaped keeps its pid: from here on there is no race.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if any(other.pid == pid for other in self.sandboxes.values()):
            raise LaunchError("a zygote named a process that is another kernel's")
        sandbox.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        sandbox.pid, sandbox.state = pid, "born"
        sandbox.pidfd = self._at_end(pid, lambda: self._ended(sandbox))
        if sandbox.group is not None:
            sandbox.group.attach(pid)
        outside = sandbox.uid if sandbox.uid is not None else os.getuid()
        group = sandbox.uid if sandbox.uid is not None else os.getgid()
        namespaces.map_ids(pid, [(USER, outside, 1)], [(USER, group, 1)])
        order = {
            "descriptors": [*sandbox.descriptors],
            "init": [step.to_wire() for step in sandbox.plan.init],
            "kernel": [step.to_wire() for step in sandbox.plan.kernel],
            "check": [step.to_wire() for step in sandbox.plan.check],
            "program": {
                **{key: sandbox.order[key] for key in ("argv", "arguments", "cwd", "connection", "environment")},
                "granted": sandbox.order["profile"]["resources"],
            },
        }
        packets.send(sandbox.channel, order, [*sandbox.descriptors.values()])
        self._close_descriptors(sandbox)

    def _runs(self, sandbox: Sandbox) -> None:
        sandbox.state = "running"
        self._target(sandbox)
        limit = sandbox.profile.resources.wall_clock
        if limit is not None:
            self._later(limit, lambda: self._deadline(sandbox, "wall_clock", f"{limit:g} s since its start"))
        if sandbox.profile.resources.cpu_time is not None:
            self._later(1.0, lambda: self._watch_cpu(sandbox))
        self.log.write(
            "kernel-started", kernel=sandbox.name, profile=sandbox.profile.name, pid=sandbox.pid, uid=sandbox.uid,
            weakened=sandbox.plan.notes, seconds=round(time.monotonic() - sandbox.began, 4),
        )  # fmt: skip
        sandbox.reply(pid=sandbox.pid, notes=sandbox.plan.notes)

    def _target(self, sandbox: Sandbox) -> None:
        """Tell the relay where this kernel listens."""
        if sandbox.listens:
            paths = sandbox.order["paths"]
            self._tell_relay({"verb": "target", "kernel": sandbox.name, "kind": "unix", "paths": paths})
        else:
            sandbox.order["targeted"] = False
            packets.send(sandbox.channel, {"sockets": 16})

    def _give_up(self, sandbox: Sandbox) -> None:
        if sandbox.state in ("asked", "born", "confined"):
            sandbox.failure = f"it did not stand within {START:g} seconds"
            self._kill(sandbox)
            if sandbox.pidfd < 0:
                self._release(sandbox)

    def _kill(self, sandbox: Sandbox) -> None:
        """The end of process 1 is the end of all its processes."""
        if sandbox.pidfd >= 0 and sandbox.state != "ended":
            try:
                signal.pidfd_send_signal(sandbox.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def _deadline(self, sandbox: Sandbox, key: str, usage: str) -> None:
        if sandbox.state == "running":
            sandbox.deadline = f"it used {usage}, and the profile {sandbox.profile.name} grants no more ({key})"
            self._kill(sandbox)

    def _watch_cpu(self, sandbox: Sandbox) -> None:
        if sandbox.state != "running" or sandbox.group is None:
            return
        limit = sandbox.profile.resources.cpu_time or 0.0
        used = sandbox.group.usage().cpu_seconds
        if used >= limit:
            self._deadline(sandbox, "resources.cpu_time", f"{used:.0f} s of CPU time")
        else:
            self._later(min(max((limit - used) / (os.cpu_count() or 1), 0.2), 5.0), lambda: self._watch_cpu(sandbox))

    def _hear(self, sandbox: Sandbox) -> None:
        """What the kernel wrote to its standard streams: the end of it is kept, for the log, if it dies."""
        data = os.read(sandbox.output, 65536)
        if data:
            sandbox.last_words = (sandbox.last_words + data)[-LAST_WORDS:]
            sandbox.heard += len(data)
            if sandbox.heard > HEARD and sandbox.state != "ended":
                self.loop.unregister(sandbox.output)  # its pipe fills, and whoever floods it waits
                self._later(1.0, lambda: self._hear_again(sandbox))
        else:
            self._close_output(sandbox)

    def _hear_again(self, sandbox: Sandbox) -> None:
        sandbox.heard = 0
        if sandbox.output >= 0 and sandbox.state != "ended":
            self.loop.register(sandbox.output, selectors.EVENT_READ, lambda: self._hear(sandbox))

    def _close_output(self, sandbox: Sandbox) -> None:
        if sandbox.output >= 0:
            try:
                self.loop.unregister(sandbox.output)
            except KeyError:  # not listened to at the moment
                pass
            os.close(sandbox.output)
            sandbox.output = -1

    def _refused_call(self, sandbox: Sandbox) -> None:
        """Answer one refused call, and count it. Its arguments are not looked at: they are the adversary's."""
        try:
            call = notifications.receive(sandbox.listener)
            notifications.respond(sandbox.listener, call.id, errno.EPERM)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the caller is gone
                self._close_listener(sandbox)
            return
        if sandbox.state != "running":  # its self-check asks for what must be refused
            return
        name = self._filter("kernel").names.get(call.number, str(call.number))
        count = sandbox.refusals[name] = sandbox.refusals.get(name, 0) + 1
        if count & (count - 1) == 0:  # 1, 2, 4, 8, …: a flood makes few records
            self.log.write("call-refused", kernel=sandbox.name, call=name, count=count, cell=sandbox.cell)
        if sum(sandbox.refusals.values()) % REFUSALS == 0:
            listener = sandbox.listener
            self.loop.unregister(listener)
            self._later(1.0, lambda: self._listen_again(sandbox, listener))

    def _listen_again(self, sandbox: Sandbox, listener: int) -> None:
        if sandbox.listener == listener and listener >= 0:
            self.loop.register(listener, selectors.EVENT_READ, lambda: self._refused_call(sandbox))

    def _close_listener(self, sandbox: Sandbox) -> None:
        if sandbox.listener >= 0:
            try:
                self.loop.unregister(sandbox.listener)
            except KeyError:
                pass
            os.close(sandbox.listener)
            sandbox.listener = -1

    def _ended(self, sandbox: Sandbox) -> None:
        """Process 1 has ended, and with it all the others. Say why, then let go."""
        found = os.waitid(os.P_PIDFD, sandbox.pidfd, os.WEXITED)
        assert found is not None
        code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        if code > 128:
            code = 128 - code
        ran = sandbox.state == "running"
        sandbox.state = "ended"
        while sandbox.output >= 0:
            try:
                self._hear(sandbox)
            except BlockingIOError:
                break
        reason = self._reason(sandbox, code)
        self.log.write(
            "kernel-ended", kernel=sandbox.name, status=code, reason=reason, refused=sandbox.refusals,
            last_words=sandbox.last_words.decode("utf-8", "replace")[-LAST_WORDS:],
        )  # fmt: skip

        def tell() -> None:
            self._release(sandbox)
            if ran:
                words = sandbox.last_words.decode("utf-8", "replace")
                event = {"event": "ended", "kernel": sandbox.name, "status": code, "reason": reason, "words": words}
                self._tell_server(event)

        if ran and reason:
            self.inserted[sandbox.name] = tell
            self._later(EPITAPH, lambda: self._said(sandbox.name))
            sentence = {"ename": "KernelDied", "evalue": reason, "traceback": [f"\x1b[31mKernelDied\x1b[0m: {reason}"]}
            self._tell_relay({"verb": "insert", "kernel": sandbox.name, "busy_only": True, **sentence})
        else:
            tell()

    def _reason(self, sandbox: Sandbox, code: int) -> str:
        """One sentence with the limit, the usage and the profile's key; empty where nothing of ours ended it."""
        granted = sandbox.profile.resources
        if sandbox.deadline:
            return f"the kernel was ended: {sandbox.deadline}"
        if sandbox.failure:
            return sandbox.failure
        if code in (-signal.SIGKILL, 137) and sandbox.group is not None:
            events, usage = sandbox.group.events(), sandbox.group.usage()
            if events.oom_kills and granted.memory is not None:
                peak = f" (it had used {usage.memory_peak >> 20} MiB)" if usage.memory_peak else ""
                return (
                    f"the kernel was killed: it needed more than the {granted.memory >> 20} MiB of memory that the "
                    f"profile {sandbox.profile.name} grants{peak} (resources.memory)"
                )
        if code == -signal.SIGSYS:
            return "the kernel was killed by its seccomp filter: it made a system call of a foreign architecture"
        if code < 0 and code not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = str(-code)
            return f"the kernel crashed with {name}"
        return ""

    def _release(self, sandbox: Sandbox) -> None:
        """Let go of everything that was this sandbox's; answer the request for it, if that still waits."""
        if self.sandboxes.get(sandbox.name) is sandbox:
            del self.sandboxes[sandbox.name]
        if sandbox.state != "running":
            words = sandbox.last_words.decode("utf-8", "replace").strip().rpartition("\n")[2]
            why = sandbox.failure or words or "its first process ended before it stood"
            sandbox.reply(LaunchError(f"the kernel could not be started: {why}"))
        sandbox.state = "ended"
        if sandbox.name in self.doors:
            self._tell_relay({"verb": "detach", "kernel": sandbox.name})
        self._close_listener(sandbox)
        try:
            self.loop.unregister(sandbox.channel)
        except (KeyError, ValueError):
            pass
        sandbox.channel.close()
        self._close_output(sandbox)
        self._close_descriptors(sandbox)
        for path in sandbox.order.get("paths", ()):
            _unlink(f"{self.folder}/kernels/{path}")
        if sandbox.group is not None:
            sandbox.group.kill()
            sandbox.group.remove()
            sandbox.group = None
        if sandbox.uid is not None and self.identities is not None:
            self.identities.give_back(sandbox.uid)
            sandbox.uid = None

    def _close_descriptors(self, sandbox: Sandbox) -> None:
        _close([*sandbox.descriptors.values()])
        sandbox.descriptors.clear()

    # ---- the loop --------------------------------------------------------------------------------------------------

    def _at_end(self, pid: int, do: Callable[[], None]) -> int:
        """Call `do` when the child `pid` has ended. Returns its pidfd, which is closed afterwards."""
        pidfd = os.pidfd_open(pid)

        def ended() -> None:
            self.loop.unregister(pidfd)
            try:
                do()
            finally:
                try:
                    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
                except ChildProcessError:
                    pass
                os.close(pidfd)

        self.loop.register(pidfd, selectors.EVENT_READ, ended)
        return pidfd

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self.timers.append((time.monotonic() + seconds, do))
        self.timers.sort(key=lambda timer: timer[0])

    def serve(self) -> None:
        self.loop.register(self.server, selectors.EVENT_READ, self._from_server)
        while True:
            wait = max(0.0, self.timers[0][0] - time.monotonic()) if self.timers else None
            for key, _ in self.loop.select(wait):
                if self.loop.get_map().get(key.fd) is key:  # not closed by one that came before it
                    key.data()
            while self.timers and self.timers[0][0] <= time.monotonic():
                self.timers.pop(0)[1]()

    def close(self) -> None:
        """Take everything down, and leave nothing."""
        for sandbox in [*self.sandboxes.values()]:
            self._kill(sandbox)
        for sandbox in [*self.sandboxes.values()]:
            if sandbox.pidfd >= 0:
                os.waitid(os.P_PIDFD, sandbox.pidfd, os.WEXITED)
            sandbox.reply = lambda *_, **__: None
            self._release(sandbox)
        for zygote in self.zygotes.values():
            zygote.control.close()
        if self.relay is not None:
            self.relay.close()
        if self.parent is not None:
            self.parent.close()
        if self.host is not None:
            for name in ("clients", "kernels"):
                for entry in os.listdir(f"{self.folder}/{name}"):
                    _unlink(f"{self.folder}/{name}/{entry}")
                os.rmdir(f"{self.folder}/{name}")
            _unlink(f"{self.folder}/{VISITS}")
            os.rmdir(self.folder)


def _tell(visitor: socket.socket, message: dict[str, Any]) -> None:
    try:
        packets.send(visitor, message)
    except OSError:  # it did not wait for its answer
        pass


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def main() -> None:
    """Serve the server at descriptor 3 until it goes."""
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    supervisor = Supervisor(socket.socket(fileno=3))
    supervisor.server.set_inheritable(False)

    def stop(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        supervisor.serve()
    finally:
        supervisor.close()
