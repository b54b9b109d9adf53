"""
Landlock: rights that a process takes away from itself, for good.

All of its history is one table, and what an older kernel cannot handle is left out of the ruleset by a pure function.
Source: landlock(7), linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

from isolated_python.record import Record

from .libc import syscall

CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
RULE_NET_PORT = 2

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13  # link and rename from one folder into another
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

BIND_TCP = 1 << 0
CONNECT_TCP = 1 << 1

SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
SCOPE_SIGNAL = 1 << 1

LOG_SAME_EXEC_OFF = 1 << 0
LOG_NEW_EXEC_ON = 1 << 1
LOG_SUBDOMAINS_OFF = 1 << 2

# What a rule on something that is not a folder may name; more gives EINVAL.
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV


class Abi(Record):
    """What one version of Landlock can take away, and how it can be told not to log."""

    linux: str
    files: int
    tcp: int = 0
    scopes: int = 0
    flags: int = 0


_ALL = (1 << 13) - 1
_TCP = BIND_TCP | CONNECT_TCP
_SCOPES = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL
_LOG = LOG_SAME_EXEC_OFF | LOG_NEW_EXEC_ON | LOG_SUBDOMAINS_OFF

ABIS: dict[int, Abi] = {
    0: Abi("before 5.13", 0),
    1: Abi("5.13", _ALL),
    2: Abi("5.19", _ALL | REFER),
    3: Abi("6.2", _ALL | REFER | TRUNCATE),
    4: Abi("6.7", _ALL | REFER | TRUNCATE, _TCP),
    5: Abi("6.10", _ALL | REFER | TRUNCATE | IOCTL_DEV, _TCP),
    6: Abi("6.12", _ALL | REFER | TRUNCATE | IOCTL_DEV, _TCP, _SCOPES),
    7: Abi("6.15", _ALL | REFER | TRUNCATE | IOCTL_DEV, _TCP, _SCOPES, _LOG),
}
LATEST = max(ABIS)


class Beneath(Record):
    """Grant `rights` to everything beneath `path`, mounts included, or to `path` alone when it is no folder."""

    path: str
    rights: int


def abi() -> int:
    """The version of Landlock here; 0 where it is not built in or not switched on."""
    try:
        return syscall("landlock_create_ruleset", None, 0, CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def handled(version: int) -> Abi:
    """What a kernel of this version can take away. A newer one than the table knows is its last."""
    return ABIS[min(max(version, 0), LATEST)]


def restrict(
    rules: tuple[Beneath, ...],
    *,
    version: int,
    tcp: tuple[tuple[int, int], ...] | None = None,
    scopes: int = _SCOPES,
    flags: int = LOG_SAME_EXEC_OFF | LOG_SUBDOMAINS_OFF,
) -> None:
    """Take every right on files from this thread and its descendants, less what the rules grant.

    A path that does not exist is granted nothing. `tcp` lists (port, rights) in the same way; None leaves TCP alone.
    `scopes` cut abstract unix sockets and signals off at the border of this domain. What version `version` does not
    know is not handled: the caller knew that when it chose to go on.
    Raises EPERM without no_new_privs, EOPNOTSUPP or ENOSYS where there is no Landlock.
    """
    known = handled(version)
    attr = struct.pack("=3Q", known.files, known.tcp if tcp is not None else 0, scopes & known.scopes)
    # A kernel takes an attr longer than its own as long as the rest is zero, and here it is.
    ruleset = syscall("landlock_create_ruleset", attr, len(attr), 0)
    try:
        for rule in rules:
            _grant(ruleset, rule, known.files)
        if known.tcp:
            for port, rights in tcp or ():
                # struct landlock_net_port_attr
                _add(ruleset, RULE_NET_PORT, struct.pack("=QQ", rights, port))
        syscall("landlock_restrict_self", ruleset, flags & known.flags)
    finally:
        os.close(ruleset)


def _grant(ruleset: int, rule: Beneath, files: int) -> None:
    try:
        # O_PATH opens nothing: a device or a pipe does not notice.
        target = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = rule.rights & files
        if not stat.S_ISDIR(os.fstat(target).st_mode):
            rights &= OF_A_FILE
        if rights:
            # struct landlock_path_beneath_attr is packed: 12 bytes
            _add(ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", rights, target))
    finally:
        os.close(target)


def _add(ruleset: int, kind: int, attr: bytes) -> None:
    syscall("landlock_add_rule", ruleset, kind, ctypes.create_string_buffer(attr, len(attr)), 0)
