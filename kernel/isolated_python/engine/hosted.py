"""
The supervisor of one user of a shared machine: root's, for the kernels of all that user's servers and nobody else's.

The service (service.py) starts it, and hands it the connection of each server. A server is here an ordinary process of
the user, and may say anything. So what it says is held against ORDER; the profile is read from root's files, under
root's ceiling; a folder is what the server could open itself, and is mounted with the user's rights, not with ours;
and everything that is made for the user, us included, is in one cgroup with the user's quota.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import pwd
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from isolated_python import __version__
from isolated_python.audit.log import Log
from isolated_python.engine import ADAPTIVE, ROOT, interpreters, places, zygotes
from isolated_python.engine.identities import COUNT, FIRST, OfOnePerson
from isolated_python.engine.pool import Pool
from isolated_python.engine.supervisor import Reply, Request, Supervisor, received, word
from isolated_python.engine.words import Words
from isolated_python.errors import IsolatedPythonError, ProfileError, ProtocolError, RequestError
from isolated_python.layers import cgroup
from isolated_python.layers.catalogue import Plan
from isolated_python.linux import packets
from isolated_python.linux.process import Person
from isolated_python.policy import service as policy
from isolated_python.policy import sources
from isolated_python.policy.parse import LEAST_IMAGE
from isolated_python.policy.profile import Profile, Resources
from isolated_python.record import asdict, replace

MINUTE = 60.0
LARGEST_VIEW = 4 << 20  # bytes of a list of what is hidden
MOST_VIEWS = 64
MOST_ZYGOTES = 8
SHORTLY = 1.0  # seconds to read why nobody is served
MOST_STRANGERS = 32  # connections at a time that have not greeted: commands of the user's
HELPERS = Resources(memory=None, processes=512, cpu=None)  # of us, the relay and the zygotes; memory: as the quota says
F_GET_SEALS = 1034  # linux 3.17; EINVAL for everything that does not live in memory

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SOCKETS = re.compile(r"[0-9a-f]{8}")


# ---- what a server may say -----------------------------------------------------------------------------------------


def _text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _path(value: object) -> bool:
    return isinstance(value, str) and _text(value) and value.startswith("/") and os.path.normpath(value) == value


def _interpreter(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and _path(value[0]) and _texts(value[1]) and _text(value[2])


def _ports(value: object) -> bool:
    return isinstance(value, list) and len(value) == 5 and all(type(port) is int and 0 < port < 65536 for port in value)


def _streams(value: object) -> bool:
    names = {"stdin", "stdout", "stderr"}
    return isinstance(value, dict) and {*value} == names and all(type(given) is bool for given in value.values())


def _table(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _environment(value: object) -> bool:
    return isinstance(value, dict) and all(_text(name) and _text(text) for name, text in value.items())


# Every key of an order that is taken from a server, and how it must look. What is not here is ours to say.
ORDER: dict[str, Callable[[object], bool]] = {
    "kernel": lambda value: isinstance(value, str) and bool(NAME.fullmatch(value)),
    "owner": _text,
    "trees": lambda value: isinstance(value, list) and len(value) <= 64 and all(map(_path, value)),
    "view": _text,
    "root": _path,
    "interpreter": _interpreter,
    "argv": lambda value: value is None or (_texts(value) and value != []),
    "arguments": _texts,
    "cwd": _path,
    "connection": lambda value: _texts(value) and len(value) == 2 and _table(value[1]),  # type: ignore[arg-type,index]
    "environment": _environment,
    "key": _text,
    "streams": _streams,
    "sockets": lambda value: isinstance(value, str) and bool(SOCKETS.fullmatch(value)),
    "ports": _ports,
    "pool": lambda value: type(value) is int and value >= ADAPTIVE,
}

# Of these a zygote is made.
BIRTH = ("trees", "view", "root", "interpreter", "argv")

# What the view makes itself: no tree of a server's may lie over or under it.
TAKEN = ("/proc", "/dev", "/sys", "/etc", "/run", "/home/user", "/mnt/workspace", "/workspace")


def order(request: Request, keys: Iterable[str] = tuple(ORDER)) -> Request:
    """What of a request to start is taken, each part well-formed. Raises RequestError."""
    for key in keys:
        if key not in request or not ORDER[key](request[key]):
            raise RequestError(f"a request to start says nothing that can be meant by {key}")
    return {key: request[key] for key in keys}


def check_trees(trees: list[str], home: str) -> None:
    """Host folders that may be shown: nothing of the view's own, no home folder. Raises RequestError."""
    links = [path for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32") if os.path.islink(path)]
    for tree in trees:
        if any((tree + "/").startswith(place + "/") for place in (*TAKEN, *links)) or _above(tree, (*TAKEN, home)):
            raise RequestError(f"a kernel cannot be shown the folder {tree!r}")


def _above(folder: str, places: tuple[str, ...]) -> bool:
    return any((place + "/").startswith(folder.rstrip("/") + "/") for place in places if place)


def check_stream(descriptor: int) -> None:
    """A pipe, or /dev/null: through anything else a kernel would reach what its profile does not grant."""
    about = os.fstat(descriptor)
    if not stat.S_ISFIFO(about.st_mode) and (stat.S_IFMT(about.st_mode), about.st_rdev) != NULL:
        raise RequestError(
            "a standard stream is neither a pipe nor /dev/null", remedy="start the kernel without a stdout of its own"
        )


NULL = (stat.S_IFCHR, os.makedev(1, 3))


def check_folder(descriptor: int, what: str) -> None:
    """A folder that whoever sent it could open for reading."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_PATH or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise RequestError(f"the descriptor of {what} is not an open folder")


def check_archive(descriptor: int, uid: int) -> None:
    """A file of the user's own, which they have opened to write to."""
    about, flags = os.fstat(descriptor), fcntl.fcntl(descriptor, fcntl.F_GETFL)
    writable = flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR) and not flags & os.O_PATH
    if not stat.S_ISREG(about.st_mode) or about.st_uid != uid or not writable:
        raise RequestError("the descriptor of the archive is not a file of yours that can be written to")


