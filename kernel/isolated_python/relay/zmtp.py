"""
A walk along a ZMTP 3 stream: reads what it says about itself, checks it before anything of it is let through.

Sans-IO: bytes go in, the same bytes come out, later or never. rfc.zeromq.org/spec/23, /spec/37
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from isolated_python.relay.rules import COMMANDS, HEARTBEAT, LONGEST_COMMAND, SOCKET_TYPES, WHOLE, Bounds, KiB, Refused

GREETING = 64
MORE, LONG, COMMAND = 1, 2, 4
NULL = b"NULL".ljust(20, b"\0")
MOST_WISHES = 8 * KiB  # that are kept, and a command more
PATIENCE = 8  # messages of another shape, before one of them is taken for the usual one
MOST_HEADS = 16  # frames of a usual message

Inspect = Callable[[list[bytes]], bool | None]
Edit = Callable[["Walk", bool], "bytes | None"]


class Shape:
    """How a message begins: the heads of all its frames but the last, and where they stand.

    Messages that follow each other often differ in their last frame alone. Where the heads of the others are the same
    bytes in the same places, to read them one by one would find what was found, and counted, the last time.
    """

    __slots__ = ("frames", "heads", "length", "read", "size")

    def __init__(self, data: bytes | bytearray = b"", spans: list[tuple[int, int, int]] | tuple[()] = ()) -> None:
        """`spans`: where each frame's head, body and end are. Without any, no message is like it."""
        layout = struct.Struct("".join(f"{body - head}s{stop - body}x" for head, body, stop in spans) or "0s")
        self.read = layout.unpack_from
        self.length = layout.size
        self.heads = tuple(bytes(data[head:body]) for head, body, _ in spans)
        self.frames = len(spans)
        self.size = sum(stop - body for _, body, stop in spans)


LIKE_NONE = Shape()


