"""One kernel's sandbox, from the request for it to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from isolated_python.audit.ledger import Ledger
from isolated_python.audit.log import LONGEST, Log
from isolated_python.engine import places, reasons, relays, usage, workspace
from isolated_python.engine.changes import Changes
from isolated_python.engine.handover import Handover
from isolated_python.engine.identities import Ahead, Identities
from isolated_python.engine.image import Image
from isolated_python.engine.loop import Loop
from isolated_python.engine.quota import Quota
from isolated_python.engine.refusals import Refusals
from isolated_python.engine.watch import Watch
from isolated_python.engine.weights import ANSWERS, WAITS
from isolated_python.engine.words import Words
from isolated_python.engine.zygotes import Zygote
from isolated_python.errors import HostError, IsolatedPythonError, LaunchError, ProtocolError
from isolated_python.layers import cgroup
from isolated_python.layers.catalogue import Plan
from isolated_python.layers.files import PlaceWorkspace
from isolated_python.layers.identity import USER
from isolated_python.linux import namespaces, packets
from isolated_python.linux.process import Person
from isolated_python.policy.profile import Profile, Resources
from isolated_python.record import asdict

CHANNELS = {"shell": "shell", "iopub": "iopub", "stdin": "stdin-channel", "control": "control", "hb": "hb"}
UNLIMITED = Resources(memory=None, processes=None)
START = 60.0  # seconds until a sandbox must stand
LINGER = 5.0  # seconds that the killed are given to be gone
AGAIN = 0.01  # seconds between two tries to remove their cgroup
MOST_NAMED = 20  # refused calls of one kernel that are named to others


class Shared:
    """What all sandboxes of a supervisor have in common."""

    def __init__(
        self, loop: Loop, log: Log, ledger: Ledger, folder: str, relay: relays.Relay, identities: Identities | None,
        call_name: Callable[[int], str], taken: Callable[[int], bool], gone: Callable[[Sandbox], None],
        ended: Callable[[Sandbox, int, str], None], person: Person | None = None,
    ) -> None:  # fmt: skip
        """`folder`: of our sockets. `identities`: None where every kernel runs as who we are.

        `taken`: whether we know such a child of ours already. `gone`: it has been let go of, and its name is free.
        `ended`: a kernel that ran; its status, and why we think so.
        `person`: whose kernels these are, where that is not who we are.
        """
        self.loop, self.log, self.ledger, self.folder, self.relay = loop, log, ledger, folder, relay
        self.identities, self.person = identities, person
        self.call_name, self.taken, self.gone, self.ended = call_name, taken, gone, ended
        self.translations = workspace.Translations()
        self.ahead = Ahead(loop, identities, self.translations.prepare) if identities is not None else None
        self.incarnations = 0
        self.images: list[Image] = []  # all that were made, as far as nobody has found them gone

    @property
    def relay_uid(self) -> int | None:
        return self.identities.relay if self.identities else None


class Sandbox:
    def __init__(
        self, shared: Shared, order: dict[str, Any], profile: Profile, plan: Plan, reply: Callable[..., None],
        stands: Callable[[Sandbox], None] | None = None,
    ) -> None:  # fmt: skip
        """`order`: the request for it, of the server; `reply` answers that, once.

        With `stands`, it belongs to nobody yet: called when it waits for its person, or has ended before it did.
        """
        self._shared, self._order, self._reply, self._stands = shared, order, reply, stands
        self._spare = stands is not None
        self.name: str = order["kernel"]
        self.profile, self.plan = profile, plan
        self.state = "asked"  # → born → confined → (waiting →) running → ended
        self.began = time.monotonic()
        self.pid = self._pidfd = -1
        self.group: cgroup.Group | None = None
        self.weight = ANSWERS
        self.zygote: Zygote | None = None  # of which it is a child
        self.watch = Watch(shared.loop, shared.ledger, self)
        self._measured = (self.began, 0.0)  # when its CPU time was told last, and how much that was
        self._uid: int | None = None
        self._descriptors: dict[str, int] = {}
        self._paths: list[str] = []  # of the kernel's own listeners, in the folder that only the relay may enter
        self._handover: Handover | None = None
        self._channel, self._theirs = packets.pair()
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._words = Words(shared.loop)
        self._refusals: Refusals | None = None
        self._targeted = self._sockets_wanted = False
        self._changes: Changes | None = None  # where they are kept
        self._quota: Quota | None = None
        self._image: Image | None = None  # for what changes in its workspace
        self._answered = False  # whoever asked takes it that it runs
        self._cause = ""  # why we ended it ourselves, or why it never stood
        shared.incarnations += 1

    @property
    def limits(self) -> Resources:
        """What its cgroup holds it to."""
        return self.profile.limits if self.profile.layers.cgroup != "off" else UNLIMITED

    @property
    def _kind(self) -> tuple[Profile, bool]:
        """What makes its start the same as another's from the same zygote."""
        return self.profile, self._spare

    @property
    def owner(self) -> str:
        """For whom it runs, as far as the server knows."""
        return str(self._order.get("owner", ""))

    @property
    def refused(self) -> dict[str, int]:
        """How often each system call was refused."""
        return self._refusals.counts if self._refusals else {}

    @property
    def refused_most(self) -> dict[str, int]:
        """The same, the MOST_NAMED of them that were refused most often."""
        return dict(sorted(self.refused.items(), key=lambda item: -item[1])[:MOST_NAMED])

    @property
    def words(self) -> str:
        """The end of what it wrote to its standard streams."""
        return str(self._words)

    # ---- its start -------------------------------------------------------------------------------------------------

    def start(self, given: list[int], zygote: Callable[[], Zygote]) -> None:
        """Make all that only we can make, and ask the zygote for a fork. Raises OSError, IsolatedPythonError."""
        if self._shared.ahead is not None:
            self._uid = self._shared.ahead.take()
        self.zygote = zygote()
        self._open_streams(given)
        if not self._spare:
            self._open_mounts(given)
        else:
            self._handover = Handover(self._shared.loop, self._waits, self._moved_in, self.target)
            self._descriptors["handover"] = self._handover.end
        self._shared.loop.later(START, self._give_up)
        if self.plan.image is None:
            self.zygote.cradle.ask(self._fork)
        else:
            uid = self._uid if self._uid is not None else os.getuid()
            self._image = Image(places.images_folder(), self.plan.image, uid)
            self._shared.images = [*(image for image in self._shared.images if image.there), self._image]
            self._shared.loop.when_done(self._image.format(), self._formatted)
        if self.state == "asked":  # and so it will be until we hear of its birth; this takes as long
            self._open_sockets()

    def _formatted(self, done: bool) -> None:
        """Its image is a file system: mount it for the sandbox, and have that made."""
        if self.state != "asked" or self._image is None or self.zygote is None:
            return
        try:
            if not done:
                raise LaunchError("no file system can be made in an image; the server's log says why")
            self._descriptors["image"] = self._image.mount()
            if self._changes is not None:
                self._changes.lie_in(self._image.again())
        except (OSError, IsolatedPythonError) as error:
            self.fail(str(error))
        else:
            self._image.close()
            self.zygote.cradle.ask(self._fork)

    def _fork(self, found: cgroup.Group | HostError) -> bool:
        """The zygote is in our group, or in none: have it fork. False: we need no fork any more."""
        if self.state != "asked" or self.zygote is None:
            return False
        try:
            self._take(found)
            request = {"kernel": self.name, "namespaces": self.plan.namespaces}
            packets.send(self.zygote.control, request, [self._theirs.fileno()])
        except (OSError, IsolatedPythonError) as error:
            self.group = None
            self._reply(error if isinstance(error, IsolatedPythonError) else LaunchError(str(error)))
            self.fail(str(error))
            return False
        self._theirs.close()
        self._shared.loop.listen(self._channel, self._hear)
        return True

    def _open_sockets(self) -> None:
        if not self._spare:
            self._open_door()
        for channel, inside in CHANNELS.items() if self._order["argv"] is None else ():
            path = f"{self._shared.folder}/kernels/{self._shared.incarnations}.{channel}"
            self._descriptors[inside] = relays.listener(path, self._shared.relay_uid).detach()
            self._paths.append(path)

    def _open_door(self) -> None:
        order, profile = self._order, self.profile
        granted = {"profile": profile.name, "display": profile.capabilities.display, **asdict(profile.cells)}
        self._shared.relay.open(self.name, order["key"], asdict(profile.channels), granted, order["sockets"])

    def _take(self, found: cgroup.Group | HostError) -> None:
        """Have a group, with the limits of the profile. Raises HostError where there is none, and one is required."""
        wanted = self.profile.layers.cgroup
        if isinstance(found, HostError):
            if wanted == "require":
                raise found
            if wanted == "prefer":
                self.plan.notes.append(f"cgroup is missing: {found.message}")
            return
        self.group = found
        found.limit(self.limits)
        self.weigh(WAITS if self._spare else ANSWERS)

    def weigh(self, weight: int) -> None:
        """Its share of the CPU beside the other kernels': see engine.weights."""
        if self.group is not None and weight != self.weight:
            self.weight = weight
            self.group.weight(weight)

    def _open_streams(self, given: list[int]) -> None:
        """What the server gave for the standard streams; else nothing to read, and our ears for what is written."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            ears = self._words.write_end
            for name, default in {"stdin": null, "stdout": ears, "stderr": ears}.items():
                self._descriptors[name] = os.dup(given.pop(0) if self._order["streams"][name] else default)
        finally:
            os.close(null)
            self._words.given()

    def _open_mounts(self, given: list[int]) -> None:
        files, shared = self.profile.files, self._shared
        mounted = partial(
            workspace.detached, uid=self._uid, run=self.profile.capabilities.native_code,
            translations=shared.translations, person=shared.person,
        )  # fmt: skip
        if files.workspace != "none":
            if files.size is not None and files.workspace == "read-write":
                self._quota = Quota(shared.loop, given[0], files.size, self._too_large)
            writable = files.workspace == "read-write"
            self._descriptors["workspace"] = mounted(given.pop(0), writable=writable)
        for number, grant in enumerate(files.mounts):
            self._descriptors[f"mount-{number}"] = mounted(given.pop(0), writable=grant.writable)
        if files.kept:
            self._changes = Changes(given.pop(0), files.bound or self.profile.resources.tmp, shared.person)

    def _hear(self) -> None:
        """A message of process 1, or of the kernel before its first cell.

        It comes from a child of a zygote, which has imported whatever an environment contains: it may say anything,
        and the worst it can reach is its own end.
        """
        descriptors: list[int] = []
        try:
            if self.state == "asked":
                self._born()
                return
            message, descriptors = packets.receive(self._channel)
            if message is None:
                self._shared.loop.ignore(self._channel)
            else:
                self._understand(message, descriptors)
        except (ConnectionError, ProtocolError) as error:
            self._shared.loop.ignore(self._channel)
            if self.state == "asked":
                self.fail(str(error))
        except Exception as error:
            self.fail(_line(str(error)) or type(error).__name__)
        finally:
            _close(descriptors)

    def _understand(self, message: dict[str, Any], descriptors: list[int]) -> None:
        """Descriptors that are kept are taken out of the list."""
        match message.get("event"), self.state:
            case "failed", _:
                reason = message.get("reason")
                self.fail(_line(reason) if isinstance(reason, str) else "it does not say why")
            case "confined", "born":
                self.state = "confined"
                if descriptors:
                    # Any descriptor may come for a listener: what cannot be listened to ends this sandbox alone.
                    self._refusals = Refusals(self._shared.loop, descriptors[-1], self._shared.call_name, self._refused)
                    descriptors.pop()
            case "running", "confined" if not self._spare:
                self._runs()
                self.target()
            case "sockets", "running" if self._sockets_wanted and not self._paths:
                self._sockets_wanted = False
                if not all(map(_is_socket, descriptors)):
                    raise LaunchError("process 1 sent something else for sockets")
                if self._targeted:
                    self._shared.relay.ask("sockets", self.name, descriptors)
                else:
                    self._targeted = True
                    ports, known = self._order["ports"], self.group is not None
                    self._shared.relay.ask("target", self.name, descriptors, kind="inet", ports=ports, usage=known)

    def _born(self) -> None:
        """The first message carries, by Linux's own word, the pid of its sender. unix(7), SCM_CREDENTIALS"""
        space = socket.CMSG_SPACE(12)
        encoded, ancillary, _, _ = self._channel.recvmsg(1 << 14, space, socket.MSG_CMSG_CLOEXEC)
        if b'"failed"' in encoded or not encoded:
            said = self.zygote.last_words() if self.zygote else ""
            raise LaunchError(_reason(encoded) if encoded else f"its zygote ended; {said}")
        pid = next((struct.unpack("iii", data)[0] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS), 0)
        # A child of ours that nobody has reaped keeps its pid: from here on there is no race.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if self._shared.taken(pid):
            raise LaunchError("a zygote sent a process that is another's")
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self._channel.setblocking(False)  # nobody in there makes us wait
        self.pid, self.state = pid, "born"
        self._pidfd = self._shared.loop.at_end(pid, self._ended)
        if self.group is not None and not self.group.holds(pid):
            raise LaunchError("it was not born in its cgroup")
        outside = (self._uid, self._uid) if self._uid is not None else (os.getuid(), os.getgid())
        namespaces.map_ids(pid, [(USER, outside[0], 1)], [(USER, outside[1], 1)])
        order = {
            "descriptors": [*self._descriptors],
            "init": [step.to_wire() for step in self.plan.init],
            "kernel": [step.to_wire() for step in self.plan.kernel],
            "check": [step.to_wire() for step in self.plan.check],
            "program": self._program(),
        }
        packets.send(self._channel, order, [*self._descriptors.values()])
        self._close_descriptors()
        if not self._spare:
            self._answer_ahead()

    def _answer_ahead(self) -> None:
        """Where the very same has stood before, nobody waits for this one: what is left of its start takes as long as
        jupyter_client rests after each. Should it fail all the same, it counts as a kernel that has ended.
        """
        if self.zygote is not None and self._kind in self.zygote.stood:
            self._answer()

    def _answer(self) -> None:
        self._answered = True
        self._reply(pid=self.pid, notes=self.plan.notes)

    def _runs(self) -> None:
        self.state = "running"
        if self._changes is not None:
            self._changes.hold(self.pid)
        if self._quota is not None:
            self._quota.look()
        if self._refusals is not None:
            self._refusals.counting = True
        self.watch.begin()
        who = {"kernel": self.name, "owner": self.owner, "profile": self.profile.name}
        self._shared.log.write(
            "kernel-started", **who, pid=self.pid, kernel_uid=self._uid, weakened=self.plan.notes,
            seconds=round(time.monotonic() - self.began, 4),
        )  # fmt: skip
        for note in self.plan.notes:
            self._shared.log.write("kernel-weakened", **who, what=note)
        self._answer()
        if self.zygote is not None and self._kind not in self.zygote.stood:
            self.zygote.stood.append(self._kind)
        if self._shared.ahead is not None:
            self._shared.ahead.prepare()

    # ---- from waiting to running ------------------------------------------------------------------------------------

    def hand_over(self, order: dict[str, Any], given: list[int], reply: Callable[..., None]) -> None:
        """Give a kernel that waits to whom `order` is from. Raises OSError, IsolatedPythonError."""
        self.name, self._order, self._reply = order["kernel"], order, reply
        self.began = time.monotonic()
        self._open_mounts(given)
        assert self._handover is not None
        moves = self._handover.bring(self._descriptors)
        self._close_descriptors()
        self._open_door()
        self.weigh(ANSWERS)
        self._answer_ahead()
        if not moves:
            self._moved_in(True)

    def _waits(self) -> None:
        """It stands. Somebody inside will mount its workspace, when it is known whose this kernel is."""
        if self.state != "confined" or self._handover is None:
            self.fail("it says too soon that it stands")
            return
        self.state = "waiting"
        if self.profile.files.workspace != "none":
            files = self.profile.files
            place = PlaceWorkspace(files.workspace, self.profile.capabilities.native_code, files.size)
            try:
                self._handover.hire(self._pidfd, [place])
                if self._uid is not None:
                    self._shared.translations.prepare(self._uid)
            except (OSError, IsolatedPythonError) as error:
                self.fail(f"nobody can be had who would mount its workspace: {error}")
                return
        self._tell_that_it_stands()

    def _moved_in(self, done: bool) -> None:
        """Its workspace is there; the rest is told to it."""
        if not done or self._handover is None:
            self.fail("its workspace could not be mounted; the server's log says why")
        elif self.state == "waiting":
            try:
                self._handover.tell(self._program())
            except OSError as error:
                self.fail(f"it does not take over: {error}")
            else:
                self._runs()

    def _tell_that_it_stands(self) -> None:
        stands, self._stands = self._stands, None
        if stands is not None:
            stands(self)

    def _program(self) -> dict[str, Any]:
        """What the kernel program is told."""
        return {
            **{key: self._order[key] for key in ("argv", "arguments", "cwd", "connection", "environment")},
            "granted": self._order["profile"] | {"weakened": self.plan.notes, "image": self.plan.image is not None},
        }

    def target(self) -> None:
        """Tell the relay where this kernel listens."""
        if self.state != "running" or (self._handover is not None and self._handover.open):
            return
        if self._paths:
            paths = [os.path.basename(path) for path in self._paths]
            self._shared.relay.ask("target", self.name, kind="unix", paths=paths, usage=self.group is not None)
        else:
            self._targeted = False
            self.give_sockets(16)

    def give_sockets(self, count: int) -> None:
        """Have process 1 make sockets in its network, for the relay to connect to a kernel that binds ports there."""
        if self.state == "running":
            self._sockets_wanted = True
            self._tell({"sockets": count})

    def _tell(self, message: dict[str, Any]) -> None:
        """To process 1; nothing where it has gone already."""
        try:
            packets.send(self._channel, message)
        except BlockingIOError:
            self.fail("its process 1 does not listen")
        except OSError:  # its end is noticed
            pass

    def _refused(self, call: str, count: int) -> None:
        about = {"owner": self.owner, "cell": self.watch.cell}
        self._shared.ledger.tell("call-refused", self.name, call=call, count=count, **about)

    # ---- its end ---------------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """To the kernel and its process group; process 1 passes it on as soon as there is one."""
        if number == signal.SIGKILL:
            self.kill()
        elif self.state not in ("asked", "ended"):
            self._tell({"signal": number})

    def kill(self) -> None:
        """The end of process 1 is the end of all its processes."""
        if self._pidfd >= 0 and self.state != "ended":
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def forget(self) -> None:
        """Nobody wants it any more: also where its zygote has not given birth to it yet."""
        if self._pidfd < 0 and self.state == "asked":
            self.fail("it was given up before it was born")
        else:
            self.kill()

    def fail(self, cause: str) -> None:
        """It cannot stand, or not any longer."""
        self._cause = self._cause or cause
        self.kill()
        if self._pidfd < 0:
            self.release()

    def _give_up(self) -> None:
        if self.state in ("asked", "born", "confined"):
            self.fail(f"it did not stand within {START:g} seconds")

    def _too_large(self, found: int) -> None:
        """Its workspace: the cell that runs is told, or the next one."""
        most = (self.profile.files.size or 0) >> 20
        words = f"the workspace holds {found >> 20} MiB, and the profile {self.profile.name} grants {most} MiB"
        self.watch.met("files.size", words)
        self._shared.relay.ask("notice", self.name, text=f"{words} (files.size)")

    def tell_usage(self) -> None:
        """Answer a usage_request, by the relay, with what this sandbox uses and may use."""
        if self.state == "running" and self.group is not None:
            figures = usage.figures(self.group, self.limits)
            content, self._measured = usage.content(figures, self._measured)
            self._shared.relay.ask("usage", self.name, content=content)

    def _ended(self) -> None:
        """Process 1 has ended, and with it all the others. Say why, then let go."""
        found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        assert found is not None
        status = reasons.status_of(found.si_status, exited=found.si_code == os.CLD_EXITED)
        ran, self.state = self.state == "running", "ended"
        self._words.finish()
        reason = self._cause or reasons.why(status, self.profile, self.group)
        if self._answered and not ran:
            reason = reason and f"the kernel could not be started: {reason}"
            if self.zygote is not None:
                self.zygote.stood.clear()  # the next start waits, and says so itself
        self.watch.look()
        self._shared.log.write(
            "kernel-ended", kernel=self.name, owner=self.owner, profile=self.profile.name, status=status, reason=reason,
            seconds=round(time.monotonic() - self.began, 4), refused=self.refused_most,
            last_words=self.words[-LONGEST:],
        )  # fmt: skip

        def let_go() -> None:
            self.release()
            if self._answered:
                self._shared.ended(self, status, reason)

        def tell() -> None:
            if self._answered and reason:
                self._shared.relay.insert(self.name, reason, let_go)
            else:
                let_go()

        if ran and self._changes is not None:
            self._shared.loop.when_done(self._changes.save(), lambda _: tell())
        else:
            tell()

    def release(self) -> None:
        """Let go of everything that was this sandbox's; answer the request for it, if that still waits."""
        why = self._cause or self.words.strip().rpartition("\n")[2] or "its first process ended before it stood"
        self._reply(LaunchError(f"the kernel could not be started: {why}"))
        self.state = "ended"
        self._shared.gone(self)
        self._tell_that_it_stands()
        if self._handover is not None:
            self._handover.close()
        self._shared.relay.detach(self.name)
        if self._refusals is not None:
            self._refusals.close()
        self._shared.loop.ignore(self._channel)
        self._channel.close()
        self._theirs.close()
        self._words.close()
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        if self._quota is not None:
            self._quota.close()
        if self._image is not None:
            self._image.close()
        self._close_descriptors()
        for path in self._paths:
            relays.unlink(path)
        if self.group is not None and self.zygote is not None:
            self.zygote.cradle.when_left(self.group, partial(self._end_group, self.group))
            self.group = None
        else:
            self._give_back()

    def _end_group(self, group: cgroup.Group, deadline: float = 0.0) -> None:
        """The loop serves others while the last of its processes are dying."""
        deadline = deadline or time.monotonic() + LINGER
        group.kill()
        try:
            group.remove(patience=0)
        except OSError:  # what is left goes with the supervisor, whose own group is above it; and keeps its uid
            if time.monotonic() < deadline:
                self._shared.loop.later(AGAIN, partial(self._end_group, group, deadline))
        else:
            self._give_back()

    def _give_back(self) -> None:
        """Nobody runs as its uid any more: another may."""
        if self._uid is not None and self._shared.identities is not None:
            self._shared.translations.forget(self._uid)
            self._shared.identities.give_back(self._uid)
            self._uid = None

    def end_now(self) -> None:
        """Kill it, wait for its end, let go: for a supervisor that goes itself."""
        self.kill()
        if self._pidfd >= 0 and self.state != "ended":
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if self._changes is not None and self.state == "running":
                os.waitpid(self._changes.save(), 0)
        self._reply = lambda *_, **__: None
        self.release()

    def _close_descriptors(self) -> None:
        _close([*self._descriptors.values()])
        self._descriptors.clear()


def _line(text: str) -> str:
    return " ".join(text[:1000].split())


def _reason(encoded: bytes) -> str:
    """What a child says that could not be made."""
    try:
        return _line(json.loads(encoded)["reason"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "its zygote says nothing that we understand"


def _is_socket(descriptor: int) -> bool:
    """Whether it can connect in the network of a kernel: anything else would end the relay's patience, or itself."""
    about = os.fstat(descriptor)
    if not stat.S_ISSOCK(about.st_mode):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as one:
        return (one.family, one.type) == (socket.AF_INET, socket.SOCK_STREAM)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