# ---- the supervisor --------------------------------------------------------------------------------------------------


class Peer:
    """A server, or the command line."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.greeted = False
        self.kernels: set[str] = set()  # those it has started and not forgotten


class Starts:
    """When the last kernels were started, in memory of the service: whoever comes after us must not begin anew."""

    def __init__(self, file: int, most: int) -> None:
        self.most = most
        self._times = memoryview(mmap.mmap(file, 8 * most)).cast("d")

    def note(self) -> None:
        """Raises RequestError where there were too many within a minute."""
        times, now = self._times.tolist(), time.monotonic()
        oldest = times.index(min(times))
        if times[oldest] and now - times[oldest] < MINUTE:
            wait = MINUTE - (now - times[oldest])
            raise RequestError(
                f"you have started {self.most} kernels within a minute, and this machine's service allows no more",
                remedy=f"try again in {wait:.0f} s",
            )
        self._times[oldest] = now

    def lately(self) -> int:
        """How many there were within a minute."""
        return sum(bool(then) and time.monotonic() - then < MINUTE for then in self._times.tolist())


class Hosted(Supervisor):
    """`service`: our end of the channel from which connections come, and the lifeline."""

    def __init__(self, service: socket.socket, settings: policy.Settings, person: Person, starts: Starts) -> None:
        super().__init__(service)
        self.settings, self.person, self.starts = settings, person, starts
        self.home = os.path.realpath(pwd.getpwuid(person.uid).pw_dir)
        self.peers: list[Peer] = []
        self.pool = Pool(self.loop, self._make_ahead, self._bound)
        self.given = 0  # connections that the service has handed to us
        self.refusal: IsolatedPythonError | None = None  # why we can serve nobody

    def begin(self, identities: int, cache: str) -> None:
        """Move into the user's cgroup, and build what all kernels share."""
        try:
            self.groups = cgroup.choose().open()
            self.groups.limit(self.settings.each_user.together)
            helpers = self.groups.group("helpers")
            helpers.limit(HELPERS)
            helpers.attach(os.getpid())
            log = Log(self.settings.audit, uid=self.person.uid)
            folder = places.private_folder()
            self._settle(sys.executable, folder, cache, log, OfOnePerson(identities), self.person)
        except (IsolatedPythonError, OSError) as error:
            self.refusal = (
                error if isinstance(error, IsolatedPythonError) else RequestError(f"the service cannot begin: {error}")
            )

    # ---- what a server may ask -------------------------------------------------------------------------------------

    def greet(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """The first request of a server. The answer says where its kernels' sockets will be."""
        servers, most = self._servers(), self.settings.each_user.servers
        refusal = self.refusal
        if servers >= most:
            refusal = RequestError(
                f"you have {servers} servers, and this machine's service gives each user no more than {most}",
                remedy="stop one of them",
            )
        if refusal is not None:
            self.loop.later(SHORTLY, partial(self._hang_up, peer))  # whoever asks again asks anew
            raise refusal
        peer.greeted = True
        reply(folder=self.folder, version=__version__)

    def resolve(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """What a profile of root's comes to, with these changes, under root's ceiling."""
        resolved = self._resolved(request)
        reply(profile=resolved.profile.to_wire(), notes=resolved.notes)

    def show(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """As `see`, of a file that lives in memory: any other could keep us waiting."""
        try:
            fcntl.fcntl(descriptors[0], F_GET_SEALS)
            bounded = os.fstat(descriptors[0]).st_size <= LARGEST_VIEW
        except (OSError, IndexError):
            bounded = False
        if not bounded or not _text(request.get("digest")) or not isinstance(request.get("replaces"), str | None):
            raise RequestError("a view is a short file in memory, and its digest")
        if len(self.views) >= MOST_VIEWS:
            del self.views[next(digest for digest in self.views if digest)]
        self.see(request, descriptors, reply)

    def warmed(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """As `warm`, with `named` and `overrides` in the place of a profile. It counts as a start."""
        wanted = order(request, BIRTH)
        self.starts.note()
        profile = self._resolved(request).profile
        self._place(wanted)
        self.warm({**wanted, "profile": profile.to_wire()}, descriptors, reply)

    def launch(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """As `start`, with `named` and `overrides` in the place of a profile."""
        wanted = order(request)
        name, most = wanted["kernel"], self.settings.each_user.kernels
        if any(name in other.kernels for other in self.peers if other is not peer):
            raise RequestError(f"the kernel {name} is another server's")
        held = self._held()
        if name not in peer.kernels and held >= most:
            raise RequestError(
                f"you have {held} kernels, and this machine's service gives each user no more than {most}",
                remedy="shut some of them down",
            )
        self.starts.note()
        profile = self._resolved(request).profile
        self._check_disk(profile)
        self._check_descriptors(wanted["streams"], profile, descriptors)
        self._place(wanted)
        if not self.settings.each_user.ahead:
            wanted["pool"] = 0
        peer.kernels.add(name)
        self.start({**wanted, "profile": profile.to_wire()}, descriptors, reply)

    def _place(self, wanted: Request) -> None:
        """Where its programs are. Raises RequestError."""
        check_trees(wanted["trees"], self.home)
        if wanted["argv"] is not None:  # executed by a zygote of our own installation, which must see that
            wanted["trees"] = [*wanted["trees"], *interpreters.own_base(), ROOT]
            wanted["root"] = ROOT

    def _held(self) -> int:
        return sum(len(each.kernels) for each in self.peers)

    def _bound(self) -> int:
        """How many kernels may stand ready for this user: those that somebody has come first."""
        each = self.settings.each_user
        return min(each.ahead, each.kernels - self._held())

    def signalled(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        if request["kernel"] not in peer.kernels:
            raise RequestError("there is no such kernel of this server's")
        self.signal(request, descriptors, reply)

    def let_go(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """As `forget`, for any kernel of this user."""
        for each in self.peers:
            each.kernels.discard(request["kernel"])
        self.forget(request, descriptors, reply)

    def ended(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """As `forget`, of the command line: the server that owns the kernel is told, and lets go of it itself."""
        sandbox = self.sandboxes.get(request["kernel"])
        if sandbox is not None:
            sandbox.forget()
        reply()

    def told(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        """What this user gets here, has now and may have at most: for the doctor."""
        if self.refusal is not None:
            raise self.refusal
        used = self.groups.usage() if isinstance(self.groups, cgroup.Parent) else None
        reply(
            version=__version__,
            uid=self.person.uid,
            cgroup=self.host.cgroup,
            identities=[FIRST, FIRST + COUNT],
            has={
                "kernels": self._held(),
                "servers": self._servers(),
                "starts": self.starts.lately(),
                "memory": used.memory if used else None,
                "processes": used.processes if used else None,
                "disk": self._on_disk(),
            },
            may_have=asdict(self.settings.each_user),
            profiles=[*sources.names(self._profiles())],
        )

    def _servers(self) -> int:
        return sum(peer.greeted for peer in self.peers)

    def counted(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        self.report(request, descriptors, reply)

    def refused(self, peer: Peer, request: Request, descriptors: list[int], reply: Reply) -> None:
        self.refuse(request, descriptors, reply)

    SERVERS: ClassVar[dict[str, Callable[..., None]]] = {
        "resolve": resolve,
        "see": show,
        "warm": warmed,
        "start": launch,
        "signal": signalled,
        "forget": let_go,
        "refuse": refused,
        "list": counted,
    }

    # Before a hello: what the command line may ask.
    STRANGERS: ClassVar[dict[str, Callable[..., None]]] = {
        "hello": greet,
        "about": told,
        "list": counted,
        "kill": ended,
    }

    # ---- what it is held against -----------------------------------------------------------------------------------

    def _resolved(self, request: Request) -> sources.Resolved:
        named, overrides = request.get("named"), request.get("overrides")
        if not isinstance(named, str) or not isinstance(overrides, dict):
            raise RequestError("a request names no profile")
        folders = [Path(path) for path in self.settings.policy]
        for folder in folders:
            places.roots_own(folder)
        profiles = self._profiles()
        changes = [("the configuration", overrides)] if overrides else []
        resolved = sources.load(named, changes, folders=profiles, ceilings=folders, otherwise=policy.CEILING)
        if not resolved.profile.files.kept:
            return resolved
        cause, remedy = self.host.lacks("image")
        if cause:
            raise ProfileError(
                f"the service keeps what a kernel has changed in an image on the disk, and there is none: {cause}",
                remedy=f'{remedy}, or write changes = "discard"',
            )
        profile = resolved.profile
        size = profile.files.size or max(profile.resources.tmp, LEAST_IMAGE)
        return replace(resolved, profile=replace(profile, files=replace(profile.files, size=size, image="require")))

    def _on_disk(self) -> int:
        """Bytes of images: also of those whose kernel has ended, and that a process of theirs still holds."""
        assert self.shared is not None
        self.shared.images = [image for image in self.shared.images if image.there]
        return sum(image.size for image in self.shared.images)

    def _check_disk(self, profile: Profile) -> None:
        """Raises RequestError where the images of this user would have more room than there is for one."""
        most, asked = self.settings.each_user.disk, profile.files.bound or 0
        if most is None or not asked or profile.files.image == "off":
            return
        held = self._on_disk()
        if held + asked > most:
            raise RequestError(
                f"what changes in the workspaces of your kernels has {held >> 20} MiB on the disk; {asked >> 20} MiB "
                f"more are above the {most >> 20} MiB that this machine's service gives each user",
                remedy="shut some of them down, or ask for a smaller files.size",
            )

    def _profiles(self) -> list[Path]:
        return [*(Path(path) / "profiles" for path in self.settings.policy), sources.SHIPPED]

    def _check_descriptors(self, streams: dict[str, bool], profile: Profile, descriptors: list[int]) -> None:
        """Those of the streams, the workspace and the mounts, in this order. Raises RequestError, ProfileError."""
        rest, files = [*descriptors], profile.files
        if len(rest) != sum(streams.values()) + (files.workspace != "none") + len(files.mounts) + files.kept:
            raise RequestError("a request to start has not the descriptors that its profile asks for")
        for _ in range(sum(streams.values())):
            check_stream(rest.pop(0))
        if files.workspace != "none":
            self._check_workspace(rest.pop(0))
        for grant in files.mounts:
            folder = rest.pop(0)
            check_folder(folder, "a granted folder")
            # Whoever owns it: it is mounted with the rights that this user has there, less those of a group.
            if os.readlink(f"/proc/self/fd/{folder}") != os.path.realpath(grant.source):
                raise RequestError(f"the descriptor for {grant.source!r} is of another folder")
        if files.kept:
            check_archive(rest.pop(0), self.person.uid)

    def _check_workspace(self, folder: int) -> None:
        check_folder(folder, "the workspace")
        path = os.readlink(f"/proc/self/fd/{folder}")
        if os.fstat(folder).st_uid != self.person.uid:
            raise RequestError(
                f"the notebook's folder {path!r} belongs to another user", remedy="copy it into a folder of your own"
            )
        if (self.home + "/").startswith(path.rstrip("/") + "/"):
            raise ProfileError(
                f"the notebook lies in {path!r}, and a kernel must not see a whole home folder with its dotfiles",
                remedy="move the notebook into a folder of its own",
            )

    # ---- connections -----------------------------------------------------------------------------------------------

    def _from_server(self) -> None:
        """From the service: another connection, or the end."""
        message, descriptors = packets.receive(self.server)
        if message is None:
            raise SystemExit(0)
        self.given += 1
        peer = Peer(socket.socket(fileno=descriptors[0]))
        peer.socket.setblocking(False)  # who does not take an answer is hung up on
        strangers = [each for each in self.peers if not each.greeted]
        if len(strangers) >= MOST_STRANGERS:
            self._hang_up(strangers[0])
        self.peers.append(peer)
        self.loop.listen(peer.socket, partial(self._from_peer, peer))

    def _from_peer(self, peer: Peer) -> None:
        request, descriptors = received(peer.socket)
        if request is None:
            self._hang_up(peer)
            return
        verb = (self.SERVERS if peer.greeted else self.STRANGERS).get(word(request.get("verb")))
        if self.refusal is not None and verb not in (Hosted.greet, Hosted.told):
            verb = None
        self._answer(request, descriptors, verb and partial(verb, self, peer), partial(self._tell, peer))

    def _tell(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer in self.peers:
            try:
                packets.send(peer.socket, message)
            except OSError:  # gone, or deaf
                self.loop.later(0.0, partial(self._hang_up, peer))

    def _hang_up(self, peer: Peer) -> None:
        """The end of a server is the end of its kernels, also of those that are on their way."""
        if peer not in self.peers:
            return
        self.peers.remove(peer)
        self.loop.ignore(peer.socket)
        peer.socket.close()
        for name in peer.kernels:
            self._forget(name)
        if not self.peers:
            self._tell_service({"event": "idle", "given": self.given})

    def _tell_service(self, message: dict[str, Any]) -> None:
        try:
            packets.send(self.server, message)
        except OSError:
            raise SystemExit(0) from None

    def _tell_server(self, message: dict[str, Any]) -> None:
        for peer in self.peers:  # those of this user to whom the name says nothing pay no heed to it
            if peer.greeted:
                self._tell(peer, message)

    # ---- zygotes ---------------------------------------------------------------------------------------------------

    def _start_zygote(self, kind: zygotes.Kind, made: Plan, uid: int | None) -> zygotes.Zygote:
        """It may be a program of the user's own: so it does not write to our log, and there are not too many."""
        if len(self.zygotes) >= MOST_ZYGOTES:
            oldest = self.zygotes.pop(next(iter(self.zygotes)))
            self.loop.ignore(oldest.control)
            oldest.control.close()
            os.kill(oldest.pid, signal.SIGKILL)  # a child of ours that nobody has reaped
        return zygotes.start(kind, made.view, uid, self._cradle, Words(self.loop))

    def _zygote_ended(self, zygote: zygotes.Zygote, reap: Callable[[], None]) -> None:
        super()._zygote_ended(zygote, reap)
        if zygote.words is not None:
            zygote.words.close()

    def close(self) -> None:
        """Take everything down. Our own cgroup is left to the service: we are in it."""
        self.groups = None
        if self.refusal is None:
            super().close()


def main() -> None:
    """Serve the user that the service names at descriptor 3, until it hangs up."""
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    service = socket.socket(fileno=3)
    service.set_inheritable(False)
    told, (identities, starts) = packets.receive(service)
    if told is None:
        return
    settings = policy.Settings.from_wire(told["settings"])
    person = Person(told["uid"], told["gid"])
    hosted = Hosted(service, settings, person, Starts(starts, settings.each_user.starts))
    hosted.begin(identities, told["cache"])
    try:
        hosted.serve()
    except ProtocolError:
        pass
    finally:
        hosted.close()
