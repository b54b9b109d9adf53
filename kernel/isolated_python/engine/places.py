"""Where things lie: runtime folder, cache, audit log. Each is ours and private, or is refused."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from isolated_python.errors import HostError
from isolated_python.policy import SOCKET

if TYPE_CHECKING:
    from pathlib import Path

IDENTITIES = "/run/isolated-python"  # also where the service's socket is, and the folders of its supervisors
LONGEST_SOCKET = 107  # bytes: sockaddr_un
ROOM = len("/clients/12345678-1")


def _environment(name: str) -> str:
    return os.environ.get(name, "")  # noqa: TID251 - the one reader


def bases() -> list[str]:
    """Where the folders of supervisors may lie, best first."""
    asked = (_environment("ISOLATED_PYTHON_RUNTIME_DIR"), _environment("XDG_RUNTIME_DIR"))
    found = [base for base in asked if os.path.isabs(base) and _usable(base)]
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        found += ["/run", *([IDENTITIES] if _usable(IDENTITIES) else [])]
    return [*found, "/tmp"]


def private_folder() -> str:
    """A new folder for sockets, 0700 and ours, with a path short enough for them."""
    asked = _environment("ISOLATED_PYTHON_RUNTIME_DIR")
    if asked and not (os.path.isabs(asked) and _usable(asked)):
        raise HostError(
            f"the runtime folder {asked!r} is not a folder that is ours and closed to others",
            remedy="chmod 700 it, or unset ISOLATED_PYTHON_RUNTIME_DIR",
        )
    base = bases()[0]
    path = f"{base}/isolated-{os.getpid()}-{os.urandom(3).hex()}"
    if len(os.fsencode(path)) + ROOM > LONGEST_SOCKET:
        raise HostError(
            f"the runtime folder {base} is too long for the path of a socket",
            remedy="set ISOLATED_PYTHON_RUNTIME_DIR to a shorter one",
        )
    sweep(base)
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        raise HostError(f"the runtime folder {base} cannot be used: {error.strerror}") from error
    return path


def _usable(base: str) -> bool:
    try:
        status = os.stat(base)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def sweep(base: str) -> None:
    """Remove the folders of servers that are no more, when they were killed together with their supervisor."""
    import shutil

    for name in os.listdir(base):
        owner = name.split("-")[1] if name.startswith("isolated-") and name.count("-") == 2 else ""
        path = f"{base}/{name}"
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}") and not os.path.islink(path):
            if os.stat(path).st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)


def _state(variable: str, ordinary: str, root: str) -> str:
    if os.geteuid() == 0:
        return root
    base = _environment(variable)
    return f"{base if os.path.isabs(base) else os.path.expanduser(ordinary)}/isolated-python"


def cache_folder() -> str:
    path = _state("XDG_CACHE_HOME", "~/.cache", "/var/cache/isolated-python")
    os.makedirs(path, mode=0o700, exist_ok=True)
    return path


def changes_folder() -> str:
    return _state("XDG_STATE_HOME", "~/.local/state", "/var/lib/isolated-python") + "/changes"


def images_folder() -> str:
    """Where the images lie whose files have no name: root's, on a disk."""
    return "/var/lib/isolated-python/images"


def audit_file() -> str:
    """Where all supervisors of a user write what happened."""
    asked = _environment("ISOLATED_PYTHON_AUDIT_DIR")
    if not asked:
        return _state("XDG_STATE_HOME", "~/.local/state", "/var/log/isolated-python") + "/audit.jsonl"
    if not os.path.isabs(asked) or (os.path.lexists(asked) and not _usable(asked)):
        raise HostError(
            f"the audit's folder {asked!r} is not a folder that is ours and that nobody else writes to",
            remedy="chmod 700 it, or unset ISOLATED_PYTHON_AUDIT_DIR",
        )
    return f"{asked}/audit.jsonl"


def service(asked: str) -> str:
    """The socket of the privileged service for a server that wants `asked`; empty where it has a supervisor of its own.

    "auto": the service, where there is one and we are not root, who needs none; "off": none; else a path.
    """
    asked = _environment("ISOLATED_PYTHON_SERVICE") or asked if asked == "auto" else asked
    if asked == "off":
        return ""
    if asked != "auto":
        return asked
    return SOCKET if os.geteuid() != 0 and os.path.exists(SOCKET) else ""


def activated() -> bool:
    """Whether systemd has given us, and nobody else, a socket as descriptor 3. sd_listen_fds(3)"""
    return _environment("LISTEN_PID") == str(os.getpid()) and _environment("LISTEN_FDS") == "1"


def roots_own(path: Path) -> None:
    """Nobody but root can change what is at `path`, nor what it is reached by. Raises HostError."""
    real = path.resolve()
    for place in (real, *real.parents, *(real.glob("*.toml")), real / "profiles", *(real.glob("profiles/*.toml"))):
        if place.exists():
            status = place.stat()
            if status.st_uid != 0 or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
                raise HostError(
                    f"{place} can be changed by others than root, and the service would obey it",
                    remedy=f"chown root {place} && chmod go-w {place}",
                )
