"""Start our own programs: a clean environment, named descriptors, and nothing else inherited."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable

DEFAULT = (signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD)  # signals whose handling no program of ours inherits


def spawn(
    argv: list[str],
    environment: dict[str, str],
    descriptors: dict[int, int],
    before: Callable[[], None] | None = None,
) -> int:
    """Fork, run `before`, execute; returns the pid. `descriptors`: number there → number here; 0 to 2 are inherited.

    Where `before` or the execution fails, the child says why on standard error and exits with 127.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        # Out of the way first, so that no source is overwritten by an earlier target.
        above = max([*descriptors, 2]) + 1
        moved = {there: _dup_from(here, above) for there, here in descriptors.items()}
        if before is not None:
            before()
        for there, here in moved.items():
            os.dup2(here, there, inheritable=True)
        os.closerange(above, 1 << 20)
        for number in DEFAULT:
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        os.execve(argv[0], argv, environment)
    except BaseException as error:
        os.write(2, f"starting {argv[0]} failed: {error}\n".encode())
    finally:
        os._exit(127)


def spawn_from_large(argv: list[str], environment: dict[str, str], descriptors: dict[int, int]) -> int:
    """As `spawn`, for a process of many pages: after a fork it would copy each that it writes to. Raises OSError.

    What else may be inherited the program finds open, and closes itself. posix_spawn(3)
    """
    actions = [(os.POSIX_SPAWN_DUP2, here, there) for there, here in descriptors.items()]
    return os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True, setsigdef=DEFAULT)


def program(root: str, module: str, first: str = "") -> str:
    """For `python -c`: run `main` of a module of ours, which lies below `root`. `first`: a module of which `ahead` is
    called before the other is imported.

    Nearly all that an import makes stays: to look through it for garbage, as Python does again and again meanwhile,
    takes a quarter of the time. So nobody looks, and what is there before `main` is never looked at later.
    """
    there = f"sys.path.insert(0, {root!r}) if {root!r} not in sys.path else None"
    ahead = f"from {first} import ahead; ahead(); " if first else ""
    return f"import gc, sys; gc.disable(); {there}; {ahead}from {module} import main; gc.freeze(); gc.enable(); main()"


def _dup_from(descriptor: int, lowest: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
