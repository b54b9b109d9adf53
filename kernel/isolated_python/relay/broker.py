"""One loop that moves bytes between clients and kernels, past the rules, with a bound on all that waits."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import heapq
import itertools
import json
import math
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from isolated_python.errors import ProtocolError
from isolated_python.linux import packets
from isolated_python.relay.confine import confine
from isolated_python.relay.messages import STATUS, Cells, asks_for_usage, short
from isolated_python.relay.output import MiB, Output, Turns, part_of
from isolated_python.relay.rules import CHANNELS, CLIENT, EDITED, KERNEL, WAITING, WHOLE, Bounds, Granted, Refused
from isolated_python.relay.zmtp import Edit, Inspect, Walk

IN, OUT = select.EPOLLIN, select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
CHUNK = 1 << 16  # bytes of one read; for much more malloc(3) would ask Linux for memory, and give it back, each time
PACE = 0.004  # seconds between two looks at what kernels publish, where many follow each other;
SHARE, LONGEST = 0.001, 0.032  # and for each that had something to say at the last look, up to so many
CREDIT = 0.04  # seconds: as many such looks as have room in it need not wait, after a quiet moment
MUCH = CHUNK  # bytes of one read, after which none waits for a while: what the kernel's socket cannot hold is lost
PROMPT = 0.1  # seconds that this while is; and that after a request
PIPE = 1 << 18  # bytes of a pipe that large bodies go through: more than lie in a socket at once
RETRY = 0.02  # seconds between two tries to reach a kernel that does not listen yet
FEW = 8  # unused sockets of a sandbox's network, below which more are asked for
FAREWELL = 0.8  # seconds that clients have to take what a dead kernel has said last, and what is said of it
EACH = 0.1  # seconds between two records of activity
SQUEEZE = 10.0  # seconds that a message of ours waits for a gap between two of the kernel's
AGAIN = 0.01  # seconds between two looks for one
LINGER = 2.0  # seconds that a kernel which has closed a connection may be taken for one that has ended
GRACE = 5.0  # seconds that an interrupted cell has to end
NOTICES = 3  # that are kept for the next cell
CURIOUS = 16  # requests of what a kernel uses that wait for the supervisor's answer
SPLICE_FROM = 1 << 17  # bytes left of a body, from which it is moved without being copied


class End:
    """One side of a connection: its socket, the walk along what it says, and what waits to be written to it."""

    __slots__ = (
        *("link", "side", "socket", "receive", "send", "other", "out", "mask", "watched", "open", "paused", "pipe"),
        *("piped", "walk", "rated", "window", "spent_bytes", "spent_messages"),
    )

    def __init__(self, link: Link, side: str, peer_socket: socket.socket, known: bytes = b"") -> None:
        self.link, self.side, self.socket = link, side, peer_socket
        self.receive, self.send = peer_socket.recv, peer_socket.send
        self.other: End | None = None  # the other side, once there is one
        self.out = bytearray()
        self.mask = 0
        self.watched = False
        self.open = True
        self.paused = False  # over its rate; or the kernel that it is to talk to has not opened its connection
        self.pipe: tuple[int, int] | None = None
        self.piped = 0  # bytes from here that lie in the pipe, on their way to the other side
        kernel, channel = link.kernel, link.channel
        bounds = Bounds(channel, side, kernel.channels["message"], kernel.channels["frames"])
        inspect = kernel.inspections.get((channel, side))
        if (channel, side) == ("control", CLIENT):
            inspect = partial(kernel.ordered, link)
        edit = kernel.edit(channel) if side == KERNEL else None
        whole = WHOLE if edit is None or kernel.granted.display is None else EDITED
        self.rated = (channel, side) == ("iopub", KERNEL)
        beyond = kernel.beyond if self.rated else None
        self.walk = Walk(bounds, inspect, edit, whole, STATUS if self.rated else b"", known, beyond)
        self.spent_bytes = self.spent_messages = 0
        self.window = 0.0


class Link:
    """A client's connection to one channel of a kernel, and the one that was opened for it on the other side."""

    def __init__(self, kernel: Kernel, channel: str, client: socket.socket) -> None:
        self.kernel, self.channel = kernel, channel
        self.client = End(self, CLIENT, client)

    @property
    def kernel_end(self) -> End | None:
        """The kernel's side: closed, between one kernel and the next; None before there was one."""
        return self.client.other

    @property
    def lasts(self) -> bool:
        """Whether the client need not notice that another kernel takes the place of this one.

        What it has said to open the connection can be said again, and no message was cut in two. libzmq would take
        0.1 to 0.2 s to come back.
        """
        client, kernel = self.client, self.kernel_end
        if kernel is None or not (client.open and client.walk.again):
            return False
        if not (kernel.walk.again or kernel.walk.known):  # known: nothing of what it said has gone on
            return False
        by_message = self.channel == "iopub" and client.walk.messages  # a subscription, before ZMTP 3.1
        return not (client.piped or kernel.piped or by_message)


