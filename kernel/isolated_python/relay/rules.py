"""What may cross, as tables: who speaks on which channel, in which commands, and how much of it."""

from __future__ import annotations

from isolated_python.record import Record

KiB = 1 << 10

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
CLIENT, KERNEL = "client", "kernel"

# The ZeroMQ socket types that may say READY, by channel and side. rfc.zeromq.org/spec/23
SOCKET_TYPES = {
    ("shell", CLIENT): (b"DEALER", b"REQ"),
    ("shell", KERNEL): (b"ROUTER",),
    ("iopub", CLIENT): (b"SUB", b"XSUB"),
    ("iopub", KERNEL): (b"PUB", b"XPUB"),
    ("stdin", CLIENT): (b"DEALER",),
    ("stdin", KERNEL): (b"ROUTER",),
    ("control", CLIENT): (b"DEALER", b"REQ"),
    ("control", KERNEL): (b"ROUTER",),
    ("hb", CLIENT): (b"REQ", b"DEALER"),
    ("hb", KERNEL): (b"REP", b"ROUTER"),
}

# The commands of ZMTP, and the largest body of each in bytes. READY is the first frame of each side, and comes once.
COMMANDS = {
    b"READY": 4 * KiB,
    b"SUBSCRIBE": 4 * KiB,
    b"CANCEL": 4 * KiB,
    b"PING": 64,
    b"PONG": 64,
    b"ERROR": 300,
}
LONGEST_COMMAND = max(COMMANDS.values())

HEARTBEAT = 4 * KiB  # bytes of a message on hb
WHOLE = 64 * KiB  # bytes; a message up to this size crosses whole or not at all
EDITED = 4096 * KiB  # bytes; the same where it has to be read to its end, because a profile says what may be displayed
WAITING = 256 * KiB  # bytes that may wait for a slow reader, per direction


class Bounds(Record):
    """How much may cross in one direction of one connection."""

    channel: str
    side: str  # who is speaking
    message: int  # bytes
    frames: int


class Granted(Record):
    """What a profile grants of what a kernel says. None: all of it."""

    profile: str = ""  # its name
    display: tuple[str, ...] | None = None  # mime types, globs allowed
    wall_clock: float | None = None  # seconds of one cell
    output: int | None = None  # bytes of one cell
    messages: int | None = None  # of one cell

    @property
    def counts(self) -> bool:
        """Whether it matters which cell runs."""
        return any(one is not None for one in (self.wall_clock, self.output, self.messages))

    def edits(self, channel: str) -> bool:
        """Whether anything of what a kernel says on this channel may have to be taken out."""
        limited = self.output is not None or self.messages is not None
        return channel != "hb" and (self.display is not None or (limited and channel == "iopub"))


class Refused(Exception):
    """A peer broke a rule; `rule` names it in a word or two for the audit."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule
