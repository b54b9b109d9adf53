"""
From a table to BPF, by libseccomp, which takes site-packages and a tenth of a second: so this runs in a process of its
own, `python -I -m isolated_python.layers.filters.compiler NAME [FILE]`, and what it prints is kept (kept.py).
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from ...errors import HostError
from ...linux.libc import MACHINE
from ..seccomp import Filter
from . import EVERY_BIT, KILL, NOTIFY, Match, Table
from .kernel import VARIANTS
from .relay import RELAY

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES: dict[str, Table] = {table.name: table for table in (*VARIANTS, RELAY)}


def compile(name: str, machine: str = MACHINE) -> Filter:
    """Make BPF from a table. Needs pyseccomp, hence site-packages; takes about a tenth of a second.

    Names that this machine's ABI, or this libseccomp, does not know are left to the default: refused either way.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise HostError(
            f"seccomp filters cannot be compiled ({error})", remedy="install libseccomp2 and pyseccomp"
        ) from None
    table = TABLES[name]
    arch = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[machine]

    # The default for a foreign architecture kills one thread only, and a kernel would hang instead of die.
    filter = pyseccomp.SyscallFilter(table.default)
    if not filter.exist_arch(arch):
        filter.add_arch(arch)
        filter.remove_arch(pyseccomp.system_arch())
    filter.set_attr(pyseccomp.Attr.ACT_BADARCH, KILL)
    filter.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)  # a binary tree over the numbers
    names: dict[int, str] = {}
    for call, verdict, matches in _rules(table):
        number = int(pyseccomp.resolve_syscall(arch, call))
        # -1: unknown to libseccomp. Other negative numbers: known, but not on this architecture.
        # And libseccomp refuses a rule that says what the default says.
        if number < 0 or verdict == table.default:
            continue
        filter.add_rule_exactly(verdict, call, *(_comparison(match, pyseccomp) for match in matches))
        if verdict == NOTIFY:
            names[number] = call
    return Filter(name, _export(filter), names)


def _rules(table: Table) -> Iterator[tuple[str, int, tuple[Match, ...]]]:
    for group in table.groups:
        for call in group.calls:
            yield call, group.verdict, ()
    for rule in table.rules:
        yield rule.call, rule.verdict, rule.matches


def _comparison(match: Match, pyseccomp: Any) -> Any:
    if match.at_least:
        return pyseccomp.Arg(match.argument, pyseccomp.GE, match.value)
    if match.mask == EVERY_BIT:
        return pyseccomp.Arg(match.argument, pyseccomp.EQ, match.value)
    return pyseccomp.Arg(match.argument, pyseccomp.MASKED_EQ, match.mask, match.value)


def _export(filter: Any) -> bytes:
    with os.fdopen(os.memfd_create("filter", os.MFD_CLOEXEC), "w+b") as file:
        filter.export_bpf(file)
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def main(arguments: list[str]) -> int:
    """Compile a table, print it or write it to FILE: see above."""
    if not 1 <= len(arguments) <= 2 or arguments[0] not in TABLES:
        sys.stderr.write(f"usage: python -I -m isolated_python.layers.filters.compiler {{{','.join(TABLES)}}} [FILE]\n")
        return 2
    try:
        text = json.dumps(compile(arguments[0]).to_wire())
    except HostError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if len(arguments) == 2:
        with open(arguments[1], "x", encoding="ascii", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