class Kernel:
    """The door of one kernel, and all that has come through it."""

    def __init__(self, broker: Broker, name: str, order: dict[str, Any], listeners: list[socket.socket]) -> None:
        self.broker, self.name = broker, name
        self.open(order, listeners)
        self.target: dict[str, Any] | None = None
        self.sockets: list[int] = []
        self.links: list[Link] = []
        self.cells, self.turns = Cells(), Turns()
        self.notices: list[str] = []  # for the next cell: nobody was there to be told
        self.told: dict[str, list[float]] = {}
        self.wanted = self.busy = False
        self.last_activity = 0.0
        self.curious: list[tuple[Link, list[bytes]]] = []  # who wants to know what this kernel uses, and how they asked
        self.told_usage = 0.0
        self.timed = False  # somebody looks at the clock
        self.began = (0, 0.0)  # the number of the cell whose time is measured, and when it began
        self.interrupted = 0  # the number of the cell that was
        self.inspections: dict[tuple[str, str], Inspect] = {
            ("shell", CLIENT): self.asked,
            ("stdin", CLIENT): self.spoken,
            ("iopub", KERNEL): self.published,
            ("stdin", KERNEL): self.prompted,
        }

    def open(self, order: dict[str, Any], listeners: list[socket.socket]) -> None:
        self.order, self.listeners, self.key = order, listeners, str(order["key"])
        self.channels, self.granted = order["channels"], Granted(**order["granted"])

    @property
    def deaf(self) -> bool:
        """Whether a client that listens to its output is still to be introduced to it."""
        ends = [link.kernel_end for link in self.links if link.channel == "iopub"]
        return any(end is None or not (end.open and end.walk.ready) for end in ends)

    def asked(self, frames: list[bytes]) -> None:
        """A client has sent a message on shell."""
        cell = self.cells.asked(frames)
        self.broker.prompt_until = time.monotonic() + PROMPT
        if self.granted.counts:
            self.turns.asked(frames)
        self._active(self.cells.turn if cell else "")
        if cell:
            notices, self.notices = self.notices, []
            for text in notices:
                self.broker.notice(self, text)

    def spoken(self, frames: list[bytes]) -> None:
        """A client has sent a message on another channel."""
        self._active("")

    def ordered(self, link: Link, frames: list[bytes]) -> bool:
        """A client has sent a message on control. True: it is for us to answer, and nobody's word to the kernel."""
        if self.target is not None and self.target.get("usage") and asks_for_usage(frames):
            self.broker.wonder(self, link, frames)
            return True
        self._active("")
        return False

    def published(self, frames: list[bytes]) -> None:
        """The kernel has sent a message on iopub."""
        before = self.cells.running
        if self.cells.published(frames):
            self.busy = False
            self.broker.tell_of(self, "")
        elif self.cells.running is not before:
            self.broker.tell_of(self, self.cells.turn)
        if self.granted.wall_clock is not None:
            self.turns.published(frames)
            if self.turns.begun != self.began[0]:
                self.began = self.turns.begun, time.monotonic()
                if not self.timed:
                    self.timed = True
                    self.broker.measure(self)

    def edit(self, channel: str) -> Edit | None:
        """Who looks through what the kernel says on a new connection; None: nobody, and that costs nothing."""
        if not self.granted.edits(channel):
            return None
        refused = partial(self.broker.refuse, self, channel)
        return Output(self.granted, self.turns, self.cells, self.key, refused).edit

    def beyond(self, frames: list[bytes]) -> bytes:
        """What the kernel says on iopub is larger than a message may be. What its cell is told instead."""
        self.broker.refuse(self, "iopub", "message size (kernel)")
        return self.cells.notice(self.key, self.too_large(), short(part_of(frames, 3)))

    def too_large(self) -> str:
        """A sentence."""
        most = f"{self.channels['message'] / MiB:g} MiB that the profile {self.granted.profile} grants"
        return f"what this kernel said at once was larger than the {most}, and was dropped (channels.message)"

    def prompted(self, frames: list[bytes]) -> None:
        """The kernel asks a person for input: not where every client has said that nobody is there."""
        if self.cells.forbidden:
            raise Refused("a prompt that no cell may make")

    def _active(self, cell: str) -> None:
        """Tell the supervisor that somebody is here, now and then; and at once that a cell runs where none did."""
        now = time.monotonic()
        if (cell and not self.busy) or now - self.last_activity > EACH:
            self.last_activity = now
            self.busy = self.busy or bool(cell)
            self.broker.tell_of(self, cell)


