"""
What the tables of system calls are made of, and the tables by name.

Runs:     in the supervisor; compiled once, never read inside
Trusts:   nobody: what is not in a table does not happen
Imports:  errors, layers, linux, record
"""

from __future__ import annotations

from isolated_python.record import Record

# Verdicts, as seccomp(2) spells them (linux/seccomp.h).
KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS
NOTIFY = 0x7FC00000  # SECCOMP_RET_USER_NOTIF: refused, and the supervisor is told
ALLOW = 0x7FFF0000  # SECCOMP_RET_ALLOW

EVERY_BIT = (1 << 64) - 1

# The capabilities that a profile may withhold, and that a filter alone keeps from its kernel.
WITHHELD = ("subprocess", "sockets", "native_code")


def refuse(errno: int) -> int:
    """Fail with `errno`, and tell nobody: for what ordinary libraries ask for every day."""
    return 0x00050000 | errno


class Group(Record):
    """System calls that share a verdict, whatever their arguments, and the reason for it."""

    reason: str
    verdict: int
    calls: tuple[str, ...]


class Match(Record):
    """True where `argument & mask == value`, over all 64 bits; with `at_least`, where `argument >= value`."""

    argument: int
    value: int
    mask: int = EVERY_BIT
    at_least: bool = False

    def holds(self, arguments: tuple[int, ...]) -> bool:
        word = arguments[self.argument]
        return word >= self.value if self.at_least else word & self.mask == self.value


class When(Record):
    """A verdict on a call whose arguments are all matched.

    The rules of one call are written so that at most one holds, and one of `else` sort may stand beside them:
    libseccomp takes exact values before ranges. What no rule holds for gets the default of the table.
    """

    call: str
    verdict: int
    matches: tuple[Match, ...]


class Table(Record):
    name: str
    reason: str
    default: int
    groups: tuple[Group, ...]
    rules: tuple[When, ...]


def exactly(argument: int, value: int) -> Match:
    """All 64 bits: Linux often reads the lower half only, so a rule that grants must not look away from the upper."""
    return Match(argument, value)


def otherwise(argument: int) -> Match:
    """Any value that no exact rule on this argument has taken."""
    return Match(argument, 0, at_least=True)


def none_of(argument: int, bits: int) -> Match:
    """None of the bits is set."""
    return Match(argument, 0, bits)


def any_of(argument: int, bits: int) -> tuple[Match, ...]:
    """At least one of the bits is set: one match for each bit as the highest that is, so that exactly one holds."""
    matches = []
    higher = 0
    for place in reversed(range(64)):
        bit = 1 << place
        if bits & bit:
            matches.append(Match(argument, bit, higher | bit))
            higher |= bit
    return tuple(matches)


def one_of(call: str, argument: int, values: tuple[int, ...], *, verdict: int = ALLOW) -> tuple[When, ...]:
    """One rule for each exact value."""
    return tuple(When(call, verdict, (exactly(argument, value),)) for value in values)


def variant(without: tuple[str, ...]) -> str:
    """The name of the table for a profile that withholds these."""
    return "".join(["kernel", *(f"-no-{name}" for name in WITHHELD if name in without)])
