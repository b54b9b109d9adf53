"""%sandbox: what this kernel is granted, what of it is in use, what was refused; `%sandbox why` after a failure."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from . import explain

HELP = "%sandbox  what is granted and used · %sandbox why  the last failure · %sandbox modules  what may be imported"


def install(shell: Any, granted: dict[str, Any], lists: dict[str, list[str]], failures: list[explain.Failure]) -> None:
    def sandbox(line: str) -> None:
        """What this kernel is granted and uses; `why`: the last failure; `modules`: what may be imported."""
        word = line.strip()
        answer = {"": overview, "why": why, "modules": modules}.get(word)
        print(answer(granted, lists, failures) if answer is not None else HELP)  # noqa: T201

    shell.register_magic_function(sandbox, "line", "sandbox")


def overview(granted: dict[str, Any], lists: dict[str, list[str]], failures: list[explain.Failure]) -> str:
    used = usage()
    lines = [f"This kernel runs in a sandbox, by the profile {granted['name']}: {granted['description']}", ""]
    lines += [f"{'granted':34} in use"]
    for key, value in granted["resources"].items():
        now = used.get(key, "")
        lines.append(f"  {'resources.' + key:24} {explain.amount(key, value):>12}   {now}".rstrip())
    lines.append(f"  {'files.workspace':24} {granted['files']['workspace']:>12}")
    if granted["files"]["size"]:
        lines.append(f"  {'files.size':24} {explain.amount('size', granted['files']['size']):>12}   {held(granted)}")
    lines.append(f"  {'network.reach':24} {', '.join(granted['network']['reach']) or 'nothing':>12}")
    for table in ("capabilities", "cells"):
        for key, value in granted[table].items():
            lines.append(f"  {table + '.' + key:24} {explain.amount(key, value):>12}")
    lines.append(f"  {'modules':24} {strength(granted, len(lists['granted'])):>12}")
    for note in granted.get("weakened", ()):
        lines.append(f"  weakened, as the profile allows: {note}")
    shown = [failure for failure in failures if failure.layer]
    lines += ["", "refused, as this kernel's cells have seen it:" if shown else "Nothing was refused to a cell so far."]
    for failure in shown[-10:]:
        since = time.strftime("%H:%M:%S", time.localtime(failure.at))
        lines.append(f"  {since}  {failure.layer:10} {failure.sentence}")
    return "\n".join(lines)


def held(granted: dict[str, Any]) -> str:
    """What of the workspace is in use, where the kernel can see that, and who holds it to its size."""
    if granted["files"]["workspace"] != "copy-on-write":
        return "told when it is exceeded, and held by nobody"
    place = "an image on the disk" if granted["image"] else "memory"
    found = os.statvfs(explain.OWN[0])
    return f"{(found.f_blocks - found.f_bfree) * found.f_frsize / explain.MiB:.1f} MiB changed, in {place}"


def strength(granted: dict[str, Any], count: int) -> str:
    """How many modules a cell may import, and which of the three strengths hold that, by name."""
    wanted, names = granted["modules"], []
    if wanted["grant"] is not None:
        names = [name for name in ("hidden", "guard") if wanted[name]] or ["a list that nothing holds"]
    names += [] if granted["capabilities"]["native_code"] else ["native code off"]
    held = f" ({', '.join(names)})" if names else ""
    return f"{'everything' if wanted['grant'] is None else f'{count} granted'}{held}"


def why(granted: dict[str, Any], lists: dict[str, list[str]], failures: list[explain.Failure]) -> str:
    if not failures:
        return "No cell has failed."
    last = failures[-1]
    if not last.layer:
        return f"{last.error}\nThe sandbox is not behind it, as far as an error can tell."
    told = "" if last.sentence in last.error else f"{last.error}\n"
    return f"{told}The layer {last.layer}: {last.sentence}."


def modules(granted: dict[str, Any], lists: dict[str, list[str]], failures: list[explain.Failure]) -> str:
    if granted["modules"]["grant"] is None:
        return f"The profile {granted['name']} grants every module of the environment."
    return f"The profile {granted['name']} grants to cells:\n" + ", ".join(lists["granted"])


def usage() -> dict[str, str]:
    """What is in use now, as the kernel itself can see it: its own processes and files."""
    memory = tasks = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
                status = dict(line.split(":", 1) for line in file if ":" in line)
            memory += int(status.get("VmRSS", "0 kB").split()[0]) << 10
            tasks += int(status.get("Threads", "0"))
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
    times = os.times()
    found = {"memory": f"{memory >> 20} MiB", "processes": str(tasks)}
    found["cpu_time"] = f"{times.user + times.system + times.children_user + times.children_system:.1f} s"
    found["open_files"] = str(len(os.listdir("/proc/self/fd")))
    for key, place in (("tmp", "/tmp"), ("shm", "/dev/shm")):
        found[key] = f"{shutil.disk_usage(place).used / explain.MiB:.1f} MiB"
    return found
