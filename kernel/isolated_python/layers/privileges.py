"""Privileges: what the sandbox built itself with is given up, and cannot come back."""

from __future__ import annotations

import errno
import resource

from ..linux import caps, namespaces, prctl
from ..policy.profile import Profile
from .step import Descriptors, Step


class DropCapabilities(Step):
    """Empty all five capability sets, the bounding set first, while that is still allowed."""

    def describe(self) -> str:
        return "drop every capability, and the way to get one back"

    def execute(self, descriptors: Descriptors) -> None:
        caps.drop_all()


class DropOwnCapabilities(Step):
    """Empty the sets that count now. For a process that never had the right to touch its bounding set."""

    def describe(self) -> str:
        return "drop every capability"

    def execute(self, descriptors: Descriptors) -> None:
        caps.drop_sets()


class NoCoreDumps(Step):
    """A core file would hold the session key, and a piped core_pattern runs as root outside.

    Linux gives a pipe its core in spite of a limit of 0, and stops at 1; for a file 1 is less than the smallest core.
    Source: fs/coredump.c.
    """

    limit: int  # bytes: 0, or 1 where core_pattern is a pipe

    def describe(self) -> str:
        return f"leave no core dump (limit {self.limit})"

    def execute(self, descriptors: Descriptors) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (self.limit, self.limit))


class OwnProc(Step):
    """A change of uid gave /proc/self to root; multiprocessing and psutil need it. seccomp still refuses to trace."""

    def describe(self) -> str:
        return "keep its own files in /proc"

    def execute(self, descriptors: Descriptors) -> None:
        prctl.set_dumpable(True)


class NoNewPrivileges(Step):
    """Programs with a set-uid bit start as anybody else's. seccomp and Landlock ask for this first."""

    def describe(self) -> str:
        return "never gain a privilege by starting a program"

    def execute(self, descriptors: Descriptors) -> None:
        prctl.set_no_new_privs()


class WriteOrExecute(Step):
    """The second lock on machine code of one's own, beside seccomp's: by Linux itself, from 6.3 on."""

    def describe(self) -> str:
        return "never run memory that it has written"

    def execute(self, descriptors: Descriptors) -> None:
        try:
            prctl.set_mdwe()
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older Linux, where the filter holds it alone
                raise


class DieWith(Step):
    """Follow the supervisor into death. Process 1 notices its end by itself, but not while somebody has stopped it."""

    signal: int

    def describe(self) -> str:
        return f"receive signal {self.signal} when the supervisor dies"

    def execute(self, descriptors: Descriptors) -> None:
        prctl.set_parent_death_signal(self.signal)


class SelfCheck(Step):
    """Ask Linux, not ourselves, whether what the plan promised is so. Needs the listener to be in other hands."""

    seccomp: bool
    capabilities: bool

    def describe(self) -> str:
        return "check itself before the first cell runs"

    def execute(self, descriptors: Descriptors) -> None:
        wanted = {"NoNewPrivs": "1"}
        if self.seccomp:
            wanted["Seccomp"] = "2"
        if self.capabilities:
            wanted |= dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16)
        with open("/proc/self/status", encoding="ascii") as file:
            found = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        for name, value in wanted.items():
            if found.get(name) != value:
                raise OSError(0, f"{name} is {found.get(name)} and should be {value}")
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER)
        except OSError:
            return
        raise OSError(0, "a further user namespace could be made")


def plan(profile: Profile, *, core_pattern: str, parent_death_signal: int = 0) -> list[Step]:
    """After identity and mounts, before Landlock and seccomp. `core_pattern` is /proc/sys/kernel/core_pattern.

    `capabilities = "off"` keeps them within the sandbox's own user namespace; no_new_privs is not for choice.
    """
    dropped: list[Step] = [DropCapabilities()] if profile.layers.capabilities != "off" else []
    # "|" is a program, "@" (linux 6.16) a socket.
    limit = 1 if core_pattern.startswith(("|", "@")) else 0
    bound: list[Step] = [DieWith(parent_death_signal)] if parent_death_signal else []
    native: list[Step] = [] if profile.capabilities.native_code else [WriteOrExecute()]
    return [NoCoreDumps(limit), *dropped, OwnProc(), *bound, NoNewPrivileges(), *native]
