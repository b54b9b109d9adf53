"""Where things lie: runtime folder, cache, audit log. Each is ours and private, or is refused."""

from __future__ import annotations

import os
import secrets
import stat

from isolated_python.errors import HostError

IDENTITIES = "/run/isolated-python"
LONGEST_SOCKET = 107  # bytes: sockaddr_un
ROOM = len("/clients/12345678-1")


def _environment(name: str) -> str:
    return os.environ.get(name, "")  # noqa: TID251 - the one reader


def bases() -> list[str]:
    """Where the folders of supervisors may lie, best first."""
    asked = (_environment("ISOLATED_PYTHON_RUNTIME_DIR"), _environment("XDG_RUNTIME_DIR"))
    found = [base for base in asked if os.path.isabs(base) and _usable(base)]
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        found.append("/run")
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
    path = f"{base}/isolated-{os.getpid()}-{secrets.token_hex(3)}"
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
