"""
Prints a container runtime's seccomp profile with what the making of a sandbox needs beside it.

    python3 seccomp.py /usr/share/containers/seccomp.json >notebooks.json      # podman's own
    python3 seccomp.py default.json >notebooks.json     # Docker's: profiles/seccomp/default.json in its sources

Each of these calls is refused by Docker's profile, and the last three by podman's, to a container without capabilities.
They give no right over the machine: in a user namespace of their own processes only get at what is theirs. What they
do open is more of the Linux kernel's code to whatever runs in the container outside of a sandbox. Kernels in a
sandbox are refused all of them again.
"""

import json
import sys

CALLS = (
    *("clone", "clone3", "unshare"),  # namespaces
    *("mount", "umount2", "open_tree", "move_mount", "mount_setattr", "pivot_root"),  # what is seen there
    *("setns", "chroot", "sethostname"),
)


def widened(profile):
    """The same profile, in which no other rule is about CALLS."""
    rules = [{**rule, "names": [name for name in rule["names"] if name not in CALLS]} for rule in profile["syscalls"]]
    allowed = {"names": [*CALLS], "action": "SCMP_ACT_ALLOW"}
    return {**profile, "syscalls": [*(rule for rule in rules if rule["names"]), allowed]}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        json.dump(widened(json.load(file)), sys.stdout, indent=1)
