"""
What a kernel is granted, as frozen values in the units of the code: bytes, seconds, cores.

Source of the defaults: the shipped profile `standard`.
"""

from __future__ import annotations

from typing import Any, Literal

from isolated_python.record import Record, asdict, fields, replace

KERNEL_TASKS = 16  # threads that ipykernel has of its own, and process 1, with some to spare

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

Strictness = Literal["require", "prefer", "off"]
Workspace = Literal["read-write", "read-only", "copy-on-write", "none"]
Changes = Literal["discard", "keep"]


class Mount(Record):
    """A further part of the host's files, shown inside at `target`."""

    source: str  # absolute host path
    target: str  # absolute path inside
    writable: bool = False


class Files(Record):
    workspace: Workspace = "read-write"
    changes: Changes = "discard"  # of a copy-on-write workspace, at the kernel's end
    folder: str = ""  # the workspace, where it is not the notebook's folder; {user} stands for who started the kernel
    links: bool = True  # make symbolic links where it may write: a server's file browser follows them
    mounts: tuple[Mount, ...] = ()
    # Bytes: of a read-write workspace, looked at now and then and told, since Linux limits no folder; of what changes
    # in a copy-on-write one, held by Linux.
    size: int | None = None
    image: Strictness = "prefer"  # such changes lie on the disk, in an image of that size; else in memory

    @property
    def bound(self) -> int | None:
        """How much may change in a copy-on-write workspace, where the profile says so."""
        return self.size if self.workspace == "copy-on-write" else None

    @property
    def kept(self) -> bool:
        """Whether what a kernel changed is there after its end, to be looked at."""
        return (self.workspace, self.changes) == ("copy-on-write", "keep")


class Modules(Record):
    """Which modules a cell may import: distributions, modules, globs and @sets. None: every one."""

    grant: tuple[str, ...] | None = None
    hidden: bool = True  # packages that are not granted are not there, for subprocesses either
    guard: bool = True  # a cell that imports what is not granted is told so


class Capabilities(Record):
    """What a kernel may ask of Linux beyond computing; the layers hold it."""

    subprocess: bool = True  # start programs, fork
    sockets: bool = True  # make sockets, on its own loopback, too
    native_code: bool = True  # run machine code that did not come with the environment
    threads: int | None = None  # threads and processes beyond those of the kernel program itself
    display: tuple[str, ...] | None = None  # mime types that reach the notebook, globs allowed. None: every one


class Cells(Record):
    """Limits of one cell, as the relay sees it."""

    wall_clock: float | None = None  # seconds; then an interrupt, then the end of the kernel
    output: int | None = None  # bytes
    messages: int | None = None


class Resources(Record):
    """Limits of one kernel and everything it starts. None: not limited."""

    memory: int | None = 2 * GiB  # bytes, swap excluded
    processes: int | None = 256  # tasks: processes and threads
    cpu: float | None = None  # cores
    cpu_time: float | None = None  # seconds of CPU, all processes together
    wall_clock: float | None = None  # seconds from start
    idle: float | None = None  # seconds in which no cell runs and no client says anything
    file_size: int | None = None  # bytes, one file
    open_files: int = 4096  # descriptors of one process
    tmp: int = 512 * MiB  # bytes of /tmp and the home folder together
    shm: int = 128 * MiB  # bytes of /dev/shm


class Network(Record):
    """Names of hosts that may be reached. Empty: no network but the sandbox's own loopback."""

    reach: tuple[str, ...] = ()


class Channels(Record):
    """What may cross the relay, and how much."""

    message: int = 1 * GiB  # bytes, largest message in either direction
    frames: int = 4096  # frames in one message
    connections: int = 64  # clients' connections to one kernel, all channels together
    handshake: float = 10.0  # seconds until a connection must have finished its greeting
    output_rate: int = 256 * MiB  # iopub bytes a second, before back-pressure
    output_messages: int = 20_000  # iopub messages a second, before back-pressure


class Layers(Record):
    """How much each layer is wanted. `user` and `mount` carry all others and cannot be off."""

    cgroup: Strictness = "require"
    user: Strictness = "require"
    mount: Strictness = "require"
    pid: Strictness = "require"
    net: Strictness = "require"
    ipc: Strictness = "require"
    uts: Strictness = "require"
    cgroup_namespace: Strictness = "require"
    time: Strictness = "prefer"
    overlay: Strictness = "prefer"
    rlimits: Strictness = "require"
    capabilities: Strictness = "require"
    landlock: Strictness = "require"
    seccomp: Strictness = "require"


class Profile(Record):
    name: str = "standard"
    description: str = ""
    preload: tuple[str, ...] = ()  # modules that the zygote imports ahead
    files: Files = Files()
    resources: Resources = Resources()
    network: Network = Network()
    modules: Modules = Modules()
    capabilities: Capabilities = Capabilities()
    cells: Cells = Cells()
    channels: Channels = Channels()
    layers: Layers = Layers()

    @property
    def limits(self) -> Resources:
        """The resources, less what `capabilities.threads` takes of the processes."""
        threads, most = self.capabilities.threads, self.resources.processes
        if threads is None:
            return self.resources
        tasks = KERNEL_TASKS + threads
        return replace(self.resources, processes=tasks if most is None else min(most, tasks))

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> Profile:
        """The inverse of to_wire, after a trip through JSON (tuples arrive as lists)."""
        files = dict(wire["files"])
        files["mounts"] = tuple(Mount(**mount) for mount in files["mounts"])
        modules, capabilities = dict(wire["modules"]), dict(wire["capabilities"])
        modules["grant"] = _tuple(modules["grant"])
        capabilities["display"] = _tuple(capabilities["display"])
        return Profile(
            name=wire["name"],
            description=wire["description"],
            preload=tuple(wire["preload"]),
            files=Files(**files),
            resources=Resources(**wire["resources"]),
            network=Network(reach=tuple(wire["network"]["reach"])),
            modules=Modules(**modules),
            capabilities=Capabilities(**capabilities),
            cells=Cells(**wire["cells"]),
            channels=Channels(**wire["channels"]),
            layers=Layers(**wire["layers"]),
        )


def _tuple(value: list[str] | tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


LAYERS: tuple[str, ...] = fields(Layers)
