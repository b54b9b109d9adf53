"""The records of a user's supervisors, oldest first."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from isolated_python.audit.log import FILES, Record, numbered


class Reader:
    """Reads what there is, then whatever has been added; finds its way when the file is begun anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._begun = ""  # a line that is still being written
        self._inode = 0
        self._file: int | None = None

    def older(self) -> Iterator[Record]:
        """The records of all files but the current one."""
        for number in range(FILES - 1, 0, -1):
            try:
                with open(numbered(self._path, number), encoding="utf-8", errors="replace") as file:
                    for line in file:
                        yield from _record(line)
            except FileNotFoundError:
                continue

    def newer(self) -> Iterator[Record]:
        """What the current file holds beyond what was read of it."""
        yield from self._rest()
        try:
            opened = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        if os.fstat(opened).st_ino == self._inode:
            os.close(opened)
            return
        self.close()
        self._file, self._inode, self._begun = opened, os.fstat(opened).st_ino, ""
        yield from self._rest()

    def _rest(self) -> Iterator[Record]:
        while self._file is not None and (data := os.read(self._file, 1 << 16)):
            *lines, self._begun = (self._begun + data.decode("utf-8", "replace")).split("\n")
            for line in lines:
                yield from _record(line)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _record(line: str) -> Iterator[Record]:
    """None where the line is not a whole record: the disk was full when it was written."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict) and "event" in record:
        yield record
