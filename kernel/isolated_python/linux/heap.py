"""Where the next things that a process allocates will lie: beside each other, in pages that are nobody else's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_malloc = ctypes.CDLL(None).malloc
_pymalloc = ctypes.pythonapi.PyObject_Malloc
for _allocate in (_malloc, _pymalloc):
    _allocate.argtypes, _allocate.restype = (ctypes.c_size_t,), ctypes.c_size_t

HEAD = 8  # bytes that glibc puts before each block; a block is a multiple of 16
LARGEST, SMALLEST = (96 << 10) + HEAD, 24  # bytes; what is larger than 128 KiB glibc maps by itself, mallopt(3)
FINE = 600  # bytes; below that every size is taken
POOLED = range(16, 513, 16)  # bytes, the sizes that Python has pools for
MOST = 1 << 14  # blocks of one size, should another allocator never put one right behind the other


def fill_gaps() -> None:
    """Take all gaps between what is allocated already, for good, and write to none of them.

    A child shares its parent's pages until it writes to them. Whatever small thing it puts into a gap costs it a page.
    """
    size = LARGEST
    while size >= SMALLEST:  # no gap is left that has room for two of them, so two in a row are past all gaps
        _fill(_malloc, size, size + HEAD, 1)
        size = size * 15 // 256 * 16 + HEAD if size > FINE else size - 16
    for size in POOLED:
        _fill(_pymalloc, size, size, 4)


def _fill(allocate: Callable[[int], int], size: int, distance: int, row: int) -> None:
    """Allocate blocks until so many have come right behind the one before."""
    found = before = 0
    for _ in range(MOST):
        block = allocate(size)
        found = found + 1 if block == before + distance else 0
        if found == row:
            return
        before = block
