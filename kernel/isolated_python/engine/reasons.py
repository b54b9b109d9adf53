"""Why a kernel died, in one sentence with the limit, the usage and the profile's key."""

from __future__ import annotations

import signal

from isolated_python.layers import cgroup
from isolated_python.policy.profile import Profile

QUIET = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)  # asked for by whoever sent them


def status_of(code: int, *, exited: bool) -> int:
    """The kernel's status as subprocess.Popen.returncode, from how process 1 ended, which passes its own on."""
    if not exited:
        return -code
    return 128 - code if code > 128 else code


def why(status: int, profile: Profile, group: cgroup.Group | None) -> str:
    """Empty where nothing of ours ended it."""
    if status == -signal.SIGKILL and group is not None:
        events, peak = group.events(), group.usage().memory_peak
        used = f" (it had used {peak >> 20} MiB)" if peak else ""
        if events.oom_kills and not events.oom_failures:
            return (
                f"the kernel was killed: the machine, or a group that it shares with others, had no memory left{used}; "
                f"the profile {profile.name} would have granted more (resources.memory)"
            )
        if events.oom_kills and profile.resources.memory is not None:
            return (
                f"the kernel was killed: it needed more than the {profile.resources.memory >> 20} MiB of memory that "
                f"the profile {profile.name} grants{used} (resources.memory)"
            )
    if status == -signal.SIGSYS:
        return "the kernel was killed by its seccomp filter: it made a system call of a foreign architecture"
    if status < 0 and status not in QUIET:
        return f"the kernel crashed with {_name(-status)}"
    return ""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
