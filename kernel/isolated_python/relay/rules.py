"""What may cross, as tables: who speaks on which channel, in which commands, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

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
WAITING = 256 * KiB  # bytes that may wait for a slow reader, per direction


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may cross in one direction of one connection."""

    channel: str
    side: str  # who is speaking
    message: int  # bytes
    frames: int


class Refused(Exception):
    """A peer broke a rule; `rule` names it in a word or two for the audit."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule
