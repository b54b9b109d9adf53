"""seccomp: which system calls reach Linux at all. The tables are data (filters/), and compiled once, outside."""

from __future__ import annotations

from base64 import b64decode, b64encode

from isolated_python.record import Record

from ..errors import HostError
from ..linux import seccomp
from ..policy.profile import Profile
from .filters import WITHHELD, variant
from .step import Descriptors, Step

LISTENER = "seccomp"  # the name under which the step leaves the descriptor of its refused calls


class Filter(Record):
    """A compiled table: BPF, and the names of the calls that the supervisor is told of."""

    table: str
    program: bytes
    names: dict[int, str]

    def to_wire(self) -> dict[str, object]:
        names = {str(number): name for number, name in self.names.items()}
        return {"table": self.table, "program": b64encode(self.program).decode(), "names": names}

    @staticmethod
    def from_wire(wire: dict[str, object]) -> Filter:
        """Raises ValueError, KeyError or TypeError on anything that to_wire did not write."""
        table, program, names = wire["table"], wire["program"], wire["names"]
        if not (isinstance(table, str) and isinstance(program, str) and isinstance(names, dict)):
            raise TypeError("not a compiled filter")
        return Filter(table, b64decode(program, validate=True), {int(n): str(name) for n, name in names.items()})


class LoadFilter(Step):
    """Put the sandbox under its filter, for good.

    From here on a refused call waits for whoever holds the listener, so the listener is passed out, and closed here,
    before anything else: the self-check asks for unshare, and foreign code with the listener could let itself through.
    """

    table: str
    program: str  # BPF in base64
    notify: bool

    def describe(self) -> str:
        told = "; the supervisor is told of refused calls" if self.notify else ""
        return f"load the seccomp filter {self.table}, {len(self.program) * 3 // 4 // 8} instructions{told}"

    def execute(self, descriptors: Descriptors) -> None:
        listener = seccomp.load(b64decode(self.program), notify=self.notify)
        if listener is not None:
            descriptors[LISTENER] = listener


def table_of(profile: Profile) -> str:
    """The name of the table that holds what this profile grants."""
    return variant(withheld(profile))


def withheld(profile: Profile) -> tuple[str, ...]:
    """The capabilities that this profile does not grant, and that a filter alone keeps from its kernel."""
    return tuple(name for name in WITHHELD if not getattr(profile.capabilities, name))


def plan(profile: Profile, filter: Filter | None) -> list[Step]:
    """The last step of all. `filter` is None where this host cannot give one; the profile says whether that ends it."""
    if profile.layers.seccomp == "off":
        return []
    if filter is None:
        install = "install libseccomp2, use linux 5.7 or newer, or write "
        for name in withheld(profile):
            raise HostError(
                f"no seccomp filter can be had on this host, and nothing else holds capabilities.{name} = false",
                remedy=f"{install}{name} = true in the profile",
            )
        if profile.layers.seccomp == "prefer":
            return []
        raise HostError(
            "no seccomp filter can be had on this host, and the profile requires it",
            remedy=f'{install}seccomp = "prefer" in the profile',
        )
    return [load(filter)]


def load(filter: Filter) -> Step:
    """The step that loads `filter`: with a listener where its table has anything to tell."""
    return LoadFilter(filter.table, b64encode(filter.program).decode(), bool(filter.names))
