"""The limits of each process: setrlimit(2). What a kernel and its children use together, the cgroup limits."""

from __future__ import annotations

import resource

from isolated_python.layers.step import Descriptors, Step
from isolated_python.policy.profile import Profile


class Limit(Step):
    name: str  # as in setrlimit(2), without RLIMIT_
    value: int

    def describe(self) -> str:
        return f"have {self.name} of at most {self.value}"

    def execute(self, descriptors: Descriptors) -> None:
        which = getattr(resource, f"RLIMIT_{self.name}")
        ceiling = resource.getrlimit(which)[1]
        value = self.value if ceiling == resource.RLIM_INFINITY else min(self.value, ceiling)
        resource.setrlimit(which, (value, value))


def plan(profile: Profile) -> list[Step]:
    granted = profile.limits
    steps: list[Step] = [
        Limit("NOFILE", granted.open_files),
        # Counted per user namespace, and part of what a flood would pin in the kernel.
        Limit("SIGPENDING", 4096),
        Limit("MSGQUEUE", 0),
        Limit("MEMLOCK", 64 << 20),
        Limit("RTPRIO", 0),
        Limit("NICE", 20),
    ]
    if granted.processes is not None:
        # Counted in the sandbox's own user namespace since linux 5.14: holds where there is no cgroup, too. One more
        # than the cgroup's, because that one is asked later, and counts for the audit what it refuses.
        steps.append(Limit("NPROC", granted.processes + 1))
    if granted.file_size is not None:
        steps.append(Limit("FSIZE", granted.file_size))
    return steps
