"""
A walk along a ZMTP 3 stream: reads what it says about itself, checks it before anything of it is let through.

Sans-IO: bytes go in, the same bytes come out, later or never. rfc.zeromq.org/spec/23, /spec/37
"""

from __future__ import annotations

from collections.abc import Callable

from isolated_python.relay.rules import COMMANDS, HEARTBEAT, LONGEST_COMMAND, SOCKET_TYPES, WHOLE, Bounds, Refused

GREETING = 64
MORE, LONG, COMMAND = 1, 2, 4
NULL = b"NULL".ljust(20, b"\0")

Inspect = Callable[[list[bytes]], bool | None]
Edit = Callable[["Walk", bool], "bytes | None"]


class Walk:
    """One direction of one connection.

    `inspect` is called with the frames of every message that is small enough to be held whole, and with the first
    frames of one that is not, which may be none. What it refuses does not go on, nor a whole one where it returns True.
    `edit` is called after it, with ourselves, who have `seen` these frames, and whether they are all: it returns what
    goes on instead of the message, or None for the message as it came.
    """

    def __init__(
        self, bounds: Bounds, inspect: Inspect | None = None, edit: Edit | None = None, whole: int = WHOLE
    ) -> None:
        """`whole`: bytes of a message that is held until all of it is there."""
        self.bounds, self.inspect, self.edit, self.whole = bounds, inspect, edit, whole
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
        self._edits: list[tuple[int, int, bytes]] = []  # from and to where something else than `held` goes on

    @property
    def between(self) -> bool:
        """Whether the stream stands between two messages, so that another could be put in."""
        return self.ready and (not self.torn or self.dropping)

    def feed(self, data: bytes) -> bytes:
        """Take what a peer said; returns what may go on. Raises Refused; then nothing of it may."""
        out = []
        if self.greeted < GREETING:
            part, data = data[: GREETING - self.greeted], data[GREETING - self.greeted :]
            self._greet(part)
            out.append(part)
        if self.passing and data:
            part, data = data[: self.passing], data[self.passing :]
            self.passing -= len(part)
            if not self.dropping:
                out.append(part)
            if not self.passing and not self._more:
                self._end()
        if data:
            self.held += data
            out.append(self._scan())
        return b"".join(out)

    def skip(self, count: int) -> None:
        """`count` bytes of a large body went by without us."""
        self.passing -= count
        if not self.passing and not self._more:
            self._end()

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

    _more = False

    def _scan(self) -> bytes:
        """Read frames from what is held; returns the bytes of all messages that are complete by now."""
        held, through = self.held, 0
        while True:
            start = self.scanned
            if len(held) - start < 2:
                break
            flags = held[start]
            if flags & ~(MORE | LONG | COMMAND):
                raise Refused("unknown flags")
            head = 9 if flags & LONG else 2
            if len(held) - start < head:
                break
            length = int.from_bytes(held[start + 1 : start + head], "big")
            body = start + head
            if flags & COMMAND:
                if flags & MORE or length > LONGEST_COMMAND or self.frames:
                    raise Refused("command")
                if len(held) - body < length:
                    break
                self._command(bytes(held[body : body + length]))
                self.scanned = through = body + length
                continue
            self._count(length)
            if len(held) - body < length:
                if self.size <= self.whole:
                    self._uncount(length)
                    break
                # Too large to be held: what there is goes on, the rest will pass as it comes.
                self._more = bool(flags & MORE)
                self.passing = length - (len(held) - body)
                self._tear(through, len(held))
                through = len(held)
                break
            self.scanned = body + length
            if self.size > self.whole:  # also where it came in one piece: what is seen hangs on no accident of reading
                self._tear(through, self.scanned)
            elif self.inspect is not None or self.edit is not None:
                self.seen.append(bytes(held[body : body + length]))
            if not flags & MORE:
                self._end(through, self.scanned)
            if self.torn or not flags & MORE:
                through = self.scanned
        out = self._edited(through)
        del held[:through]
        self.scanned = max(0, self.scanned - through)
        return out

    def _count(self, length: int) -> None:
        """Before a byte of the frame's body is waited for."""
        if not self.ready:
            raise Refused("a message before READY")
        self.frames += 1
        self.size += length
        most = HEARTBEAT if self.bounds.channel == "hb" else self.bounds.message
        if self.size > most:
            raise Refused("message size")
        if self.frames > self.bounds.frames:
            raise Refused("frames in a message")

    def _uncount(self, length: int) -> None:
        self.frames -= 1
        self.size -= length

    def _tear(self, start: int, stop: int) -> None:
        """The message is too large to be held: what becomes of it is decided by what was seen until here."""
        if not self.torn:
            self.dropping = self._decide(start, stop, whole=False)
        elif self.dropping:
            self._edits.append((start, stop, b""))
        self.torn, self.seen = True, []

    def _decide(self, start: int, stop: int, *, whole: bool) -> bool:
        """Show the message, which stands there in what is held. True: something else goes on instead of it."""
        kept_back = self.inspect is not None and self.inspect(self.seen) and whole
        instead = b"" if kept_back else self.edit(self, whole) if self.edit is not None else None
        if instead is not None:
            self._edits.append((start, stop, instead))
        return instead is not None

    def _edited(self, through: int) -> bytes:
        """What goes on of what is held, up to there."""
        if not self._edits:
            return bytes(self.held[:through])
        parts, place = [], 0
        for start, stop, instead in self._edits:
            parts += [bytes(self.held[place:start]), instead]
            place = stop
        self._edits.clear()
        return b"".join([*parts, bytes(self.held[place:through])])

    def _end(self, start: int = 0, stop: int = 0) -> None:
        """The message has come to its end. If it is whole, it stands there in what is held."""
        if not self.torn:
            self._decide(start, stop, whole=True)
        self.bytes += self.size
        self.messages += 1
        self.frames = self.size = 0
        self.torn, self.dropping, self.seen = False, False, []

    def _command(self, body: bytes) -> None:
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


def frame(body: bytes, *, more: bool) -> bytes:
    """One frame of a message of our own."""
    flags = MORE if more else 0
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body
