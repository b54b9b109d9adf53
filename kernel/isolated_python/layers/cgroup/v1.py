"""
Cgroup v1, and the v1 half of a hybrid host: one folder per controller, for root only.

Source: Documentation/admin-guide/cgroup-v1/, kernel/cgroup/legacy_freezer.c.
"""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial

from isolated_python.errors import HostError, RequestError
from isolated_python.linux.cgroups import V1_CONTROLLERS
from isolated_python.policy.profile import Resources

from . import files
from .files import Events, Usage

FIRST = "memory"  # attached first: while it waits for its grace period, nothing can be used up yet
SHARES = 1024  # cpu.shares of an ordinary group, which is weight 100
FROZEN, THAWED = "FROZEN", "THAWED"


class Hierarchy:
    """Our own group in each controller."""

    version = "v1"

    def __init__(self, folders: tuple[tuple[str, str], ...]) -> None:
        self.folders = dict(folders)

    def open(self, name: str = "") -> Parent:
        """Make the parent group of one supervisor, by default this process. Raises HostError where the host refuses."""
        name = name or files.name_for(os.getpid())
        try:
            for folder in self._distinct():
                files.make(f"{folder}/{name}")
            return Parent(self.folders, name)
        except (OSError, HostError):
            self._remove(name)
            raise

    def sweep(self) -> list[str]:
        """Remove what supervisors that are gone have left, their kernels included; the names of it."""
        return files.swept(self.dead(), self._remove)

    def dead(self) -> list[str]:
        """The names of what supervisors that are gone have left."""
        names = {name for folder in self._distinct() for name in files.children(folder) if files.is_dead(name)}
        return sorted(names)

    def _remove(self, name: str) -> bool:
        parents = [f"{folder}/{name}" for folder in self._distinct()]
        groups = {group for parent in parents for group in files.children(parent)}
        held = [f"{parent}/{group}/cgroup.procs" for parent in parents for group in groups]
        # A process that has no pid here belongs to another pid namespace, and so may its supervisor.
        if any(0 in files.processes(procs) for procs in held):
            return False
        for group in groups:
            _kill(f"{self.folders['freezer']}/{name}/{group}")
        for procs in held:  # who was killed while attaching is in some of them only
            files.kill(procs)
        for parent in parents:
            for group in groups:
                files.remove(f"{parent}/{group}", partial(files.wait_for_deaths, f"{parent}/{group}/cgroup.procs"))
            files.remove(parent, partial(files.wait_for_deaths, f"{parent}/cgroup.procs"))
        return True

    def _distinct(self) -> list[str]:
        """Controllers that are mounted together share a folder."""
        return list(dict.fromkeys(self.folders.values()))