class Walk:
    """One direction of one connection.

    `inspect` is called with the frames of every message that is small enough to be held whole, and with the first
    frames of one that is not, which may be none. What it refuses does not go on, nor a whole one where it returns True.
    `edit` is called after it, with ourselves, who have `seen` these frames, and whether they are all: it returns what
    goes on instead of the message, or None for the message as it came.
    """

    __slots__ = (
        *("bounds", "inspect", "edit", "whole", "only", "greeted", "ready", "held", "scanned", "passing", "torn"),
        *("dropping", "frames", "size", "seen", "messages", "bytes", "_more", "_most", "_edits", "_usual", "_unusual"),
        *("known", "opening", "wishes", "beyond"),
    )

    def __init__(
        self,
        bounds: Bounds,
        inspect: Inspect | None = None,
        edit: Edit | None = None,
        whole: int = WHOLE,
        only: bytes = b"",
        known: bytes = b"",
        beyond: Callable[[list[bytes]], bytes] | None = None,
    ) -> None:
        """`whole`: bytes of a message that is held until all of it is there.

        `only`: what the first frame of a message ends with, where no other is of interest to `inspect`.
        `known`: the greeting and READY that the other side has heard from the kernel before this one. These must be
        the same, and do not go on.
        `beyond`: says, by the first frames of a message that is larger than its bound, what goes on instead of it;
        without, such a message is refused. Where a part of it is through already, it ends there with an empty frame.
        """
        self.bounds, self.inspect, self.edit, self.only = bounds, inspect, edit, only
        self.known, self.beyond = known, beyond
        self.opening = bytearray()  # the greeting and READY
        self.wishes = bytearray()  # the commands after it that hold as long as the connection does
        self.greeted = 0  # bytes of the greeting that have passed
        self.ready = False
        self.held = bytearray()  # of the current message, not let through yet
        self.scanned = 0  # bytes of `held` that have been read
        self.passing = 0  # bytes of a large frame's body still to come: let through as they are
        self.torn = False  # a part of the current message is through already
        self.dropping = False  # no, none of it is, and the rest will not be either
        self.frames = 0
        self.size = 0
        self.seen: list[bytes] = []
        self.messages = self.bytes = 0  # that came to their end
        self._more = False  # frames follow the one that is passing
        self._most = HEARTBEAT if bounds.channel == "hb" else bounds.message
        self.whole = min(whole, self._most)
        self._usual = LIKE_NONE  # how most of the messages begin
        self._unusual = 0  # messages since it was found that have another
        self._edits: list[tuple[int, int, bytes]] = []  # from and to where something else goes on than what came

    @property
    def between(self) -> bool:
        """Whether the stream stands between two messages, so that another could be put in."""
        return self.ready and (not self.torn or self.dropping)

    @property
    def again(self) -> bool:
        """Whether all that this side has said can be said again to another, who then knows what the first one knew."""
        return self.ready and not self.torn and len(self.wishes) <= MOST_WISHES

    def feed(self, data: bytes) -> bytes:
        """Take what a peer said; returns what may go on. Raises Refused; then nothing of it may."""
        if self.ready and not self.passing and not self.held:  # as nearly always: nothing has to be put together
            return self._scan(data)
        out = []
        if self.greeted < GREETING:
            part, data = data[: GREETING - self.greeted], data[GREETING - self.greeted :]
            self._greet(part)
            if not self.known:
                out.append(part)
        if self.passing and data:
            part, data = data[: self.passing], data[self.passing :]
            if not self.dropping:
                out.append(part)
            self.skip(len(part))
        if data:
            self.held += data
            out.append(self._scan(self.held))
        return b"".join(out)

    def skip(self, count: int) -> None:
        """`count` bytes of a large body went by without us."""
        self.passing -= count
        if not self.passing and not self._more:
            self._end(self.size)
            self.frames = self.size = 0

    def _greet(self, part: bytes) -> None:
        """Byte by byte as it comes: each side of libzmq waits for the other's first ten before it goes on."""
        for place, byte in enumerate(part, self.greeted):
            if (place == 0 and byte != 0xFF) or (place == 9 and byte & 1 == 0):
                raise Refused("not ZMTP")
            if place == 10 and byte < 3:
                raise Refused("ZMTP older than 3")
            if 12 <= place < 32 and byte != NULL[place - 12]:
                raise Refused("a mechanism other than NULL")
            if place >= 33 and byte:
                raise Refused("greeting")
        self.greeted += len(part)
        self.opening += part

    def _scan(self, data: bytes | bytearray) -> bytes:
        """Read the frames in `data`, which is what is held, or has just come and nothing is held.

        Returns the bytes of all messages that are complete by now, and holds the rest. Every frame of every message
        passes through this loop, at some tenths of a microsecond: it keeps to local names, and calls nothing for a
        message that nobody wants to see.
        """
        through, place, end = 0, self.scanned, len(data)  # what goes on; what has been read
        last, usual = end - 1, self._usual
        frames, size, most_frames = self.frames, self.size, self.bounds.frames
        most = self._most if self.ready else -1
        while place < last:
            if not frames:
                if place + usual.length < last and usual.read(data, place) == usual.heads:
                    frames, size, place = usual.frames, usual.size, place + usual.length
                else:
                    self._unusual += 1
            flags = data[place]
            if flags < LONG:
                body = place + 2
                stop = body + data[place + 1]
            else:
                body, stop = self._long(data, place, flags, alone=not frames)
                if not stop:
                    break
                if flags & COMMAND:
                    most = self._most if self.ready else -1
                    place = through = stop
                    continue
            frames += 1
            size += stop - body
            if size > most or frames > most_frames:  # before a byte of the frame's body is waited for
                self._exceed(size, frames)
            if size > self.whole:  # also where it came in one piece: what is seen hangs on no accident of reading
                self.size = size
                through = self._tear(data, through, place, min(stop, end))
                if end < stop:  # what there is goes on, the rest will pass as it comes
                    place, self.passing, self._more = end, stop - end, bool(flags & MORE)
                    break
            elif end < stop:
                frames, size = frames - 1, size - (stop - body)
                break
            place = stop
            if not flags & MORE:
                if not self.torn and self._concerns(data, through):
                    self.size = size
                    self._decide(data, through, place, place, whole=True)
                if self._unusual > PATIENCE and not self.torn:
                    usual = self._learn(data, through, place)
                self._end(size)
                through, frames, size = place, 0, 0
        self.frames, self.size, self.scanned = frames, size, place - through
        return self._divide(data, through)

    def _exceed(self, size: int, frames: int) -> None:
        """Raises Refused, unless it is a message of which the rest may be dropped."""
        if not self.ready:
            raise Refused("a message before READY")
        if frames > self.bounds.frames:
            raise Refused("frames in a message")
        if self.beyond is None:
            raise Refused("message size")

    def _concerns(self, data: bytes | bytearray, start: int) -> bool:
        """Whether anybody wants to see the message that begins there."""
        if self.edit is not None or self.inspect is None or not self.only:
            return self.edit is not None or self.inspect is not None
        body = start + (9 if data[start] & LONG else 2)
        return data.endswith(self.only, body, body + int.from_bytes(data[start + 1 : body], "big"))

    def _tear(self, data: bytes | bytearray, start: int, read: int, stop: int) -> int:
        """The message is too large to be held: what becomes of it up to `stop` is decided by what was read."""
        if not self.torn:
            self.torn, self.dropping = True, self._decide(data, start, read, stop, whole=False)
        elif self.dropping:
            self._edits.append((start, stop, b""))
        elif self.beyond is not None and self.size > self._most:
            self.dropping = True
            self._edits.append((start, stop, frame(b"", more=False) + self.beyond([])))
        return stop

    def _end(self, size: int) -> None:
        self.bytes += size
        self.messages += 1
        self.torn = self.dropping = False

    def _decide(self, data: bytes | bytearray, start: int, read: int, stop: int, *, whole: bool) -> bool:
        """Show the frames from `start` to `read`. True: something else goes on instead of all up to `stop`."""
        self.seen = [bytes(data[body:end]) for _, body, end in spans(data, start, read)]
        kept_back = (
            self.inspect is not None
            and (not self.only or (self.seen and self.seen[0].endswith(self.only)))
            and self.inspect(self.seen)
            and whole
        )
        if self.beyond is not None and self.size > self._most:
            instead: bytes | None = self.beyond(self.seen)
        else:
            instead = b"" if kept_back else self.edit(self, whole) if self.edit is not None else None
        self.seen = []
        if instead is not None:
            self._edits.append((start, stop, instead))
        return instead is not None

    def _divide(self, data: bytes | bytearray, through: int) -> bytes:
        """What goes on of this, up to there; the rest is held."""
        parts, place = [], 0
        for start, stop, instead in self._edits:
            parts += [data[place:start], instead]
            place = stop
        self._edits.clear()
        on = b"".join([*parts, data[place:through]]) if parts else bytes(data[:through])
        if data is self.held:
            del self.held[:through]
        elif through < len(data):
            self.held += data[through:]
        return on

    def _learn(self, data: bytes | bytearray, start: int, stop: int) -> Shape:
        """The whole message that stands there is taken for a usual one."""
        self._unusual = 0
        *but_last, _ = spans(data, start, stop)
        if len(but_last) < MOST_HEADS:
            self._usual = Shape(data, but_last)
        return self._usual

    def _long(self, data: bytes | bytearray, place: int, flags: int, *, alone: bool) -> tuple[int, int]:
        """Body and end of a frame that is long, or a command, or neither. End 0: not all that is wanted has come.

        `alone`: it is no part of a message.
        """
        if flags > (MORE | LONG | COMMAND):
            raise Refused("unknown flags")
        body = place + (9 if flags & LONG else 2)
        if len(data) < body:
            return body, 0
        stop = body + int.from_bytes(data[place + 1 : body], "big")
        if flags & COMMAND:
            if flags & MORE or stop - body > LONGEST_COMMAND or not alone:
                raise Refused("command")
            if len(data) < stop:
                return body, 0
            self._command(data, place, body, stop)
        return body, stop

    def _command(self, data: bytes | bytearray, start: int, middle: int, stop: int) -> None:
        """What stands there is a command, its body in the middle."""
        body = bytes(data[middle:stop])
        name = body[1 : 1 + body[0]] if body else b""
        if name not in COMMANDS or len(body) > COMMANDS[name] + 16:
            raise Refused("command")
        if (name == b"READY") == self.ready or (not self.ready and name not in (b"READY", b"ERROR")):
            raise Refused("handshake")
        if name == b"READY":
            kind = properties(body[1 + len(name) :]).get(b"socket-type", b"")
            if kind not in SOCKET_TYPES[self.bounds.channel, self.bounds.side]:
                raise Refused("socket type")
            self.ready = True
            self.opening += data[start:stop]
        elif name in (b"SUBSCRIBE", b"CANCEL") and len(self.wishes) <= MOST_WISHES:
            self.wishes += data[start:stop]
        if self.known:
            if self.opening != self.known:
                raise Refused("another opening than that of the kernel before")
            self._edits.append((start, stop, b""))
            self.known = b""


def properties(data: bytes) -> dict[bytes, bytes]:
    """The metadata of READY: names in lower case. Raises Refused where a length does not fit."""
    found, place = {}, 0
    while place < len(data):
        name_end = place + 1 + data[place]
        value_start = name_end + 4
        size = int.from_bytes(data[name_end:value_start], "big")
        if value_start > len(data) or value_start + size > len(data):
            raise Refused("metadata")
        found[data[place + 1 : name_end].lower()] = data[value_start : value_start + size]
        place = value_start + size
    return found


def spans(data: bytes | bytearray, place: int, until: int) -> list[tuple[int, int, int]]:
    """Where head, body and end are of each frame that stands there, all of which have been read once."""
    found = []
    while place < until:
        body = place + (9 if data[place] & LONG else 2)
        stop = body + int.from_bytes(data[place + 1 : body], "big")
        found.append((place, body, stop))
        place = stop
    return found


def frame(body: bytes, *, more: bool) -> bytes:
    """One frame of a message of our own."""
    flags = MORE if more else 0
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body
