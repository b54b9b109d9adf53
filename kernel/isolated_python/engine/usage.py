"""What one sandbox uses and may use, by its cgroup: for `list`, and as the answer to Jupyter's usage_request."""

from __future__ import annotations

import os
import time
from typing import Any

from isolated_python.layers import cgroup
from isolated_python.policy.profile import Resources

HOSTNAME = "sandbox"  # as layers.identity says to the kernel
PID = 2  # of a kernel among its own processes; init is 1


def figures(group: cgroup.Group | None, limits: Resources) -> dict[str, Any]:
    """In bytes, tasks, seconds and cores; None is not known, or not limited."""
    used = group.usage() if group is not None else None
    return {
        "memory": used.memory if used else None,
        "memory_peak": used.memory_peak if used else None,
        "processes": used.processes if used else None,
        "cpu_seconds": used.cpu_seconds if used else None,
        "limits": {"memory": limits.memory, "processes": limits.processes, "cpu": limits.cpu},
    }


def content(figures: dict[str, Any], before: tuple[float, float]) -> tuple[dict[str, Any], tuple[float, float]]:
    """Of a usage_reply; `before` is when it was asked for last, and the CPU seconds then. Returns also the next one.

    The names are ipykernel's. The host that a notebook can know is its sandbox, so `host_…` is what that was granted.
    """
    now, limits = time.monotonic(), figures["limits"]
    machine = float(os.cpu_count() or 1)
    cores = min(limits["cpu"] or machine, machine)
    cpu = 100 * (figures["cpu_seconds"] - before[1]) / max(now - before[0], 0.001)
    total, free = machine_memory()
    used = figures["memory"]
    if limits["memory"] is not None and limits["memory"] < total:
        total, free = limits["memory"], min(free, limits["memory"] - used)
    reply = {
        "hostname": HOSTNAME,
        "pid": PID,
        "kernel_cpu": round(cpu, 1),  # per cent of one core
        "kernel_memory": used,
        "cpu_count": max(1, round(cores)),
        "host_cpu_percent": round(min(cpu / cores, 100.0), 1),
        "host_virtual_memory": {
            "total": total,
            "available": free,
            "percent": round(100 * (total - free) / total, 1),
            "used": used,
            "free": free,
            "active": used,
            "inactive": 0,
            "wired": 0,
        },
        "sandbox": figures,
    }
    return reply, (now, figures["cpu_seconds"])


def machine_memory() -> tuple[int, int]:
    """In bytes: all of it, and what is free or could be. proc(5), linux 3.14"""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in file}
    return found["MemTotal"], found["MemAvailable"]
