"""
Cgroup v2: one folder for everything, for root or for whom it was delegated to.

Source: Documentation/admin-guide/cgroup-v2.rst, systemd's CGROUP_DELEGATION.md.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from functools import partial

from isolated_python.errors import HostError, RequestError
from isolated_python.linux.cgroups import LEAF, V2_CONTROLLERS
from isolated_python.policy.profile import Resources

from . import files
from .files import Events, Usage

GIVE = " ".join(f"+{name}" for name in sorted(V2_CONTROLLERS))
TAKE = GIVE.replace("+", "-")
SMALLEST_QUOTA = 1000  # microseconds, kernel/sched/core.c


class Hierarchy:
    """The group that is ours to divide."""

    version = "v2"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def open(self, name: str = "") -> Parent:
        """Make the parent group of one supervisor, by default this process. Raises HostError where the host refuses."""
        name = name or files.name_for(os.getpid())
        folder = f"{self.folder}/{name}"
        try:
            self._hand_down()
            files.make(folder)
            if not os.path.exists(f"{folder}/cgroup.kill"):
                raise HostError("this kernel has no cgroup.kill", remedy="use linux 5.14 or newer")
            files.write(f"{folder}/cgroup.subtree_control", GIVE)
        except OSError as error:
            self._remove(name)
            raise HostError(
                f"the cgroup {self.folder} cannot be divided ({error})",
                remedy="start the server with systemd-run --user --scope -p Delegate=yes",
            ) from error
        except HostError:
            self._remove(name)
            raise
        return Parent(self, name)

    def sweep(self) -> list[str]:
        """Remove what supervisors that are gone have left, their kernels included; the names of it."""
        return files.swept(self.dead(), self._remove)

    def dead(self) -> list[str]:
        """The names of what supervisors that are gone have left."""
        return [name for name in files.children(self.folder) if files.is_dead(name)]

    def _hand_down(self) -> None:
        """Let groups below ours have controllers, for which every process of ours moves into a leaf first."""
        given = set(files.read(f"{self.folder}/cgroup.subtree_control").split())
        if given >= V2_CONTROLLERS:
            return
        if os.path.exists(f"{self.folder}/cgroup.type"):  # the top of the host is exempt
            with contextlib.suppress(FileExistsError):
                files.make(f"{self.folder}/{LEAF}")
            _move(self.folder, f"{self.folder}/{LEAF}")
        files.write(f"{self.folder}/cgroup.subtree_control", GIVE)

    def _take_back(self) -> None:
        """Leave our group as it was found, unless a colleague of ours divides it too."""
        if os.path.isdir(f"{self.folder}/{LEAF}"):
            if any(files.NAME.fullmatch(name) for name in files.children(self.folder)):
                return
            # EBUSY: someone divides the leaf, or controllers are in use below.
            with contextlib.suppress(OSError):
                files.write(f"{self.folder}/cgroup.subtree_control", TAKE)
                _move(f"{self.folder}/{LEAF}", self.folder)
                os.rmdir(f"{self.folder}/{LEAF}")

    def _remove(self, name: str) -> bool:
        parent = f"{self.folder}/{name}"
        groups = [f"{parent}/{group}" for group in files.children(parent)]
        # A process that has no pid here belongs to another pid namespace, and so may its supervisor.
        if any(0 in files.processes(f"{group}/cgroup.procs") for group in groups):
            return False
        with contextlib.suppress(FileNotFoundError):
            files.write(f"{parent}/cgroup.kill", "1")
        for path in [*groups, parent]:
            files.remove(path, partial(_wait_until_empty, path))
        self._take_back()
        return True


class Parent:
    """The group above all kernels of one supervisor."""

    def __init__(self, hierarchy: Hierarchy, name: str) -> None:
        self._hierarchy = hierarchy
        self.name = name
        self.folder = f"{hierarchy.folder}/{name}"

    def group(self, id: str, resources: Resources | None = None) -> Group:
        """Make the group of one kernel. Raises HostError; ValueError where `id` is no name."""
        group = Group(f"{self.folder}/{files.check_id(id)}", id)
        files.make(group.folder)
        try:
            # Whom the kernel picks dies alone: a child killed for memory is not the kernel killed for memory.
            files.write(f"{group.folder}/memory.oom.group", "0")
            if resources is not None:
                group.limit(resources)
        except BaseException:
            os.rmdir(group.folder)
            raise
        return group

    def limit(self, resources: Resources) -> None:
        """Limit all its kernels together."""
        Group(self.folder, self.name).limit(resources)

    def usage(self) -> Usage:
        """Of all its kernels together, and of whatever else is below it."""
        return Group(self.folder, self.name).usage()

    def close(self) -> None:
        """Kill what is left and remove everything."""
        self._hierarchy._remove(self.name)


class Group:
    """The group of one kernel."""

    def __init__(self, folder: str, id: str) -> None:
        self.folder = folder
        self.id = id
        self._peak = 0

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.folder,)

    def attach(self, pid: int) -> None:
        """Put a process in, with its threads and all children to come. Raises ProcessLookupError when it is gone."""
        files.enter(self.entrances(), pid)

    def entrances(self) -> list[int]:
        """Its cgroup.procs file, open for files.enter; the caller's to close. Whoever writes needs no right."""
        return [files.entrance(f"{self.folder}/cgroup.procs")]

    def usage(self) -> Usage:
        memory = files.number(f"{self.folder}/memory.current")
        try:
            self._peak = files.number(f"{self.folder}/memory.peak")  # linux 5.19
        except FileNotFoundError:
            self._peak = max(self._peak, memory)
        return Usage(
            memory=memory,
            memory_peak=self._peak,
            cpu_seconds=self.cpu_seconds(),
            processes=files.number(f"{self.folder}/pids.current"),
        )

    def cpu_seconds(self) -> float:
        """Of all its processes, the dead included."""
        return files.keys(f"{self.folder}/cpu.stat")["usage_usec"] / 1e6

    def events(self) -> Events:
        memory = files.keys(f"{self.folder}/memory.events")
        return Events(
            oom_kills=memory["oom_kill"],
            oom_failures=memory["oom"],
            processes_refused=files.keys(f"{self.folder}/pids.events")["max"],
        )

    def holds(self, pid: int) -> bool:
        """Whether a process of our pid namespace stands in it."""
        return files.stands_in(pid, ("",), f"/{os.path.basename(os.path.dirname(self.folder))}/{self.id}")

    def processes(self) -> list[int]:
        return files.processes(f"{self.folder}/cgroup.procs")

    def kill(self) -> None:
        """Send SIGKILL to everything inside. The kernel does it in one go: no fork escapes it."""
        with contextlib.suppress(FileNotFoundError):
            files.write(f"{self.folder}/cgroup.kill", "1")

    def update(self, resources: Resources) -> None:
        """Set other limits, at once. Raises RequestError where memory is in use beyond the new limit."""
        if resources.memory is not None:
            self._make_room(resources.memory)
        self.limit(resources)

    def weight(self, weight: int) -> None:
        """The share of the cpu when others want it too: 1 to 10000, 100 for an ordinary group."""
        files.write(f"{self.folder}/cpu.weight", str(weight))

    def limit(self, resources: Resources) -> None:
        files.write(f"{self.folder}/memory.max", files.unlimited(resources.memory))
        try:
            files.write(f"{self.folder}/memory.swap.max", "max" if resources.memory is None else "0")
        except FileNotFoundError as error:
            if files.swap_is_on() and resources.memory is not None:
                raise HostError(
                    "swap is on and this kernel does not count it, so memory cannot be limited",
                    remedy="boot with swapaccount=1, or swapoff -a",
                ) from error
        files.write(f"{self.folder}/pids.max", files.unlimited(resources.processes))
        quota = None if resources.cpu is None else max(SMALLEST_QUOTA, round(resources.cpu * files.PERIOD))
        files.write(f"{self.folder}/cpu.max", f"{files.unlimited(quota)} {files.PERIOD}")

    def _make_room(self, limit: int) -> None:
        """v2 would kill for a limit below the usage: give cache back first, and refuse if that is not enough."""
        used = files.number(f"{self.folder}/memory.current")
        if used > limit:
            with contextlib.suppress(OSError):  # EAGAIN: less came back than was asked for
                files.write(f"{self.folder}/memory.reclaim", str(used - limit))  # linux 5.19
            used = files.number(f"{self.folder}/memory.current")
        if used > limit:
            raise RequestError(
                f"{used} bytes of memory are in use, more than the new limit of {limit}",
                remedy="let go of some memory or restart the kernel first",
            )

    def remove(self, patience: float = files.PATIENCE) -> None:
        """Remove it when its last process is gone; waits for that, at most `patience` seconds. Raises OSError EBUSY."""
        files.remove(self.folder, partial(_wait_until_empty, self.folder), patience)


def _wait_until_empty(folder: str, seconds: float) -> None:
    """Return when cgroup.events says `populated 0`, or after `seconds`."""
    try:
        descriptor = os.open(f"{folder}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        waiting = select.poll()
        waiting.register(descriptor, select.POLLPRI)
        # Read first, then wait: a change after the reading wakes us.
        if b"populated 0" not in os.pread(descriptor, 4096, 0):
            waiting.poll(seconds * 1000)
        else:
            select.poll().poll(1)  # the last one is just leaving
    finally:
        os.close(descriptor)


def _move(source: str, target: str) -> None:
    """Move every process from one group to another, also those that are born meanwhile."""
    for _ in range(100):
        movable = [pid for pid in files.processes(f"{source}/cgroup.procs") if pid]
        if not movable:
            return
        for pid in movable:
            with contextlib.suppress(ProcessLookupError):
                files.write(f"{target}/cgroup.procs", str(pid))
    raise OSError(errno.EBUSY, f"processes in {source} fork faster than they can be moved")
