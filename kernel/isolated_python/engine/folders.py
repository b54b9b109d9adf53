"""
Opens the folders that kernels are granted, by no link that a kernel could have made.

What lies in its workspace a kernel may replace at any moment, also while the next kernel is being started in a folder
of it: by a link to somewhere else, and back again. So the way is walked part by part. Links are followed as everywhere
until the way enters a folder that a kernel may write; from there on they are refused.
"""

from __future__ import annotations

import errno
import os
import stat

from isolated_python.errors import LaunchError

MOST_LINKS = 40  # as Linux has it: path_resolution(7)
PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_written: set[tuple[int, int]] = set()  # device and inode of what kernels of this process were granted to write


def may_be_written(folder: int) -> None:
    """From now on, believe no link in this open folder."""
    status = os.fstat(folder)
    _written.add((status.st_dev, status.st_ino))


def open_folder(path: str, what: str) -> int:
    """Open an absolute path. Raises LaunchError, one sentence that calls it `what`."""
    ways = [os.open("/", PLACE)]  # from the root to where we are
    try:
        parts, links = path.split("/"), 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                os.close(ways.pop()) if len(ways) > 1 else None
            elif part not in ("", "."):
                here = os.open(part, PLACE, dir_fd=ways[-1])
                ways.append(here)
                if not stat.S_ISLNK(os.fstat(here).st_mode):
                    continue
                os.close(ways.pop())
                links += 1
                if links > MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                parts = _followed(ways, part, path, what) + parts
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=ways[-1])
    except OSError as error:
        raise LaunchError(f"{what} {path!r} cannot be opened: {error.strerror}") from error
    finally:
        for descriptor in ways:
            os.close(descriptor)


def _followed(ways: list[int], part: str, path: str, what: str) -> list[str]:
    """What stands in the link `part`; where it begins anew, so do the `ways`."""
    if any((status.st_dev, status.st_ino) in _written for status in map(os.fstat, ways)):
        raise LaunchError(
            f"{what} {path!r} lies behind the link {part!r}, which a kernel may have made",
            remedy="open the notebook by the folder that the link leads to",
        )
    target = os.readlink(part, dir_fd=ways[-1])
    if target.startswith("/"):
        while len(ways) > 1:
            os.close(ways.pop())
    return target.split("/")
