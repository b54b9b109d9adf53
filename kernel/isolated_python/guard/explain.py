"""Adds one sentence to an error that a layer of the sandbox is behind: the layer, how much, the profile's key."""

from __future__ import annotations

import errno
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

MiB = 1 << 20


class Reason(NamedTuple):
    """Why a layer refuses something. `{…}` in the sentence are values of the profile, by the keys in `keys`."""

    layer: str
    sentence: str
    keys: tuple[str, ...] = ()


class Failure(NamedTuple):
    """An error that a cell showed, and the reason for it."""

    error: str
    sentence: str
    layer: str
    at: float  # seconds since 1970


# Every refusal that a cell can meet in an error, by the name of the error where one is enough to tell. What the relay
# and the supervisor refuse, they tell themselves.
REASONS: dict[str, Reason] = {
    "module": Reason("guard", "the profile {name} does not grant this module", ("modules.grant",)),
    "hidden": Reason("mount", "the profile {name} hides what it does not grant", ("modules.grant", "modules.hidden")),
    "subprocess": Reason("seccomp", "the profile {name} grants no programs and no forks", ("capabilities.subprocess",)),
    "sockets": Reason("seccomp", "the profile {name} grants no sockets", ("capabilities.sockets",)),
    "native_code": Reason(
        "mount", "the profile {name} grants no machine code of one's own", ("capabilities.native_code",)
    ),
    "SIGSYS": Reason("seccomp", "a program made a system call of a foreign architecture, and was ended"),
    "SIGKILL": Reason("cgroup", "a program needed more than this kernel's {resources.memory}", ("resources.memory",)),
    "SIGXFSZ": Reason("rlimits", "a file of this kernel may have {resources.file_size}", ("resources.file_size",)),
    "threads": Reason(
        "cgroup", "this kernel may have {capabilities.threads} threads and processes", ("capabilities.threads",)
    ),
    "EAGAIN": Reason(
        "cgroup", "this kernel may have {resources.processes} processes and threads together", ("resources.processes",)
    ),
    "ENOMEM": Reason("cgroup", "this kernel may use {resources.memory} of memory", ("resources.memory",)),
    "EMFILE": Reason(
        "rlimits", "a process of this kernel may have {resources.open_files} files open", ("resources.open_files",)
    ),
    "EFBIG": Reason("rlimits", "a file of this kernel may have {resources.file_size}", ("resources.file_size",)),
    "ENOSPC": Reason(
        "mount",
        "/tmp and the home folder hold {resources.tmp} together, /dev/shm {resources.shm}",
        ("resources.tmp", "resources.shm"),
    ),
    "changes": Reason("mount", "what this kernel changes in its workspace may have {files.size}", ("files.size",)),
    "memory": Reason(
        "mount",
        "what this kernel changes in its workspace lies in memory, and may have {resources.tmp}",
        ("resources.tmp",),
    ),
    "ENETUNREACH": Reason("net", "this kernel has no network", ("network.reach",)),
    "ECONNREFUSED": Reason("net", "this kernel's loopback is its own, and no server of the machine listens there"),
    "family": Reason("seccomp", "sockets in here are streams and datagrams of UNIX, IPv4 and IPv6"),
    "workspace": Reason("mount", "the workspace is {files.workspace}", ("files.workspace",)),
    "outside": Reason(
        "mount", "of the machine's files only programs, libraries and the workspace are in here", ("files.mounts",)
    ),
    "links": Reason("landlock", "the profile {name} lets no kernel make links in its workspace", ("files.links",)),
    "watches": Reason("user", "this kernel may watch only so many files"),
    "terminals": Reason("mount", "this kernel may have only so many terminals"),
    "EROFS": Reason("mount", "this part of the file system is read-only in here"),
    "EACCES": Reason("landlock", "the sandbox lets no kernel change this"),
    "EPERM": Reason("seccomp", "the sandbox refuses this to every kernel"),
    "ENOSYS": Reason("seccomp", "this call of Linux is not among those that the sandbox knows"),
}

OWN = ("/mnt/workspace", "/workspace", "/tmp", "/home/user", "/dev/shm", "/var/tmp")  # where files are the kernel's own
SPAWNING = ("subprocess.py", "popen_fork.py", "popen_spawn_posix.py", "_process_posix.py", "pty.py", "ptyprocess.py")
SPAWNERS = ("fork(", "forkpty(", "posix_spawn", "execv", "execl", "system(", "popen(", "Popen(", "fork_exec")
LOADING = ("cannot open shared object", "failed to map segment", "cannot change memory protections")
MAPPING = ("mmap", "CFUNCTYPE")
FAMILIES = (errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)
ENDED = ("CalledProcessError", "TerminatedWorkerError")  # of subprocess, of joblib


class Seen:
    """What an error tells of the call that failed, and what this kernel is granted."""

    def __init__(self, error: BaseException, granted: dict[str, Any], lists: dict[str, list[str]]) -> None:
        self.error, self.lists, self.granted = error, lists, granted
        self.capabilities: dict[str, Any] = granted["capabilities"]
        self.name, self.words = type(error).__name__, str(error)
        self.number = error.errno if isinstance(error, OSError) else None
        path = getattr(error, "filename", None)
        self.path = os.path.abspath(path) if isinstance(path, str) else ""
        frames = traceback.extract_tb(error.__traceback__)
        self.files = {frame.filename.rpartition("/")[2] for frame in frames}
        self.line = (frames[-1].line or "") if frames else ""
        self.spawns = bool(self.files & {*SPAWNING}) or any(word in self.line for word in SPAWNERS)
        self.connects = "socket.py" in self.files or "socket(" in self.line
        refused = isinstance(error, (PermissionError, MemoryError))
        self.maps = refused and any(word in self.line for word in MAPPING)

    def within(self, places: tuple[str, ...]) -> bool:
        return any((self.path + "/").startswith(place + "/") for place in places)


def _of_modules(seen: Seen) -> str:
    if seen.name == "ModuleNotGranted":
        return "module"
    missing = isinstance(seen.error, ModuleNotFoundError) and (seen.error.name or "").partition(".")[0]
    return "hidden" if missing and missing in seen.lists["refused"] else ""


def _of_programs(seen: Seen) -> str:
    """How a program of the kernel's ended; a shell tells the signal of its own child as 128 and the number."""
    if seen.name not in ENDED:
        return ""
    code = getattr(seen.error, "returncode", 0)
    ended = {-code, code - 128}
    return next(
        (one for one in ("SIGSYS", "SIGKILL", "SIGXFSZ") if signal.Signals[one] in ended or one in seen.words), ""
    )


def _of_tasks(seen: Seen) -> str:
    thread = isinstance(seen.error, RuntimeError) and "start new thread" in seen.words
    if thread or (seen.number == errno.EAGAIN and seen.spawns):
        return "EAGAIN" if seen.capabilities["threads"] is None else "threads"
    return ""


def _of_capabilities(seen: Seen) -> str:
    refused = seen.number in (errno.EPERM, errno.EACCES)
    if refused and seen.spawns and not seen.capabilities["subprocess"]:
        return "subprocess"
    if (seen.name == "gaierror" or (refused and seen.connects)) and not seen.capabilities["sockets"]:
        return "sockets"
    loads = seen.maps or any(words in seen.words for words in LOADING)
    runs = refused and (seen.spawns or "memfd_create" in seen.line)
    return "native_code" if (loads or runs) and not seen.capabilities["native_code"] else ""


def _of_network(seen: Seen) -> str:
    if seen.name == "gaierror":
        return "ENETUNREACH"
    return "family" if seen.number in FAMILIES and seen.connects else ""


def _of_places(seen: Seen) -> str:
    """Files that are not there, or not to be changed; but what is not there in a folder of one's own is no refusal."""
    workspace = seen.granted["files"]["workspace"]
    ours = not seen.path or seen.within(OWN[:2])
    if seen.number == errno.EROFS:
        return "workspace" if ours and workspace == "read-only" else "EROFS"
    if seen.number != errno.ENOENT or not seen.path or seen.spawns:
        return ""
    if ours:
        return "workspace" if workspace == "none" else ""
    above = os.path.dirname(seen.path)
    while not os.path.exists(above):
        above = os.path.dirname(above)
    return "outside" if os.stat(above).st_dev == os.stat("/").st_dev else ""  # the root of the view holds nothing else


def _of_links(seen: Seen) -> str:
    """Of a call that has two paths, as that which makes a link."""
    makes = isinstance(getattr(seen.error, "filename2", None), str)
    return "links" if seen.number == errno.EACCES and makes and not seen.granted["files"]["links"] else ""


def _of_counts(seen: Seen) -> str:
    """What Linux counts for each user, and calls a lack of space or of files."""
    if seen.number not in (errno.ENOSPC, errno.EMFILE):
        return ""
    if any("inotify" in word for word in (seen.line, seen.words, *seen.files)):
        return "watches"
    terminal = "pty" in seen.line or "pty.py" in seen.files or "pty devices" in seen.words
    return "terminals" if terminal and seen.number == errno.ENOSPC else ""


def _of_space(seen: Seen) -> str:
    """A file that is written to has no name in the error: then it is the place that is full."""
    files, size = seen.granted["files"], seen.granted["files"]["size"]
    if seen.number != errno.ENOSPC or files["workspace"] != "copy-on-write":
        return ""
    if not (seen.within(OWN[:2]) if seen.path else full(OWN[0])):
        return ""
    return "changes" if size and (seen.granted.get("image") or size <= seen.granted["resources"]["tmp"]) else "memory"


def full(place: str) -> bool:
    """Whether as good as nothing of it is free: of bytes, or of files. What is left was too little for a last write."""
    found = os.statvfs(place)
    left = found.f_bavail * found.f_frsize
    return left < 2 * MiB or found.f_bavail * 100 < found.f_blocks or not found.f_favail


def _of_numbers(seen: Seen) -> str:
    if isinstance(seen.error, MemoryError):
        return "ENOMEM"
    if seen.number in (None, errno.EAGAIN) or (seen.number == errno.EACCES and seen.within(OWN)):
        return ""  # permissions of one's own files are one's own
    name = errno.errorcode.get(seen.number or 0, "")
    return name if name in REASONS else ""


LOOKS = (
    _of_modules,
    _of_programs,
    _of_tasks,
    _of_capabilities,
    _of_network,
    _of_places,
    _of_links,
    _of_counts,
    _of_space,
    _of_numbers,
)


def kind(error: BaseException, granted: dict[str, Any], lists: dict[str, list[str]]) -> str:
    """Which of REASONS is behind an error, or behind what it came of; empty where none is. No layer that is off is."""
    came_of: Any = error
    for _ in range(8):
        if not isinstance(came_of, BaseException):
            break
        seen = Seen(came_of, granted, lists)
        found = next(filter(None, (look(seen) for look in LOOKS)), "")
        if found and granted["layers"].get(REASONS[found].layer) != "off":
            return found
        # urllib keeps the reason; requests raises anew while it handles one; others say `from`.
        reason = getattr(came_of, "reason", None)
        came_of = (
            reason
            if isinstance(reason, BaseException)
            else came_of.__cause__ or (came_of.__context__ if isinstance(error, OSError) else None)
        )
    return ""


def told(name: str, granted: dict[str, Any]) -> str:
    """The sentence of a reason, with the values of this profile and the keys that say so."""
    reason = REASONS[name]
    sentence = reason.sentence.replace("{name}", granted["name"])
    for table in ("resources", "capabilities", "files"):
        for key, value in granted[table].items():
            sentence = sentence.replace(f"{{{table}.{key}}}", amount(key, value))
    return f"{sentence} ({', '.join(reason.keys)})" if reason.keys else sentence


def amount(key: str, value: Any) -> str:
    """A value of a profile as people write it."""
    if value is None:
        return "everything" if key == "display" else "unlimited"
    if key in ("memory", "file_size", "tmp", "shm", "size", "output", "message", "output_rate"):
        return f"{value / MiB:g} MiB"
    if key in ("cpu_time", "wall_clock", "idle"):
        return f"{value:g} s"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def install(shell: Any, granted: dict[str, Any], lists: dict[str, list[str]]) -> list[Failure]:
    """Put the sentence below the traceback that a cell shows. Returns the list that failures are kept in."""
    failures: list[Failure] = []
    show: Callable[..., None] = shell._showtraceback

    def showtraceback(etype: type[BaseException], error: BaseException, lines: list[str]) -> None:
        try:
            name = kind(error, granted, lists)
            words = str(error) if name == "module" else told(name, granted) if name else ""
            failures.append(
                Failure(f"{etype.__name__}: {error}", words, REASONS[name].layer if name else "", time.time())
            )
            del failures[:-100]
            if words and name != "module":
                lines = [*lines, f"\x1b[33mIsolated Python: {words}\x1b[0m"]
        except Exception:  # an explanation must never stand in the way of what it explains
            pass
        show(etype, error, lines)

    shell._showtraceback = showtraceback
    return failures
