"""Where the next things that a process allocates will lie: beside each other, in pages that are nobody else's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_malloc = ctypes.CDLL(None).malloc
_pymalloc = ctypes.pythonapi.PyObject_Malloc
for _allocate in (_malloc, _pymalloc):
    _allocate.argtypes, _allocate.restype = (ctypes.c_size_t,), ctypes.c_size_t

HEAD = 8  # bytes that glibc puts before each block; its blocks are multiples of 16
LARGEST = (96 << 10) + HEAD  # bytes; glibc maps what is larger than 128 KiB by itself, mallopt(3)
SMALLEST = 24  # bytes, the least that glibc gives
POOLED = range(16, 513, 16)  # bytes, the sizes that Python has pools for
ROW = 4  # blocks, each right behind the one before: there is no gap any more
MOST = 1 << 14  # blocks of one size, in case that another allocator never gives such a row


def fill_gaps() -> None:
    """Take all gaps between what is allocated already, for good, and write to none of them.

    A child shares its parent's pages until it writes to them. What is small goes into the gaps, so that each would
    cost the child a page of its own; and again another one the next child.
    """
    size = LARGEST
    while size >= SMALLEST:  # each fits once at most into what the one before has left
        _fill(_malloc, size, size + HEAD)
        size = size * 7 // 8 // 16 * 16 + HEAD if size > 200 else size - 16
    for size in POOLED:
        _fill(_pymalloc, size, size)


def _fill(allocate: Callable[[int], int], size: int, distance: int) -> None:
    row = before = 0
    for _ in range(MOST):
        found = allocate(size)
        row = row + 1 if found == before + distance else 0
        if row == ROW:
            return
        before = found
