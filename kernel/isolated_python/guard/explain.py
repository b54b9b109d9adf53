"""Adds one sentence to an error that a layer of the sandbox is behind: the layer, how much, the profile's key."""

from __future__ import annotations

import errno
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MiB = 1 << 20


@dataclass(frozen=True)
class Reason:
    """Why a layer refuses something. `{…}` in the sentence are values of the profile, by the keys in `keys`."""

    layer: str
    sentence: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """An error that a cell showed, and the reason for it."""

    error: str
    sentence: str
    layer: str
    at: float = field(default_factory=time.time)


# Every refusal that can be met from a cell.
REASONS: dict[str, Reason] = {
    "ENOSPC": Reason(
        "mount",
        "/tmp and the home folder hold {resources.tmp} together, /dev/shm {resources.shm}",
        ("resources.tmp", "resources.shm"),
    ),
    "EAGAIN": Reason(
        "cgroup", "this kernel may have {resources.processes} processes and threads together", ("resources.processes",)
    ),
    "threads": Reason(
        "cgroup", "this kernel may have {capabilities.threads} threads and processes", ("capabilities.threads",)
    ),
    "ENOMEM": Reason("cgroup", "this kernel may use {resources.memory} of memory", ("resources.memory",)),
    "EMFILE": Reason(
        "rlimits", "a process of this kernel may have {resources.open_files} files open", ("resources.open_files",)
    ),
    "EFBIG": Reason("rlimits", "a file of this kernel may have {resources.file_size}", ("resources.file_size",)),
    "ENETUNREACH": Reason("net", "this kernel has no network", ("network.reach",)),
    "EROFS": Reason("mount", "this part of the file system is read-only in here"),
    "workspace": Reason("mount", "the workspace is {files.workspace}", ("files.workspace",)),
    "EPERM": Reason("seccomp", "the sandbox refuses this to every kernel"),
    "EACCES": Reason("landlock", "the sandbox lets nobody write or run this here"),
    "subprocess": Reason("seccomp", "the profile {name} grants no programs and no forks", ("capabilities.subprocess",)),
    "sockets": Reason("seccomp", "the profile {name} grants no sockets", ("capabilities.sockets",)),
    "native_code": Reason(
        "mount", "the profile {name} grants no machine code of one's own", ("capabilities.native_code",)
    ),
    "SIGSYS": Reason("seccomp", "a program made a system call of a foreign architecture, and was ended"),
    "SIGKILL": Reason("cgroup", "a program needed more than this kernel's {resources.memory}", ("resources.memory",)),
    "SIGXFSZ": Reason("rlimits", "a file of this kernel may have {resources.file_size}", ("resources.file_size",)),
    "module": Reason("guard", "the profile {name} does not grant this module", ("modules.grant",)),
    "hidden": Reason("mount", "the profile {name} hides what it does not grant", ("modules.grant", "modules.hidden")),
}  # fmt: skip

SPAWNING = ("subprocess.py", "popen_fork.py", "popen_spawn_posix.py", "_process_posix.py", "pty.py", "ptyprocess.py")
SPAWNERS = ("fork(", "forkpty(", "posix_spawn", "execv", "execl", "system(", "popen(", "Popen(", "fork_exec")
LOADING = ("cannot open shared object", "failed to map segment", "cannot change memory protections")


def kind(error: BaseException, granted: dict[str, Any], lists: dict[str, list[str]] | None = None) -> str:
    """Which of REASONS is behind an error; empty where none is."""
    found = ""
    capabilities = granted["capabilities"]
    words, number = str(error), error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "ModuleNotGranted":
        found = "module"
    elif isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in (lists or {}).get(
        "refused", ()
    ):
        found = "hidden"
    elif not capabilities["native_code"] and (any(one in words for one in LOADING) or _is_mapping(error)):
        found = "native_code"
    elif isinstance(error, MemoryError):
        found = "ENOMEM"
    elif isinstance(error, RuntimeError) and "start new thread" in words:
        found = _tasks(granted)
    elif type(error).__name__ == "gaierror":
        found = "ENETUNREACH" if capabilities["sockets"] else "sockets"
    elif type(error).__name__ == "CalledProcessError":
        codes = {number.value: number.name for number in (signal.SIGSYS, signal.SIGKILL, signal.SIGXFSZ)}
        code = getattr(error, "returncode", 0)
        found = codes.get(-code if code < 0 else code - 128, "")
    elif number == errno.EAGAIN:
        found = _tasks(granted) if "fork" in words or "Resource temporarily unavailable" in words else ""
    elif isinstance(error, OSError) and number in (errno.EPERM, errno.EACCES):
        found = _refused(error, granted)
    elif number == errno.EROFS:
        inside = str(getattr(error, "filename", "") or "")
        own = not inside.startswith("/") or inside.startswith(("/workspace", "/mnt/workspace"))
        found = "workspace" if own and granted["files"]["workspace"] == "read-only" else "EROFS"
    elif number is not None:
        found = errno.errorcode.get(number, "")
    return found if found in REASONS else ""


def _tasks(granted: dict[str, Any]) -> str:
    return "EAGAIN" if granted["capabilities"]["threads"] is None else "threads"


def _refused(error: OSError, granted: dict[str, Any]) -> str:
    """EPERM and EACCES have many fathers: the frames tell what was asked for."""
    capabilities = granted["capabilities"]
    frames = traceback.extract_tb(error.__traceback__)
    names = {frame.filename.rpartition("/")[2] for frame in frames}
    last = frames[-1].line or "" if frames else ""
    spawning = bool(names & {*SPAWNING}) or any(word in last for word in SPAWNERS)
    if spawning and not capabilities["subprocess"]:
        return "subprocess"
    if not capabilities["sockets"] and ("socket.py" in names or "socket(" in last):
        return "sockets"
    if not capabilities["native_code"] and (spawning or "memfd_create" in last or _is_mapping(error)):
        return "native_code"
    return errno.errorcode[error.errno or errno.EPERM]


def _is_mapping(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, (PermissionError, MemoryError))
        and bool(frames)
        and any(one in (frames[-1].line or "") for one in ("mmap", "CFUNCTYPE"))
    )


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
    if key in ("memory", "file_size", "tmp", "shm", "output", "message", "output_rate"):
        return f"{value / MiB:g} MiB"
    if key in ("cpu_time", "wall_clock"):
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
            failures.append(Failure(f"{etype.__name__}: {error}", words, REASONS[name].layer if name else ""))
            del failures[:-100]
            if words and name != "module":
                lines = [*lines, f"\x1b[33mIsolated Python: {words}\x1b[0m"]
        except Exception:  # an explanation must never stand in the way of what it explains
            pass
        show(etype, error, lines)

    shell._showtraceback = showtraceback
    return failures
