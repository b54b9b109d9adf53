"""Records as JSON lines: appended, never rewritten, with our own clock; the oldest make room for the newest."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from typing import Any

VERSION = 1
LONGEST = 400  # characters of one value
MOST = 64  # values in one list or table
LARGEST = 4 << 20  # bytes of a file, above which the next record begins another
FILES = 8  # in all: what is older is removed

Record = dict[str, Any]


class Log:
    """The file that all supervisors of a user append to. Records of other processes are never lost to a rotation.

    A record is one write(2) to a file that is open for appending, so records never interleave. Whoever finds the file
    full renames it, under a lock; the others notice by its inode.
    """

    def __init__(
        self, path: str, *, uid: int | None = None, largest: int = LARGEST, files: int = FILES,
        mirror: Callable[[Record], None] | None = None,
    ) -> None:  # fmt: skip
        """`uid`: whose server is served, where that is not who we are. `mirror` is told of every record as well."""
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self._path, self._largest, self._files, self._mirror = path, largest, files, mirror
        self._uid = os.getuid() if uid is None else uid
        self._lost = 0
        self._torn = False  # the last line of the file was written in part
        self._file = self._open()

    def write(self, event: str, **values: Any) -> None:
        """One record: `event`, when (RFC 3339, UTC), who says so, and what else is known."""
        if self._lost and self._say("records-lost", {"count": self._lost}):
            self._lost = 0
        if not self._say(event, values):
            self._lost += 1

    def _say(self, event: str, values: dict[str, Any]) -> bool:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        record = {"version": VERSION, "time": stamp, "event": event, "supervisor": os.getpid(), "uid": self._uid}
        record |= {name: bounded(value) for name, value in values.items()}
        if self._mirror is not None:
            self._mirror(record)
        try:
            self._append(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        except OSError:  # a full disk must not end every kernel of a server
            return False
        return True

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        while True:
            self._make_room(len(line))
            data = b"\n" + line if self._torn else line
            written = os.write(self._file, data)
            self._torn = written < len(data)
            if self._torn:
                raise OSError("a part of a record was written")
            if os.fstat(self._file).st_nlink:
                return
            # While we were stopped the file has become the oldest, and was removed: say it again.

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def _make_room(self, more: int) -> None:
        """Have the file open that is the current one, and not full."""
        if not self._is_current():
            self._open_again()
        if os.fstat(self._file).st_size + more <= self._largest:
            return
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if _locked(lock) and self._is_current():
                for number in range(self._files - 1, 0, -1):
                    _rename(numbered(self._path, number - 1), numbered(self._path, number))
        finally:
            os.close(lock)
        self._open_again()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path, follow_symlinks=False), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _open_again(self) -> None:
        opened = self._open()
        os.close(self._file)
        self._file, self._torn = opened, False


def numbered(path: str, number: int) -> str:
    """audit.jsonl, audit.1.jsonl, audit.2.jsonl, …: the older the higher."""
    stem, extension = os.path.splitext(path)
    return f"{stem}.{number}{extension}" if number else path


def bounded(value: Any, depth: int = 4) -> Any:
    """The same, its texts cut to LONGEST, its lists and tables to MOST: a record has a bound, whoever caused it."""
    if isinstance(value, str):
        return value[:LONGEST]
    if depth and isinstance(value, dict):
        return {str(key)[:LONGEST]: bounded(one, depth - 1) for key, one in [*value.items()][:MOST]}
    if depth and isinstance(value, (list, tuple)):
        return [bounded(one, depth - 1) for one in value[:MOST]]
    return value if isinstance(value, (int, float, type(None))) else str(value)[:LONGEST]


def _locked(lock: int) -> bool:
    """False where somebody else is at it: until they are done a file may become a little too large."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _rename(old: str, new: str) -> None:
    try:
        os.rename(old, new)
    except FileNotFoundError:
        pass
