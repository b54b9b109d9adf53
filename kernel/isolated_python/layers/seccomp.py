"""
seccomp: which system calls reach Linux at all.

The tables are data (filters/). They become BPF once, outside, by libseccomp, which takes site-packages and a tenth of
a second: `python -I -m isolated_python.layers.seccomp NAME [FILE]`. The result is kept in a private folder, and a start
only reads it.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from isolated_python.record import Record

from ..errors import HostError, LaunchError
from ..linux import seccomp
from ..linux.libc import MACHINE
from ..policy.profile import Profile
from .filters import EVERY_BIT, KILL, NOTIFY, Match, Table
from .filters.kernel import VARIANTS, WITHOUT, variant
from .filters.relay import RELAY
from .step import Descriptors, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES: dict[str, Table] = {table.name: table for table in (*VARIANTS, RELAY)}

LISTENER = "seccomp"  # the name under which the step leaves the descriptor of its refused calls
FORMAT = 1  # of the kept file, and of how tables become rules: a change makes every kept filter stale
LARGEST_FILE = 256 * 1024  # bytes of a kept filter
COMPILING = 60.0  # seconds


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
    return tuple(name for name in WITHOUT if not getattr(profile.capabilities, name))


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


def compile(name: str, machine: str = MACHINE) -> Filter:
    """Make BPF from a table. Needs pyseccomp, hence site-packages; takes about a tenth of a second.

    Names that this machine's ABI, or this libseccomp, does not know are left to the default: refused either way.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise HostError(
            f"seccomp filters cannot be compiled ({error})", remedy="install libseccomp2 and pyseccomp"
        ) from None
    table = TABLES[name]
    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[machine]

    # The default for a foreign architecture kills one thread only, and a kernel would hang instead of die.
    filter = pyseccomp.SyscallFilter(table.default)
    if not filter.exist_arch(arch):
        filter.add_arch(arch)
        filter.remove_arch(pyseccomp.system_arch())
    filter.set_attr(pyseccomp.Attr.ACT_BADARCH, KILL)
    filter.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree over the numbers
    names: dict[int, str] = {}
    for call, verdict, matches in _rules(table):
        number = int(pyseccomp.resolve_syscall(arch, call))
        # -1: unknown to libseccomp. Other negative numbers: known, but not on this architecture.
        # And libseccomp refuses a rule that says what the default says.
        if number < 0 or verdict == table.default:
            continue
        filter.add_rule_exactly(verdict, call, *(_comparison(match, pyseccomp) for match in matches))
        if verdict == NOTIFY:
            names[number] = call
    return Filter(name, _export(filter), names)


def cached(name: str, folder: str, interpreter: str = sys.executable) -> Filter:
    """The filter `name`: from `folder` when it was kept there, else compiled by `interpreter` and kept.

    The folder must exist, be ours, and be closed to everybody else; otherwise it is neither read nor written, because
    whoever can write there would choose what every sandbox may ask of Linux. Raises HostError, LaunchError.
    """
    place = _open_private(folder)
    try:
        file = f"{name}-{_key(TABLES[name])}.json"
        filter = _read(place, file) if place is not None else None
        if filter is None or filter.table != name:
            text = _compile_elsewhere(name, interpreter)
            filter = Filter.from_wire(json.loads(text))
            if place is not None:
                _write(place, file, text)
        return filter
    finally:
        if place is not None:
            os.close(place)


def _rules(table: Table) -> Iterator[tuple[str, int, tuple[Match, ...]]]:
    for group in table.groups:
        for call in group.calls:
            yield call, group.verdict, ()
    for rule in table.rules:
        yield rule.call, rule.verdict, rule.matches


def _comparison(match: Match, pyseccomp: Any) -> Any:
    if match.at_least:
        return pyseccomp.Arg(match.argument, pyseccomp.GE, match.value)
    if match.mask == EVERY_BIT:
        return pyseccomp.Arg(match.argument, pyseccomp.EQ, match.value)
    return pyseccomp.Arg(match.argument, pyseccomp.MASKED_EQ, match.mask, match.value)


def _export(filter: Any) -> bytes:
    with os.fdopen(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as file:
        filter.export_bpf(file)
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def _key(table: Table) -> str:
    """What a kept filter was made of: the table, the machine, and the libseccomp that lies here."""
    made_of = (FORMAT, table, MACHINE, sys.version_info[:2], _library())
    return sha256(repr(made_of).encode()).hexdigest()[:32]


def _library() -> str:
    """The file that libseccomp.so.2 stands for, which carries its version; found without loading anything."""
    for folder in ("/usr/lib", "/lib", "/usr/lib64", "/lib64"):
        for place in (folder, f"{folder}/{MACHINE}-linux-gnu"):
            path = f"{place}/libseccomp.so.2"
            if os.path.exists(path):
                status = os.stat(path)
                return f"{os.path.realpath(path)} {status.st_size} {status.st_mtime_ns}"
    return ""


def _compile_elsewhere(name: str, interpreter: str) -> str:
    """Compile in a process of its own, with site-packages and without our environment."""
    import subprocess  # 20 ms, and only when nothing was kept

    command = [interpreter, "-I", "-m", __spec__.name if __spec__ else __name__, name]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"}, timeout=COMPILING, cwd="/", check=False
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise LaunchError(f"the seccomp filter {name} was not compiled: {reason}", remedy=f"run {' '.join(command)}")
    return done.stdout


def _open_private(folder: str) -> int | None:
    try:
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    if _ours(os.fstat(place), closed_to=0o077):
        return place
    os.close(place)
    return None


def _ours(status: os.stat_result, *, closed_to: int) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & closed_to


def _read(place: int, file: str) -> Filter | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _ours(status, closed_to=0o022) or status.st_size > LARGEST_FILE:
            return None
        return Filter.from_wire(json.loads(os.read(descriptor, LARGEST_FILE)))
    except (ValueError, KeyError, TypeError):
        return None  # half-written or foreign: it is made again
    finally:
        os.close(descriptor)


def _write(place: int, file: str, text: str) -> None:
    """Appear at once or not at all; a full disk costs the next start a tenth of a second, and no more."""
    draft = f"{file}.{os.getpid()}"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=place)
        try:
            whole = os.write(descriptor, text.encode()) == len(text.encode())
        finally:
            os.close(descriptor)
        if whole:
            os.replace(draft, file, src_dir_fd=place, dst_dir_fd=place)
        else:
            os.unlink(draft, dir_fd=place)
    except OSError:
        return


def main(arguments: list[str]) -> int:
    """`python -I -m isolated_python.layers.seccomp NAME [FILE]`: compile a table, print it or write it to FILE."""
    if not 1 <= len(arguments) <= 2 or arguments[0] not in TABLES:
        sys.stderr.write(f"usage: python -I -m isolated_python.layers.seccomp {{{','.join(TABLES)}}} [FILE]\n")
        return 2
    try:
        text = json.dumps(compile(arguments[0]).to_wire())
    except HostError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if len(arguments) == 2:
        with open(arguments[1], "x", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