class Parent:
    """The group above all kernels of one supervisor."""

    def __init__(self, folders: dict[str, str], name: str) -> None:
        self.folders = {controller: f"{folder}/{name}" for controller, folder in folders.items()}
        self._hierarchy = folders
        self.name = name
        paths = dict.fromkeys([self.folders[FIRST], *self.folders.values()])
        self._open = {path: os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in paths}

    def group(self, id: str, resources: Resources | None = None) -> Group:
        """Make the group of one kernel. Raises HostError; ValueError where `id` is no name."""
        made: list[str] = []
        try:
            for folder in dict.fromkeys(self.folders.values()):
                files.make(f"{folder}/{files.check_id(id)}")
                made.append(f"{folder}/{id}")
            group = Group(self, id)
            if resources is not None:
                group.limit(resources)
        except BaseException:
            for path in made:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            raise
        return group

    def limit(self, resources: Resources) -> None:
        """Limit all its kernels together. Raises HostError where this host counts each by itself."""
        flat = f"{self.folders['memory']}/memory.use_hierarchy"  # gone, and always true, since linux 5.11
        if os.path.exists(flat) and not files.number(flat):
            raise HostError(
                "this host does not count the memory of a cgroup's children",
                remedy="use linux 5.11 or newer, or cgroup v2",
            )
        Group(self, ".").limit(resources)

    def usage(self) -> Usage:
        """Of all its kernels together, and of whatever else is below it."""
        return Group(self, ".").usage()

    def entrances(self, id: str) -> list[int]:
        return [files.entrance(f"{id}/cgroup.procs", folder=descriptor) for descriptor in self._open.values()]

    def close(self) -> None:
        """Kill what is left and remove everything."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open = {}
        Hierarchy(tuple(self._hierarchy.items()))._remove(self.name)


class Group:
    """The group of one kernel."""

    def __init__(self, parent: Parent, id: str) -> None:
        self._parent = parent
        self.id = id
        self._folders = {controller: f"{folder}/{id}" for controller, folder in parent.folders.items()}
        self._procs = f"{self._folders['freezer']}/cgroup.procs"
        # The limit that is met first, with swap or without, is the one that counts.
        both = [f"{self._folders['memory']}/memory{kind}.failcnt" for kind in ("", ".memsw")]
        self._counters = [path for path in both if os.path.exists(path)]

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._folders.values()))

    def attach(self, pid: int) -> None:
        """Put a process in, with its threads and all children to come. The first one waits 10 ms for the kernel.

        Raises ProcessLookupError when it is gone.
        """
        files.enter(self.entrances(), pid)

    def entrances(self) -> list[int]:
        """Its cgroup.procs files, open for files.enter; the caller's to close. Whoever writes needs no right."""
        return self._parent.entrances(self.id)

    def usage(self) -> Usage:
        memory, pids = self._folders["memory"], self._folders["pids"]
        return Usage(
            memory=files.number(f"{memory}/memory.usage_in_bytes"),
            memory_peak=files.number(f"{memory}/memory.max_usage_in_bytes"),
            cpu_seconds=self.cpu_seconds(),
            processes=files.number(f"{pids}/pids.current"),
        )

    def cpu_seconds(self) -> float:
        """Of all its processes, the dead included."""
        return files.number(f"{self._folders['cpuacct']}/cpuacct.usage") / 1e9

    def events(self) -> Events:
        memory, pids = self._folders["memory"], self._folders["pids"]
        kills = files.keys(f"{memory}/memory.oom_control").get("oom_kill", 0)  # linux 4.13
        return Events(
            oom_kills=kills,
            # Some kernels no longer count failures, but a killing is always one.
            oom_failures=max(kills, *(files.number(path) for path in self._counters)),
            processes_refused=files.keys(f"{pids}/pids.events").get("max", 0),
        )

    def holds(self, pid: int) -> bool:
        """Whether a process of our pid namespace stands in it."""
        return files.stands_in(pid, V1_CONTROLLERS, f"/{self._parent.name}/{self.id}")

    def processes(self) -> list[int]:
        return files.processes(self._procs)

    def kill(self) -> None:
        """Send SIGKILL to everything inside. Frozen meanwhile, so that nothing can fork itself out of the list."""
        _kill(self._folders["freezer"])

    def update(self, resources: Resources) -> None:
        """Set other limits, at once. Raises RequestError where memory is in use beyond the new limit."""
        self.limit(resources)

    def weight(self, weight: int) -> None:
        """The share of the cpu when others want it too: 1 to 10000, 100 for an ordinary group."""
        files.write(f"{self._folders['cpu']}/cpu.shares", str(max(2, weight * SHARES // 100)))

    def limit(self, resources: Resources) -> None:
        self._limit_memory(resources.memory)
        self._limit_sockets(resources.memory)
        files.write(f"{self._folders['pids']}/pids.max", files.unlimited(resources.processes))
        self._limit_cpu(resources.cpu)

    def _limit_memory(self, limit: int | None) -> None:
        memory = self._folders["memory"]
        # Memory and memory with swap get the same limit: no swap. The second may never be below the first,
        # so what grows begins with the second.
        both = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if not os.path.exists(f"{memory}/{both[1]}"):  # swap is not accounted here: ask for none
            files.write(f"{memory}/memory.swappiness", "0")
            both = both[:1]
        elif limit is None or limit > files.number(f"{memory}/{both[0]}"):
            both.reverse()
        try:
            for name in both:
                files.write(f"{memory}/{name}", files.unlimited(limit, "-1"))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            used = files.number(f"{memory}/memory.usage_in_bytes")
            raise RequestError(
                f"{used} bytes of memory are in use, more than the new limit of {limit}",
                remedy="let go of some memory or restart the kernel first",
            ) from error

    def _limit_sockets(self, memory: int | None) -> None:
        """What network sockets hold is counted to the machine here, until this second limit is set."""
        path = f"{self._folders['memory']}/memory.kmem.tcp.limit_in_bytes"
        if os.path.exists(path):
            files.write(path, files.unlimited(None if memory is None else memory // 8, "-1"))

    def _limit_cpu(self, cores: float | None) -> None:
        cpu = self._folders["cpu"]
        if not os.path.exists(f"{cpu}/cpu.cfs_quota_us"):
            if cores is None:
                return
            raise HostError(
                "this kernel cannot limit the cpu (CONFIG_CFS_BANDWIDTH)", remedy="leave cpu out of the profile"
            )
        files.write(f"{cpu}/cpu.cfs_period_us", str(files.PERIOD))
        files.write(f"{cpu}/cpu.cfs_quota_us", "-1" if cores is None else str(round(cores * files.PERIOD)))

    def remove(self, patience: float = files.PATIENCE) -> None:
        """Remove it when its last process is gone; waits for that, at most `patience` seconds. Raises OSError EBUSY."""
        for path in self.paths:
            files.remove(path, partial(files.wait_for_deaths, f"{path}/cgroup.procs"), patience)


def _kill(freezer: str) -> None:
    """SIGKILL to everything in a group. Gone already is dead."""
    try:
        files.write(f"{freezer}/freezer.state", FROZEN)
        try:
            files.kill(f"{freezer}/cgroup.procs")
        finally:
            # In v1 the frozen die only when they are thawed.
            files.write(f"{freezer}/freezer.state", THAWED)
    except FileNotFoundError:
        return
    # Freezing is a request: what forked before it was heard is in the list by now.
    files.kill(f"{freezer}/cgroup.procs")
