"""
Compiled filters are kept in a private folder, and a start only reads them.

With each goes the whole text of what it was made from: a change of a table, or another libseccomp, makes it stale.
"""

from __future__ import annotations

import functools
import json
import os
import stat
import sys
from zlib import crc32

from ...errors import LaunchError
from ...linux.libc import MACHINE
from ..seccomp import Filter

HERE = os.path.dirname(__file__)
SOURCES = ("__init__.py", "kernel.py", "relay.py", "compiler.py")
LARGEST_FILE = 256 * 1024  # bytes of a kept filter
COMPILING = 60.0  # seconds


def cached(name: str, folder: str, interpreter: str = sys.executable) -> Filter:
    """The filter `name`: from `folder` when it was kept there, else compiled by `interpreter` and kept.

    The folder must exist, be ours, and be closed to everybody else; otherwise it is neither read nor written, because
    whoever can write there would choose what every sandbox may ask of Linux. Raises HostError, LaunchError.
    """
    place = _open_private(folder)
    try:
        made_of = _made_of()
        file = f"{name}-{crc32(made_of.encode()):08x}.json"  # so that two versions of us keep theirs side by side
        filter = _read(place, file, made_of) if place is not None else None
        if filter is None or filter.table != name:
            wire = json.loads(_compile_elsewhere(name, interpreter))
            filter = Filter.from_wire(wire)
            if place is not None:
                _write(place, file, json.dumps({"made_of": made_of, "filter": wire}))
        return filter
    finally:
        if place is not None:
            os.close(place)


@functools.cache
def _made_of() -> str:
    """The tables and their compiler, as they are written; the machine, and the libseccomp that lies here.

    The tables themselves are not imported, which would take as long as all the rest of a supervisor's layers.
    """
    parts = [MACHINE, str(sys.version_info[:2]), _library()]
    for source in SOURCES:
        with open(os.path.join(HERE, source), encoding="utf-8") as file:
            parts.append(file.read())
    return "\n".join(parts)


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

    command = [interpreter, "-I", "-m", f"{__package__}.compiler", name]
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


def _read(place: int, file: str, made_of: str) -> Filter | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _ours(status, closed_to=0o022) or status.st_size > LARGEST_FILE:
            return None
        kept = json.loads(os.read(descriptor, LARGEST_FILE))
        return Filter.from_wire(kept["filter"]) if kept["made_of"] == made_of else None
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
