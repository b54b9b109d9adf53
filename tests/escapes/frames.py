"""Places for controls that need power: all of it, over nothing but what they made themselves."""

from __future__ import annotations

import ctypes
import os
from typing import Any

# CLONE_NEWNS CGROUP UTS IPC USER PID NET: linux/sched.h
EVERY_NAMESPACE = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000


def in_namespaces(target: Any) -> None:
    """Become root of namespaces of one's own, and run the program there, as the second process."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(EVERY_NAMESPACE):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    if os.fork() == 0:
        if libc.mount(b"none", b"/", None, 0x44000, None):  # MS_REC | MS_PRIVATE: nothing comes back to the host
            os._exit(1)
        if os.fork() == 0:
            exec(target.program, {})
            os._exit(0)
        while True:
            try:
                os.wait()
            except ChildProcessError:
                os._exit(0)
    os.wait()
    os._exit(0)
