"""
Whether we are in a container: what is missing there is the container's to give, and is asked for in its own words.

Source: podman-run(1), `docker run --help`, Kubernetes' SecurityContext; docs/how-to/containers.md says what was tried.
"""

from __future__ import annotations

import os

# What each kind leaves in every container of its own, the outermost first: a pod of Kubernetes may show two.
MARKS = (
    ("Kubernetes", "var/run/secrets/kubernetes.io"),
    ("podman", "run/.containerenv"),
    ("Docker", ".dockerenv"),
)

# The first pid namespace of a machine. A disk image made of a container's files has their marks, and is none.
MACHINES_OWN = "pid:[4026531836]"  # PROC_PID_INIT_INO, linux 3.8

CALLS, PROC, CGROUP = "calls", "proc", "cgroup"  # what a container may withhold
TOGETHER = "the limits of the container then hold for all its kernels together"

REPAIRS = {
    CALLS: {
        "": "if this is a container, let its seccomp and AppArmor profiles allow unshare and mount",
        "podman": "start the container with --security-opt seccomp=FILE, "
        "where FILE comes from deploy/containers/seccomp.py",
        "Docker": "start the container with --security-opt seccomp=FILE --security-opt apparmor=unconfined, "
        "where FILE comes from deploy/containers/seccomp.py",
        "Kubernetes": "give the pod hostUsers: false, a seccompProfile of type Localhost that comes from "
        "deploy/containers/seccomp.py, and an appArmorProfile of type Unconfined",
    },
    PROC: {
        "": "if this is a container, start it with an unmasked /proc (podman: --security-opt unmask=ALL; Docker: "
        "--security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked)",
        "podman": "start the container with --security-opt unmask=ALL",
        "Docker": "start the container with --security-opt systempaths=unconfined",
        "Kubernetes": "write procMount: Unmasked in the container's securityContext and hostUsers: false in the pod",
    },
    CGROUP: dict.fromkeys(
        ("podman", "Docker", "Kubernetes"), 'write cgroup = "prefer" under [layers] in the profile: ' + TOGETHER
    ),
}


def kind(root: str = "/") -> str:
    """The kind of container that we are in; empty where there is no sign of one."""
    if os.readlink("/proc/self/ns/pid") == MACHINES_OWN:
        return ""
    return next((name for name, mark in MARKS if os.path.lexists(os.path.join(root, mark))), "")


def repair(withheld: str, otherwise: str = "", *, inside: str | None = None) -> str:
    """What gives us what is withheld. `otherwise`: what does outside of containers, where that is something else."""
    ways = REPAIRS[withheld]
    return ways.get(kind() if inside is None else inside) or otherwise or ways[""]
