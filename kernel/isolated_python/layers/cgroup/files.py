"""What v1 and v2 have in common: values, and the way their files are read and written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import time
from collections.abc import Callable, Iterable

from isolated_python.errors import HostError
from isolated_python.linux.process import start_time
from isolated_python.record import Record

NAME = re.compile(r"isolated-python-(\d+)-(\d+)")  # pid and start time of the supervisor
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

PERIOD = 100_000  # microseconds: with 10 ms the round trip's p99 triples, with 100 ms it does not change
PATIENCE = 5.0  # seconds that the killed are given to be gone


class Usage(Record):
    """What a group uses now."""

    memory: int  # bytes, page cache included: what is held against the limit
    memory_peak: int  # bytes
    cpu_seconds: float  # of all its processes, the dead included
    processes: int  # tasks: processes and threads


class Events(Record):
    """How often a group met its limits, since it was made."""

    oom_kills: int  # processes killed for memory
    oom_failures: int  # times that memory was at its limit; on v1 also those that giving back cache could help
    processes_refused: int  # forks that failed at the limit


def name_for(pid: int) -> str:
    """The name of a supervisor's parent group: pid and start time together are never used twice."""
    return f"isolated-python-{pid}-{start_time(pid)}"


def is_dead(name: str) -> bool:
    """Whether this is the name of a parent group whose supervisor is gone."""
    match = NAME.fullmatch(name)
    if not match:
        return False
    try:
        return start_time(int(match[1])) != int(match[2])
    except (FileNotFoundError, ProcessLookupError):
        return True


def write(path: str, text: str, *, folder: int | None = None) -> None:
    """One write(2): a buffered file would swallow the errno. Raises OSError with the file's name in it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"writing {text!r} to {path}: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(descriptor)


def stands_in(pid: int, controllers: Iterable[str], end: str) -> bool:
    """Whether a process's groups of these controllers all end like that; "" is that of cgroup v2. proc(5)"""
    lines = (line.split(":", 2) for line in read(f"/proc/{pid}/cgroup").splitlines())
    places = {name: path for _, names, path in lines for name in names.split(",")}
    return all(places.get(name, "").endswith(end) for name in controllers)


def entrance(path: str, *, folder: int | None = None) -> int:
    """A cgroup.procs file, open: who may move a process is decided by who opened it. linux 5.16, CVE-2021-4197"""
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)


def enter(entrances: list[int], pid: int) -> None:
    """Move a process into groups, by their entrances, which are closed. Raises OSError; one is enough to fail."""
    try:
        for descriptor in entrances:
            os.write(descriptor, str(pid).encode())
    finally:
        for descriptor in entrances:
            os.close(descriptor)


def read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
        return b"".join(pieces).decode()
    finally:
        os.close(descriptor)


def number(path: str) -> int:
    return int(read(path))


def keys(path: str) -> dict[str, int]:
    """A file of lines `key value`."""
    return {key: int(value) for key, value in (line.split() for line in read(path).splitlines())}


def processes(path: str) -> list[int]:
    """The processes in a cgroup.procs file, seen from our pid namespace; 0 is one of another. None where it is gone."""
    try:
        return [int(word) for word in read(path).split()]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise


def make(folder: str) -> None:
    """mkdir(2), its refusals in words for a person."""
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        raise
    except OSError as error:
        raise HostError(
            f"no cgroup can be made at {folder} ({os.strerror(error.errno or 0)})",
            remedy="look whether the cgroup folders are writable and cgroup.max.descendants is not reached",
        ) from error


def kill(procs: str) -> None:
    """SIGKILL to every process in a cgroup.procs file, and to no other.

    A pid could be given to a stranger between reading and signalling: so each is opened, then looked for again.
    """
    opened = {}
    try:
        for pid in processes(procs):
            with contextlib.suppress(OSError):
                opened[pid] = os.pidfd_open(pid)
        for pid in opened.keys() & processes(procs):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(opened[pid], signal.SIGKILL)
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def remove(folder: str, wait: Callable[[float], None], patience: float = PATIENCE) -> None:
    """rmdir(2), again while the dying still hold it (EBUSY), for at most `patience` seconds.

    `wait` returns when another try is worth it, after at most the seconds that it is given. Gone already is removed.
    """
    end = time.monotonic() + patience
    while True:
        try:
            os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            left = end - time.monotonic()
            if error.errno != errno.EBUSY or left <= 0:
                raise OSError(error.errno, f"removing {folder}: {os.strerror(error.errno or 0)}") from None
        wait(left)


def wait_for_deaths(procs: str, seconds: float) -> None:
    """Return when a process of a cgroup.procs file has died, or after a moment when none is left to be waited for."""
    waiting = select.poll()
    opened = []
    try:
        for pid in processes(procs):
            with contextlib.suppress(OSError):
                opened.append(os.pidfd_open(pid))
                waiting.register(opened[-1], select.POLLIN)
        # Between its last breath and leaving the group a process is seen nowhere: a millisecond covers that.
        waiting.poll(seconds * 1000 if opened else 1)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def children(folder: str) -> list[str]:
    """The names of the groups below a folder; none where it is gone."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def check_id(id: str) -> str:
    """A name that can stand in a path. Raises ValueError."""
    if not ID.fullmatch(id):
        raise ValueError(f"{id!r} cannot be the name of a cgroup")
    return id


def swap_is_on() -> bool:
    return len(read("/proc/swaps").splitlines()) > 1


def unlimited(value: int | None, word: str = "max") -> str:
    return word if value is None else str(value)


def swept(names: list[str], remove: Callable[[str], bool]) -> list[str]:
    """The names that could be removed. What clings to life is left to the next sweep: it must not keep us from work."""
    removed = []
    for name in names:
        with contextlib.suppress(OSError):
            if remove(name):
                removed.append(name)
    return removed
