"""
The supervisor: holds every sandbox of one server, and takes them all down when that server goes.

What may be asked of it is the table REQUESTS. Nothing that a kernel wrote ever gets here, but for the numbers of the
calls it was refused, and the end of what it wrote to its standard streams.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from isolated_python.audit.ledger import Ledger
from isolated_python.audit.log import Log
from isolated_python.engine import relays, usage, zygotes
from isolated_python.engine.cradle import Cradle
from isolated_python.engine.identities import Identities, identities_file, leave
from isolated_python.engine.loop import Loop
from isolated_python.engine.mover import Mover
from isolated_python.engine.pool import Pool
from isolated_python.engine.sandbox import CHANNELS, Sandbox, Shared
from isolated_python.engine.weights import Weights
from isolated_python.errors import HostError, IsolatedPythonError, LaunchError, ProtocolError, RequestError
from isolated_python.layers import cgroup, seccomp, view
from isolated_python.layers.catalogue import Plan, plan
from isolated_python.layers.filters import kept
from isolated_python.linux import host as host_facts
from isolated_python.linux import mount, namespaces, packets, prctl
from isolated_python.linux.process import Person
from isolated_python.policy.profile import Profile
from isolated_python.record import replace

VISITS = "visits"  # the socket in our folder where the command line may call
PAGE = 64  # kernels in one answer to `list`
FOLDERS = ("clients", "kernels")  # of sockets: of those outside, and of those inside
NOBODY = {"owner": "", "cell": ""}

Request = dict[str, Any]
Reply = Callable[..., None]


class Supervisor:
    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.loop = Loop()
        self.sandboxes: dict[str, Sandbox] = {}
        self.idle: set[str] = set()  # kernels that were ended for it, and may be started again
        self.zygotes: dict[zygotes.Kind, zygotes.Zygote] = {}
        self.filters: dict[str, seccomp.Filter] = {}
        self.views: dict[str, tuple[view.Hidden, str]] = {"": ((), "")}  # digest → what is hidden, what the guard tells
        self.shared: Shared | None = None  # until hello
        self.lock = ""  # the path of our own file of identities; empty where we have none, or it is the service's
        self.groups: cgroup.Parent | HostError | None = None  # None: not asked for yet
        self.births, self.nurseries = itertools.count(1), itertools.count(1)
        self.pool = Pool(self.loop, self._make_ahead)
        self.weights = Weights(self.loop, self.sandboxes)

    # ---- what the server may ask -----------------------------------------------------------------------------------

    def hello(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        """The first request, once: where things are. Builds what all kernels share."""
        identities = None
        if host_facts.privileged():
            self.lock = os.path.join(request["identities"], "lock")
            identities = Identities(identities_file(self.lock))
        log = Log(request["audit"], mirror=self._mirror)
        self._settle(request["interpreter"], request["folder"], request["cache"], log, identities)
        reply(folder=self.folder)

    def _settle(
        self, interpreter: str, folder: str, cache: str, log: Log, identities: Identities | None,
        person: Person | None = None,
    ) -> None:  # fmt: skip
        """`person`: whose kernels these are, where that is not who we are."""
        self.interpreter, self.folder, self.cache, self.log = interpreter, folder, cache, log
        self.ledger = Ledger(log.write)
        self.mover = Mover(self.loop)
        asked = host_facts.asking()
        if identities:
            namespaces.unshare(namespaces.CLONE_NEWNS)
        else:
            self._own_user_namespace()
        mount.make_slave()
        prctl.set_child_subreaper()
        for name in FOLDERS:
            os.makedirs(f"{self.folder}/{name}", mode=0o700)
        if identities:
            os.chown(f"{self.folder}/kernels", identities.relay, -1)
            os.chmod(self.folder, 0o711)  # noqa: S103 - the relay passes through, to a folder of its own
        if person:
            os.chmod(f"{self.folder}/clients", 0o711)  # noqa: S103 - each socket in it is the person's alone
        self.visits = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.visits.bind(f"{self.folder}/{VISITS}")
        self.visits.listen(8)
        self.loop.listen(self.visits, self._admit)
        relay = relays.Relay(
            self.loop, self._filter("relay").program, identities.relay if identities else None, self.folder,
            self._heard, self.log.write, self._relay_replaced, person.uid if person else None,
        )  # fmt: skip
        self.shared = Shared(
            self.loop, self.log, self.ledger, self.folder, relay, identities,
            self._call_name, self._taken, self._gone, self._ended, person,
        )  # fmt: skip
        self.host = asked()
        cgroup.sweep()
        self.loop.reap_strangers(lambda: all(one.state != "asked" for one in self.sandboxes.values()))
        self.log.write("supervisor-started", host=self.host.to_wire())

    def warm(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        """Start the zygote that such a kernel will come from, ahead of the request for it."""
        profile = Profile.from_wire(request["profile"])
        self._zygote(request, profile, self._plan(profile, request))
        reply()

    def see(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        """What a list of modules hides, sent once and then named by its digest. Descriptor: a file with it.

        `replaces`: the digest of the same list before the environment changed; its zygotes have had their time.
        """
        with os.fdopen(os.dup(descriptors[0]), encoding="utf-8") as file:
            file.seek(0)
            wire = json.load(file)
        hidden = tuple((folder, tuple(names)) for folder, names in wire["hidden"])
        view.check(hidden)
        lists = json.dumps({key: wire[key] for key in ("granted", "refused")})
        self.views[request["digest"]] = (hidden, lists)
        for kind in [kind for kind in self.zygotes if request["replaces"] == kind.view]:
            old = self.zygotes.pop(kind)
            self.loop.ignore(old.control)
            old.control.close()
        reply()

    def start(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        """Start a kernel. Descriptors: its standard streams, the workspace if one is granted, further mounts."""
        assert self.shared is not None
        name = request["kernel"]
        if name in self.sandboxes:
            raise RequestError(f"the kernel {name} runs already")
        sandbox = self.pool.take(request)
        if sandbox is not None:
            del self.sandboxes[sandbox.name]
            begin = partial(sandbox.hand_over, request, [*descriptors], reply)
        else:
            profile = Profile.from_wire(request["profile"])
            made = self._plan(profile, request)
            sandbox = Sandbox(self.shared, request, profile, made, reply)
            begin = partial(sandbox.start, [*descriptors], lambda: self._zygote(request, profile, made))
        self.sandboxes[name] = sandbox
        # What a server starts in the place of an idle kernel stays until a cell has run in it: or both would never end.
        sandbox.watch.used = name not in self.idle
        self.idle.discard(name)
        self.weights.begin()
        try:
            begin()
        except Exception as error:
            reply(error if isinstance(error, IsolatedPythonError) else LaunchError(str(error) or repr(error)))
            sandbox.fail(str(error) or repr(error))

    def _make_ahead(self, request: Request, stands: Callable[[Sandbox], None]) -> Sandbox:
        """Begin a sandbox that belongs to nobody yet."""
        assert self.shared is not None
        profile = Profile.from_wire(request["profile"])
        made = self._plan(profile, request, workspace_later=True)
        sandbox = Sandbox(self.shared, request, profile, made, lambda *_, **__: None, stands)
        self.sandboxes[sandbox.name] = sandbox
        try:
            sandbox.start([], lambda: self._zygote(request, profile, made))
        except Exception as error:
            sandbox.fail(str(error) or repr(error))
        return sandbox

    def signal(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        sandbox = self.sandboxes.get(request["kernel"])
        if sandbox is not None:
            sandbox.signal(int(request["signal"]))
        reply()

    def forget(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        """End a kernel if it runs, and close its door for good."""
        self._forget(request["kernel"])
        reply()

    def _forget(self, name: str) -> None:
        assert self.shared is not None
        sandbox = self.sandboxes.get(name)
        if sandbox is not None:
            sandbox.forget()
        self.shared.relay.close(name)
        self.ledger.end(name)
        self.idle.discard(name)

    def refuse(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        """A start that the server's side has refused: for the record."""
        self._start_refused(request, word(request.get("reason"), 1000))
        reply()

    def report(self, request: Request, descriptors: list[int], reply: Reply) -> None:
        """What runs, PAGE at a time from the number `start` on: an answer has a bound, and a site many kernels."""
        start = int(request.get("start", 0))
        kernels = [
            {
                "kernel": sandbox.name,
                "profile": sandbox.profile.name,
                "state": sandbox.state,
                "seconds": round(time.monotonic() - sandbox.began, 1),
                **usage.figures(sandbox.group, sandbox.limits),
                "cpu_weight": sandbox.weight,
                "weakened": sandbox.plan.notes,
                "refused": sandbox.refused_most,
            }
            for sandbox in [*self.sandboxes.values()][start : start + PAGE]
        ]
        reply(kernels=kernels, total=len(self.sandboxes))

    REQUESTS: ClassVar[dict[str, Callable[..., None]]] = {
        "hello": hello,
        "warm": warm,
        "see": see,
        "start": start,
        "signal": signal,
        "forget": forget,
        "refuse": refuse,
        "list": report,
    }

    # What the command line may ask, of the supervisor of any server of the same user.
    VISITS: ClassVar[dict[str, Callable[..., None]]] = {"list": report, "kill": forget}

    def _from_server(self) -> None:
        request, descriptors = received(self.server)
        if request is None:
            raise SystemExit(0)
        verb = self.REQUESTS.get(word(request.get("verb")))
        if (self.shared is None) != (verb is Supervisor.hello):
            verb = None  # hello is the first, and only the first
        self._answer(request, descriptors, verb and partial(verb, self), self._tell_server)

    def _admit(self) -> None:
        """A visitor: the socket lies in our private folder, and the kernel says whose process it is."""
        visitor, _ = self.visits.accept()
        uid = struct.unpack("iii", visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid not in (0, os.getuid()):
            visitor.close()
            return
        visitor.setblocking(False)  # who does not take an answer gets none

        def visit() -> None:
            request, descriptors = received(visitor)
            if request is None:
                self.loop.ignore(visitor)
                visitor.close()
                return
            verb = self.VISITS.get(word(request.get("verb")))
            self._answer(request, descriptors, verb and partial(verb, self), lambda message: _tell(visitor, message))

        self.loop.listen(visitor, visit)

    def _answer(
        self, request: Request, descriptors: list[int], verb: Callable[..., None] | None,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        number, answered = request.get("id"), False
        starts = verb is not None and request.get("verb") == "start"

        def reply(error: IsolatedPythonError | None = None, **values: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                if error and starts:
                    self._start_refused(request, str(error))
                try:
                    tell({"id": number, **(error.to_wire() if error else values)})
                except ProtocolError as large:
                    tell({"id": number, **large.to_wire()})

        try:
            if not isinstance(number, int | None):
                number = None
                raise RequestError("the id of a request is no number")
            if verb is None:
                raise RequestError(f"there is no request {word(request.get('verb'))!r} in this state")
            verb(request, descriptors, reply)
        except IsolatedPythonError as error:
            reply(error)
        except Exception as error:  # one request that cannot be served must not end every kernel
            reply(LaunchError(f"{type(error).__name__}: {error}"[:1000]))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start_refused(self, request: Request, reason: str) -> None:
        profile = request.get("profile")
        about = {"profile": profile.get("name") if isinstance(profile, dict) else request.get("named")}
        about |= {name: request.get(name) for name in ("kernel", "owner")}
        texts = {name: value if isinstance(value, str) else "" for name, value in about.items()}
        self.ledger.tell("start-refused", texts.pop("kernel"), account_of="", reason=reason, **texts)

    def _mirror(self, record: dict[str, Any]) -> None:
        """The server may pass records on. One that does not listen does not hold us up: the file has them."""
        try:
            message = json.dumps({"event": "audit", "record": record}, separators=(",", ":")).encode()
            socket.send_fds(self.server, [message], [], socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            pass

    def _tell_server(self, message: dict[str, Any]) -> None:
        try:
            packets.send(self.server, message)
        except OSError:
            raise SystemExit(0) from None

    # ---- what sandboxes share --------------------------------------------------------------------------------------

    def _own_user_namespace(self) -> None:
        """Become the one who may mount, in a user namespace that knows us alone. An ordinary user needs no more."""
        uid, gid = os.getuid(), os.getgid()
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
            namespaces.map_ids("self", [(uid, uid, 1)], [(gid, gid, 1)])
        except OSError as error:
            cause, remedy = host_facts.probe().lacks("user")
            raise HostError(f"no user namespace can be made: {cause or error}", remedy=remedy) from error

    def _plan(self, profile: Profile, request: Request, *, workspace_later: bool = False) -> Plan:
        wanted = profile.layers.seccomp != "off" and not self.host.lacks("seccomp")[0]
        filter = self._filter(seccomp.table_of(profile)) if wanted else None
        hidden, modules = self.views[request["view"]]
        trees = tuple(request["trees"])
        person = self.shared.person if self.shared else None
        return plan(profile, self.host, trees, filter, hidden, modules, workspace_later=workspace_later, person=person)

    def _filter(self, name: str) -> seccomp.Filter:
        if name not in self.filters:
            self.filters[name] = kept.cached(name, self.cache, self.interpreter)
        return self.filters[name]

    def _call_name(self, number: int) -> str:
        known = (filter.names[number] for filter in self.filters.values() if number in filter.names)
        return next(known, str(number))

    def _taken(self, pid: int) -> bool:
        known = {sandbox.pid for sandbox in self.sandboxes.values()} | {zygote.pid for zygote in self.zygotes.values()}
        return pid in known

    def _group(self, name: str = "") -> cgroup.Group:
        """A group for a kernel to be born in, or for `name`. Raises HostError where this host has none for us."""
        if self.groups is None:
            try:
                self.groups = cgroup.choose().open()
            except HostError as error:
                self.groups = error
        if isinstance(self.groups, HostError):
            raise self.groups
        try:
            return self.groups.group(name or f"kernel-{next(self.births)}")
        except OSError as error:
            raise HostError(f"no cgroup can be made: {error}") from error

    def _zygote(self, request: Request, profile: Profile, made: Plan) -> zygotes.Zygote:
        assert self.shared is not None
        network = not made.namespaces & namespaces.CLONE_NEWNET
        trees, places = tuple(request["trees"]), tuple(grant.target for grant in profile.files.mounts)
        if request["argv"] is None:
            interpreter, flags, userbase = request["interpreter"]
            preload = ("ipykernel.kernelapp", *profile.preload)
            kind = zygotes.Kind(interpreter, tuple(flags), userbase, trees, request["view"], places, preload, network)
            kind = replace(kind, root=request.get("root", kind.root))
        else:
            kind = zygotes.own_interpreter(network, trees, request["view"], places)
        if kind not in self.zygotes:
            identities = self.shared.identities
            zygote = self._start_zygote(kind, made, identities.zygotes if identities else None)
            self.zygotes[kind] = zygote
            self.loop.listen(zygote.control, lambda: self._from_zygote(zygote))
            self.loop.at_end_unreaped(zygote.pid, lambda reap: self._zygote_ended(zygote, reap))
        return self.zygotes[kind]

    def _start_zygote(self, kind: zygotes.Kind, made: Plan, uid: int | None) -> zygotes.Zygote:
        nursery = None
        with contextlib.suppress(HostError):  # each profile says whether a kernel without a cgroup is refused
            nursery = self._group(f"zygote-{next(self.nurseries)}")
        return zygotes.start(kind, made.view, uid, partial(self._cradle, nursery=nursery), nursery=nursery)

    def _cradle(self, zygote: int, nursery: cgroup.Group | None = None) -> Cradle:
        return Cradle(self.mover, self._group, zygote, nursery)

    def _from_zygote(self, zygote: zygotes.Zygote) -> None:
        message = packets.heard(zygote.control)
        if message is None:
            self.loop.ignore(zygote.control)
            zygote.control.close()
        elif message.get("event") == "soon" and not zygote.soon:
            zygote.soon = True
            self.mover.soon()
        elif message.get("event") == "ready" and not zygote.ready:
            zygote.ready = True
            zygote.cradle.go_on()
        elif message.get("event") == "forked" and zygote.ready:
            zygote.cradle.go_on()
        elif message.get("event") == "prepared" and zygote.ready and not zygote.prepared:
            zygote.prepared = True
            zygote.cradle.renew()

    def _zygote_ended(self, zygote: zygotes.Zygote, reap: Callable[[], None]) -> None:
        """Kernels outlive their zygote; whoever asks next gets a new one."""
        if self.zygotes.get(zygote.kind) is zygote:
            del self.zygotes[zygote.kind]
        self.log.write("zygote-ended", pid=zygote.pid, ready=zygote.ready)
        zygote.cradle.end(reap)
        for sandbox in [*self.sandboxes.values()]:
            if sandbox.state == "asked" and sandbox.zygote is zygote:
                sandbox.fail(f"its zygote ended before it was born; {zygote.last_words()}")

    def _heard(self, name: str, event: dict[str, Any]) -> None:
        """From the relay, of the kernel `name`."""
        sandbox = self.sandboxes.get(name)
        match event.get("event"):
            case "want" if sandbox is not None:
                sandbox.give_sockets(event["count"])
            case "refused" if event["channel"] in CHANNELS:
                about = {"owner": sandbox.owner, "cell": sandbox.watch.cell} if sandbox is not None else NOBODY
                what = {"channel": event["channel"], "rule": event["rule"]}
                self.ledger.count(
                    "relay-refused", name, f"{event['channel']} {event['rule']}", event["count"], **what, **about
                )
            case "activity" if sandbox is not None:
                sandbox.watch.heard(busy=True, cell=event["msg_id"])
            case "idle" if sandbox is not None:
                sandbox.watch.heard(busy=False)
                sandbox.watch.look()
            case "usage" if sandbox is not None:
                sandbox.tell_usage()
            case "overdue" if sandbox is not None:
                sandbox.watch.overdue(again=event["again"])

    def _relay_replaced(self) -> None:
        for sandbox in self.sandboxes.values():
            sandbox.target()

    def _gone(self, sandbox: Sandbox) -> None:
        if self.sandboxes.get(sandbox.name) is sandbox:
            del self.sandboxes[sandbox.name]
        self.pool.gone(sandbox)

    def _ended(self, sandbox: Sandbox, status: int, reason: str) -> None:
        if sandbox.watch.idle:
            self.idle.add(sandbox.name)
        event = {"event": "ended", "kernel": sandbox.name, "status": status, "reason": reason, "words": sandbox.words}
        self._tell_server(event)

    # ---- its own life ----------------------------------------------------------------------------------------------

    def serve(self) -> None:
        self.loop.listen(self.server, self._from_server)
        self.loop.run()

    def close(self) -> None:
        """Take everything down, and leave nothing."""
        sandboxes = [*self.sandboxes.values()]
        if self.shared is not None:
            self.log.write("supervisor-ended", kernels=len(sandboxes))
            for sandbox in sandboxes:
                self.ledger.end(sandbox.name)
        for sandbox in sandboxes:  # first all of them, then each: they die side by side
            sandbox.kill()
        for sandbox in sandboxes:
            sandbox.end_now()
        for zygote in self.zygotes.values():
            zygote.control.close()
        if self.shared is not None:
            self.shared.relay.stop()
            self.mover.close()
        if isinstance(self.groups, cgroup.Parent):
            self.groups.close()
        if self.shared is not None:
            for name in FOLDERS:
                for entry in os.listdir(f"{self.folder}/{name}"):
                    relays.unlink(f"{self.folder}/{name}/{entry}")
                os.rmdir(f"{self.folder}/{name}")
            relays.unlink(f"{self.folder}/{VISITS}")
            os.rmdir(self.folder)
            if self.shared.identities is not None and self.lock:
                leave(self.shared.identities.file, self.lock)


def received(peer: socket.socket) -> tuple[Request | None, list[int]]:
    """The next request; None where the peer has gone, or does not keep to the protocol."""
    try:
        return packets.receive(peer)
    except (ConnectionError, ProtocolError):
        return None, []


def word(verb: object, longest: int = 40) -> str:
    return verb[:longest] if isinstance(verb, str) else ""


def _tell(visitor: socket.socket, message: dict[str, Any]) -> None:
    try:
        packets.send(visitor, message)
    except OSError:  # it did not wait for its answer
        pass


def main() -> None:
    """Serve the server at descriptor 3 until it goes. What else it lets its programs inherit is not for us."""
    os.closerange(4, 1 << 20)
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    supervisor = Supervisor(socket.socket(fileno=3))
    supervisor.server.set_inheritable(False)
    supervisor.loop.end_at(signal.SIGTERM)
    try:
        supervisor.serve()
    finally:
        supervisor.close()