class Broker:
    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.poll = select.epoll()  # all that there is
        self.people = select.epoll()  # the same without what kernels publish, which can wait
        self.spoke = 0  # kernels that had published something, at this look
        self.output_due = 0.0  # when that is taken next,
        self.prompt_until = 0.0  # unless it is taken at once
        self.kernels: dict[str, Kernel] = {}
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()

    # ---- the supervisor --------------------------------------------------------------------------------------------

    def obey(self, _: int = 0) -> None:
        try:
            order, descriptors = packets.receive(self.control)
        except ConnectionResetError:  # it has gone, and had not heard all that we said
            os._exit(0)
        if order is None:
            os._exit(0)
        verb, name = order["verb"], str(order.get("kernel"))
        if verb == "open":
            listeners = [socket.socket(fileno=number) for number in descriptors]
            for listener in listeners:
                listener.setblocking(False)
            known = self.kernels.get(name)
            if known is None:
                self.kernels[name] = Kernel(self, name, order, listeners)
            else:
                self.open_again(known, order, listeners)
            return
        kernel = self.kernels.get(name)
        if kernel is None:
            for number in descriptors:
                os.close(number)
            return
        if verb == "target":
            kernel.target, kernel.sockets, kernel.wanted = order, descriptors, False
            for channel, listener in zip(CHANNELS, kernel.listeners, strict=True):
                self._watch(listener, IN, lambda _, c=channel, one=listener: self.accept(kernel, c, one))  # type: ignore[misc]
            for link in sorted(kernel.links, key=lambda link: link.channel != "iopub"):  # who is told, before who asks
                self.reach(link)
        elif verb == "sockets":
            kernel.sockets += descriptors
            kernel.wanted = False
        elif verb == "detach":
            self.detach(kernel, self._cut)
        elif verb == "close":
            del self.kernels[name]
            self.shut(kernel, self.close)
        else:
            self.say(kernel, verb, order)

    def say(self, kernel: Kernel, verb: str, order: dict[str, Any]) -> None:
        """What clients are to hear from us."""
        if verb == "insert":
            self.insert(kernel, order, time.monotonic() + FAREWELL)
        elif verb == "notice":
            self.notice(kernel, str(order["text"]))
        elif verb == "usage":
            self.answer(kernel, order["content"])

    def tell(self, message: dict[str, Any]) -> bool:
        """Never waits: a supervisor that does not listen loses what it would have been told. False: it was lost."""
        try:
            self.control.send(_encoded(message), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except BrokenPipeError:  # it has gone
            os._exit(0)
        return True

    def tell_of(self, kernel: Kernel, cell: str) -> None:
        """That somebody is here, and whether a cell runs; until it was heard, since an idle kernel is ended."""
        about = {"event": "activity", "msg_id": cell} if kernel.busy else {"event": "idle"}
        if not self.tell({**about, "kernel": kernel.name}):
            self._later(AGAIN, lambda: self.tell_of(kernel, cell))

    def open_again(self, kernel: Kernel, order: dict[str, Any], listeners: list[socket.socket]) -> None:
        """A door at the place of the one before. Who came through that one may stay, where the same rules hold."""
        same = all(order[name] == kernel.order[name] for name in ("channels", "granted"))
        self.shut(kernel, self._cut if same else self.close)
        kernel.open(order, listeners)

    def detach(self, kernel: Kernel, leave: Callable[[Link], None]) -> None:
        """The kernel is gone: nobody is served until there is another. New connections wait in the backlog."""
        if kernel.target is not None:
            kernel.target = None
            for listener in kernel.listeners:
                self._forget(listener.fileno())
        for link in [*kernel.links]:
            if link.channel == "iopub" and link.kernel_end is not None:
                self.happened(link.kernel_end, IN)  # its last words, which may have waited
            leave(link)
        for number in kernel.sockets:
            os.close(number)
        kernel.sockets, kernel.cells, kernel.busy, kernel.curious = [], Cells(), False, []
        kernel.turns, kernel.began, kernel.interrupted = Turns(), (0, 0.0), 0

    def shut(self, kernel: Kernel, leave: Callable[[Link], None]) -> None:
        self.detach(kernel, leave)
        for listener in kernel.listeners:
            listener.close()

    def insert(self, kernel: Kernel, order: dict[str, Any], deadline: float) -> None:
        """Tell the running cell why its kernel died, after all that the kernel said; where none runs, tell the next."""
        links = [link for link in kernel.links if link.channel == "iopub" and link.kernel_end is not None]
        ends = [link.kernel_end for link in links if link.kernel_end is not None]
        for end in ends:
            self._resume(end)  # a dead kernel has no rate
        if any(end.open for end in ends) and time.monotonic() < deadline:
            self._later(AGAIN, lambda: self.insert(kernel, order, deadline))
            return
        if kernel.cells.running is None:
            self.notice(kernel, f"the kernel before this one has ended: {order['evalue']}")
        else:
            said = kernel.cells.epitaph(kernel.key, order["ename"], order["evalue"], order["traceback"])
            for link in links:
                if _gap(link):
                    self.write(link.client, said)
                else:
                    self.close(link)
        self._when_flushed(kernel, deadline)

    def _when_flushed(self, kernel: Kernel, deadline: float) -> None:
        waiting = any(link.client.out for link in kernel.links if link.channel == "iopub")
        if waiting and time.monotonic() < deadline:
            self._later(AGAIN, lambda: self._when_flushed(kernel, deadline))
        else:
            self.tell({"event": "inserted", "kernel": kernel.name})

    def wonder(self, kernel: Kernel, link: Link, frames: list[bytes]) -> None:
        """A client asks what a kernel uses: so do we ask the supervisor, now and then, for all who want to know."""
        if len(kernel.curious) >= CURIOUS:
            self.refuse(kernel, "control", "usage requests")
            return
        kernel.curious.append((link, frames))
        if len(kernel.curious) == 1:
            wait = max(0.0, kernel.told_usage + EACH - time.monotonic())
            self._later(wait, lambda: self._ask_for_usage(kernel))

    def _ask_for_usage(self, kernel: Kernel) -> None:
        if kernel.curious and not self.tell({"event": "usage", "kernel": kernel.name}):
            self._later(AGAIN, lambda: self._ask_for_usage(kernel))

    def answer(self, kernel: Kernel, content: dict[str, Any]) -> None:
        curious, kernel.curious, kernel.told_usage = kernel.curious, [], time.monotonic()
        deadline = kernel.told_usage + SQUEEZE
        for link, frames in curious:
            before, reply, after = kernel.cells.usage(kernel.key, frames, content)
            self._publish(kernel, before, deadline)
            self._squeeze_in(link, reply, deadline)
            self._publish(kernel, after, deadline)

    def notice(self, kernel: Kernel, text: str) -> None:
        """Tell the running cell something on its standard error; where none runs, tell the next one."""
        if kernel.cells.running is None:
            kernel.notices = [*kernel.notices, text][-NOTICES:]
            return
        self._publish(kernel, kernel.cells.notice(kernel.key, text), time.monotonic() + SQUEEZE)

    def _publish(self, kernel: Kernel, said: bytes, deadline: float) -> None:
        for link in [*kernel.links]:
            if link.channel == "iopub":
                self._squeeze_in(link, said, deadline)

    def _squeeze_in(self, link: Link, said: bytes, deadline: float) -> None:
        if _gap(link):
            self.write(link.client, said)
        elif link in link.kernel.links and time.monotonic() < deadline:
            self._later(AGAIN, lambda: self._squeeze_in(link, said, deadline))

    def measure(self, kernel: Kernel) -> None:
        """A cell has begun; called while what it says is being read, so that nothing can be put between that yet."""
        self._later(0.0, lambda: self._look_at_the_clock(kernel))

    def _look_at_the_clock(self, kernel: Kernel) -> None:
        """A cell whose time is over is told so and interrupted, and after GRACE its kernel is.

        What runs is what the kernel says: one that lies about it is bound by the limits of the kernel as a whole.
        """
        most = kernel.granted.wall_clock
        if most is None or not kernel.turns.running or self.kernels.get(kernel.name) is not kernel:
            kernel.timed = False
            return
        number, since = kernel.began
        left = since + most + (GRACE if kernel.interrupted == number else 0.0) - time.monotonic()
        if left <= 0:
            self.tell({"event": "overdue", "kernel": kernel.name, "again": kernel.interrupted == number})
            if kernel.interrupted != number:
                kernel.interrupted = number
                granted = f"the profile {kernel.granted.profile} grants no more (cells.wall_clock)"
                self.notice(kernel, f"this cell was interrupted: it has run for {most:g} s, and {granted}")
            left = GRACE
        self._later(left, lambda: self._look_at_the_clock(kernel))

    # ---- connections -----------------------------------------------------------------------------------------------

    def accept(self, kernel: Kernel, channel: str, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        client.setblocking(False)
        if len(kernel.links) >= kernel.channels["connections"]:
            client.close()
            self.refuse(kernel, channel, "connections")
            return
        link = Link(kernel, channel, client)
        kernel.links.append(link)
        self._later(kernel.channels["handshake"], lambda: self._still_shaking(link))
        self.reach(link)

    def reach(self, link: Link) -> None:
        """Open the kernel's side of a connection; try again while the kernel does not listen yet."""
        kernel, before = link.kernel, link.kernel_end
        if kernel.target is None or link not in kernel.links or (before is not None and before.open):
            return
        number = CHANNELS.index(link.channel)
        if kernel.target["kind"] == "unix":
            try:
                inside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            except OSError:  # no descriptor is left
                self.close(link)
                return
            address: Any = kernel.target["paths"][number]
        else:
            if len(kernel.sockets) < FEW and not kernel.wanted:
                kernel.wanted = True
                self.tell({"event": "want", "kernel": kernel.name, "count": 16})
            if not kernel.sockets:
                self._later(RETRY, lambda: self.reach(link))
                return
            inside = socket.socket(fileno=kernel.sockets.pop())
            address = ("127.0.0.1", kernel.target["ports"][number])
        inside.setblocking(False)
        failure = inside.connect_ex(address)
        if failure == errno.ECONNABORTED:  # so Linux tells once more, by this socket, that it was refused before
            failure = inside.connect_ex(address)
        if failure == errno.EINPROGRESS and _settled(inside):
            failure = inside.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure in (0, errno.EINPROGRESS):
            known = b"" if before is None else before.walk.known or bytes(before.walk.opening)
            end = link.client.other = End(link, KERNEL, inside, known)
            end.other = link.client
            self._serve(end)
            if before is None:
                self._serve(link.client)
            else:
                self._rejoin(end)
        elif failure in (errno.ECONNREFUSED, errno.EAGAIN) and kernel.target["kind"] == "inet":
            kernel.sockets.append(inside.detach())  # on Linux a refused socket may try again
            self._later(RETRY, lambda: self.reach(link))
        else:
            inside.close()
            self.close(link)

    def _rejoin(self, end: End) -> None:
        """Say to another kernel what the client has said to open its connection, and nothing more before it answers.

        libzmq takes whatever follows READY for an error as long as it has not sent its own. And who asks is not heard
        before who listens, or would miss what comes of it.
        """
        link, client = end.link, end.link.client
        client.paused = True
        until = time.monotonic() + LINGER

        def heard(events: int) -> None:
            self.happened(end, events)
            if end.open and end.walk.ready:
                self.handlers[end.socket.fileno()] = partial(self.happened, end)
                self.write(end, bytes(client.walk.wishes))
                go_on()

        def go_on() -> None:
            if link.channel != "iopub" and link.kernel.deaf and time.monotonic() < until:
                self._later(AGAIN, go_on)
            elif link.kernel_end is end:
                self._resume(client)

        self.handlers[end.socket.fileno()] = heard
        self.write(end, bytes(client.walk.opening))

    def _serve(self, end: End) -> None:
        end.watched = True
        self._watch(end.socket, end.mask, partial(self.happened, end), urgent=not end.rated)
        self.adjust(end)

    def _still_shaking(self, link: Link) -> None:
        if link in link.kernel.links and not link.client.walk.ready:
            self.refuse(link.kernel, link.channel, "handshake time")
            self.close(link)

    def happened(self, end: End, events: int) -> None:
        try:
            if events & OUT:
                self.flush(end)
            if events & ~OUT and end.open and end.mask & IN:
                self.read(end)
            elif events & GONE and end.open:
                self.hung_up(end)
        except Refused as refused:
            kernel = end.link.kernel
            self.refuse(kernel, end.link.channel, f"{refused.rule} ({end.side})")
            self.close(end.link)
            if (refused.rule, end.side) == ("message size", KERNEL):
                kernel.notices = [*kernel.notices, kernel.too_large()][-NOTICES:]
        except OSError:
            self.gone(end)

    def read(self, end: End) -> None:
        other = end.other
        assert other is not None
        walk = end.walk
        if walk.passing >= SPLICE_FROM and not other.out and other.open and not walk.dropping:
            if self.splice(end, other):
                return
        try:
            data = end.receive(CHUNK)
        except BlockingIOError:
            return
        if not data:
            self.gone(end)
            return
        through = walk.feed(data)
        if through:
            self.write(other, through)
        if end.rated:
            self.spend(end, len(data))

    def splice(self, end: End, other: End) -> bool:
        """Move a part of a large body through a pipe, without looking at it. False: it has to be read."""
        if end.pipe is None:
            end.pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # one user's pipes may hold so much together, and no more
                fcntl.fcntl(end.pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        if not end.piped:
            try:
                moved = os.splice(end.socket.fileno(), end.pipe[1], min(end.walk.passing, PIPE))
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not moved:
                self.gone(end)
                return True
            end.walk.skip(moved)
            end.piped = moved
            if end.rated:
                self.spend(end, moved)
        self.drain(end, other)
        return True

    def drain(self, end: End, other: End) -> None:
        """Empty the pipe of `end` into the other side."""
        assert end.pipe is not None
        while end.piped:
            try:
                end.piped -= os.splice(end.pipe[0], other.socket.fileno(), end.piped)
            except BlockingIOError:
                break
        self.adjust(other)
        self.adjust(end)

    def write(self, end: End, data: bytes) -> None:
        if not end.open:
            return
        if not end.out and not (end.other is not None and end.other.piped):  # what is in the pipe comes first
            try:
                data = data[_taken(end, data) :]
            except OSError:
                self.gone(end)
                return
        if data:
            end.out += data
            self.adjust(end)
            if end.other is not None:
                self.adjust(end.other)

    def flush(self, end: End) -> None:
        other = end.other
        if other is not None and other.piped:
            self.drain(other, end)
            return
        if end.out:
            del end.out[: _taken(end, memoryview(end.out)[:WAITING])]
        self.adjust(end)
        if other is not None:
            self.adjust(other)

    def adjust(self, end: End) -> None:
        """Listen to an end only while there is room for what it says: so a slow reader slows the one who talks."""
        other = end.other
        if not end.open:
            return
        mask = OUT if end.out or (other is not None and other.piped) else 0
        if other is not None and other.open and len(other.out) < WAITING and not end.piped and not end.paused:
            mask |= IN
        if mask == end.mask and end.watched:
            return
        end.mask = mask
        if end.watched:
            self.poll.modify(end.socket.fileno(), mask)
            if not end.rated:
                self.people.modify(end.socket.fileno(), mask)
        elif mask & IN:
            self._serve(end)

    def spend(self, end: End, count: int) -> None:
        """The output of a kernel has a rate. Above it nobody listens to that kernel for the rest of the second."""
        now = time.monotonic()
        self.spoke += 1
        if count >= MUCH:
            self.prompt_until = now + PROMPT
        if now - end.window >= 1.0:
            end.window, end.spent_bytes, end.spent_messages = now, 0, end.walk.messages
        end.spent_bytes += count
        channels = end.link.kernel.channels
        over = end.spent_bytes > channels["output_rate"]
        if over or end.walk.messages - end.spent_messages > channels["output_messages"]:
            end.paused = True
            self.adjust(end)
            self._later(end.window + 1.0 - now, lambda: self._resume(end))
            self.refuse(end.link.kernel, "iopub", "output rate")

    def _resume(self, end: End) -> None:
        end.paused = False
        self.adjust(end)

    def hung_up(self, end: End) -> None:
        """One side has hung up while nobody listens to it. What a kernel said before waits for a slow reader.

        epoll tells of a hang-up again and again, whatever is asked of it: so it is asked no more until there is room.
        """
        if end.side == KERNEL:
            self._forget(end.socket.fileno())
            end.watched = False
        else:
            self.gone(end)

    def gone(self, end: End) -> None:
        """One side has closed. A dead kernel's clients stay, for the next; those of iopub also to be told why."""
        link = end.link
        if end.side == KERNEL and (link.lasts or (link.channel == "iopub" and link.client.open and end.walk.ready)):
            self._close(end)
            self.adjust(link.client)
            target = link.kernel.target
            self._later(LINGER, lambda: self._still_cut(end, target))
        else:
            self.close(link)

    def _still_cut(self, end: End, target: dict[str, Any] | None) -> None:
        """The kernel that has closed this lives: its client shall connect anew, as it would without us."""
        if end.link.kernel_end is end and end.link.kernel.target is target is not None:
            self.close(end.link)

    def _cut(self, link: Link) -> None:
        """The kernel has gone. The client waits for the next one, unless it has to notice."""
        if link.kernel_end is None or not link.lasts:
            self.close(link)
            return
        if link.kernel_end.open:
            self._close(link.kernel_end)
        self.adjust(link.client)

    def close(self, link: Link) -> None:
        for end in (link.client, link.kernel_end):
            if end is not None and end.open:
                self._close(end)
        kernel = link.kernel
        if link in kernel.links:
            kernel.links.remove(link)
            if link.channel == "iopub" and not any(one.channel == "iopub" for one in kernel.links):
                kernel.turns.running = ""  # nobody hears when it ends

    def _close(self, end: End) -> None:
        end.open = False
        self._forget(end.socket.fileno())
        end.socket.close()
        for number in end.pipe or ():
            os.close(number)
        end.pipe, end.piped = None, 0

    def refuse(self, kernel: Kernel, channel: str, rule: str) -> None:
        """Tell the supervisor, at most once a second for each rule, and how often it was since."""
        count = kernel.told.setdefault(rule, [0.0, 0.0])
        count[1] += 1
        if time.monotonic() - count[0] >= 1.0:
            message = {
                "event": "refused",
                "kernel": kernel.name,
                "channel": channel,
                "rule": rule,
                "count": int(count[1]),
            }
            self.tell(message)
            count[:] = [time.monotonic(), 0.0]

    # ---- the loop --------------------------------------------------------------------------------------------------

    def _watch(self, one: socket.socket, mask: int, do: Callable[[int], None], *, urgent: bool = True) -> None:
        self.poll.register(one.fileno(), mask)
        if urgent:
            self.people.register(one.fileno(), mask)
        self.handlers[one.fileno()] = do

    def _forget(self, number: int) -> None:
        if self.handlers.pop(number, None) is not None:
            self.poll.unregister(number)
            with contextlib.suppress(FileNotFoundError):  # what a kernel publishes is not there
                self.people.unregister(number)

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (time.monotonic() + seconds, next(self.numbers), do))

    def serve(self) -> None:
        self._watch(self.control, IN, self.obey)
        while True:
            now = time.monotonic()
            resting = self.prompt_until < now < self.output_due
            until = self.timers[0][0] if self.timers else math.inf
            if resting:
                until = min(until, self.output_due)
            wait = None if until == math.inf else max(0.0, until - now)
            for number, events in (self.people if resting else self.poll).poll(wait):
                do = self.handlers.get(number)
                if do is not None:
                    do(events)
            if self.spoke:
                now, rest = time.monotonic(), min(max(PACE, self.spoke * SHARE), LONGEST)
                self.output_due = min(max(self.output_due, now - CREDIT), now) + rest
                self.spoke = 0
            while self.timers and self.timers[0][0] <= time.monotonic():
                heapq.heappop(self.timers)[2]()


def _taken(end: End, data: bytes | memoryview) -> int:
    """How many of these bytes its socket takes: none, too, where Linux is short of memory for a moment. tcp(7)"""
    try:
        return end.send(data, socket.MSG_NOSIGNAL)
    except BlockingIOError:
        return 0


def _gap(link: Link) -> bool:
    """Whether a message of ours may stand now in what the client hears."""
    end = link.kernel_end
    return end is not None and end.walk.between and not end.piped and link.client.open


def _settled(connecting: socket.socket) -> bool:
    """Whether a connection is made or refused already: on a loopback it is, unless the listener's backlog is full."""
    look = select.poll()
    look.register(connecting, select.POLLOUT)
    return bool(look.poll(0))


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def main() -> None:
    """Confine ourselves as the supervisor says, then serve it. Descriptors: 3 its socket, 4 the kernels' folder."""
    control = socket.socket(fileno=3)
    control.set_inheritable(False)
    order, descriptors = packets.receive(control)
    if order is None:
        return
    if order.get("verb") != "hello":
        raise ProtocolError("the first word of the supervisor is not hello")
    program = b""
    while part := os.read(descriptors[0], 1 << 16):
        program += part
    os.close(descriptors[0])
    confine(4, order["uid"], program)
    broker = Broker(control)
    broker.tell({"event": "ready"})
    broker.serve()
