"""The changes that kernels have left in copy-on-write workspaces, for the person whose kernels they were.

What is in an archive was written by a kernel: names, texts and links are shown, and nothing of it is followed.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Iterator

from isolated_python.engine import places
from isolated_python.engine.changes import GONE, OPAQUE
from isolated_python.errors import IsolatedPythonError, LaunchError
from isolated_python.record import Record

ARCHIVE, ABOUT = "changes.tar", "about.json"
LONGEST = 256 * 1024  # bytes of a file whose lines are compared
MOST_LINES = 5000


class Kept(Record):
    id: str
    folder: str  # of the archive
    workspace: str
    profile: str
    when: float  # seconds since 1970: the start of the kernel

    @property
    def archive(self) -> str:
        return f"{self.folder}/{ARCHIVE}"


def begin(kernel: str, profile: str, workspace: str) -> tuple[str, int]:
    """A place for the changes of a kernel that starts: its folder, and the open archive. Raises LaunchError."""
    base = places.changes_folder()
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        for name in os.listdir(base):
            end(f"{base}/{name}")  # what a server that was killed has left
        for number in range(1, 10_000):
            folder = f"{base}/{kernel}" + (f".{number}" if number > 1 else "")
            try:
                os.mkdir(folder, 0o700)
                break
            except FileExistsError:  # of its life before a restart
                continue
        with open(f"{folder}/{ABOUT}", "w", encoding="utf-8") as file:
            json.dump({"workspace": workspace, "profile": profile, "when": time.time()}, file)
        archive = os.open(f"{folder}/{ARCHIVE}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(archive, fcntl.LOCK_EX)  # as long as anybody holds a copy of this descriptor
        return folder, archive
    except OSError as error:
        raise LaunchError(
            f"there is no place for the changes of a copy-on-write workspace: {error}",
            remedy='free it or write changes = "discard" in the profile',
        ) from error


def end(folder: str) -> None:
    """Where nothing was written, and nobody is left who could, nothing is kept."""
    try:
        with open(f"{folder}/{ARCHIVE}", "rb") as archive:
            fcntl.flock(archive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(archive.fileno()).st_size == 0:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # it is held, or gone
        pass


def found() -> list[Kept]:
    """All that is kept, the latest first."""
    base, kept = places.changes_folder(), []
    for name in os.listdir(base) if os.path.isdir(base) else []:
        try:
            with open(f"{base}/{name}/{ABOUT}", encoding="utf-8") as file:
                about = json.load(file)
            if os.stat(f"{base}/{name}/{ARCHIVE}").st_size:
                kept.append(Kept(name, f"{base}/{name}", **about))
        except (OSError, ValueError, TypeError):  # half made, or being removed
            continue
    return sorted(kept, key=lambda one: -one.when)


def find(prefix: str) -> Kept:
    """Raises IsolatedPythonError where none or several begin so."""
    matching = [one for one in found() if one.id.startswith(prefix)]
    exact = [one for one in matching if one.id == prefix]
    if len(exact or matching) != 1:
        count = "no kept changes begin" if not matching else f"the changes of {len(matching)} kernels begin"
        raise IsolatedPythonError(f"{count} with {prefix!r}", remedy="`jupyter isolated diff` lists what is kept")
    return (exact or matching)[0]


def discard(one: Kept) -> None:
    shutil.rmtree(one.folder)


def difference(one: Kept) -> Iterator[str]:
    """Lines for a terminal: each name that is new, changed or gone, and of texts what became of their lines."""
    root = os.open(one.workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with tarfile.open(one.archive, errors="surrogateescape") as archive:
            for entry in archive:
                yield from _lines(archive, entry, root)
    finally:
        os.close(root)


def _lines(archive: tarfile.TarFile, entry: tarfile.TarInfo, root: int) -> Iterator[str]:
    folder, _, name = entry.name.rpartition("/")
    if name == OPAQUE:
        yield f"- {plain(folder)}/: all that was in it"
    elif name.startswith(GONE):
        yield f"- {plain(f'{folder}/{name[len(GONE) :]}' if folder else name[len(GONE) :])}"
    elif entry.issym():
        yield f"+ {plain(entry.name)} → {plain(entry.linkname)}"
    elif entry.isfile():
        file = archive.extractfile(entry)
        new = file.read(LONGEST + 1) if file is not None else b""
        old = _read(root, entry.name)
        yield f"{'+' if old is None else '~'} {plain(entry.name)} ({entry.size} bytes)"
        yield from _unified(old or b"", new)
    elif _about(root, entry.name) is None:
        yield f"+ {plain(entry.name)}/"


def _unified(old: bytes, new: bytes) -> Iterator[str]:
    try:
        before, after = old.decode().splitlines(), new.decode().splitlines()
    except UnicodeDecodeError:
        return
    if max(len(old), len(new)) > LONGEST or max(len(before), len(after)) > MOST_LINES or b"\0" in old + new:
        return
    for line in [*difflib.unified_diff(before, after, lineterm="", n=2)][2:]:
        yield "    " + plain(line)


def _about(root: int, path: str) -> os.stat_result | None:
    try:
        return os.stat(path, dir_fd=root, follow_symlinks=False)
    except OSError:
        return None


def _read(root: int, path: str) -> bytes | None:
    """The file that the workspace holds by this name, as far as it is compared; no link on the way is followed."""
    opened = [os.dup(root)]
    try:
        for part in path.split("/")[:-1]:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened.append(os.open(part, flags, dir_fd=opened[-1]))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        opened.append(os.open(path.rpartition("/")[2], flags, dir_fd=opened[-1]))
        if not stat.S_ISREG(os.fstat(opened[-1]).st_mode):
            return b""
        return os.read(opened[-1], LONGEST + 1)
    except OSError:
        return None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def plain(text: str) -> str:
    """For a terminal, which would obey what is not printable."""
    return "".join(one if one.isprintable() or one == "\t" else one.encode("unicode_escape").decode() for one in text)
