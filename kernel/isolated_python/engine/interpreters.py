"""Which program a kernelspec names, and which folders of the host it needs to see to run."""

from __future__ import annotations

import functools
import os
import shutil
import site
import sys

from isolated_python.engine.zygotes import ROOT
from isolated_python.errors import ProgramError

OURS = ("isolated_python.launcher.argv", "ipykernel_launcher", "ipykernel")


def is_ours(cmd: list[str]) -> bool:
    """Whether a zygote of this server's interpreter can serve the command: `python -m ipykernel_launcher -f …`."""
    same = os.path.abspath(shutil.which(cmd[0]) or cmd[0]) in (sys.executable, os.path.abspath(sys.executable))
    words = [word for word in cmd[1:3] if word != "-Xfrozen_modules=off"]
    return same and len(cmd) >= 3 and words[:1] == ["-m"] and (cmd[2] in OURS) and _simple(cmd[3:])


def _simple(words: list[str]) -> bool:
    """Whether what follows is `-f FILE` and options that ipykernel itself understands."""
    return all(not word.startswith("--IPKernelApp.connection_file") for word in words)


def arguments(cmd: list[str]) -> list[str]:
    """What the command asks of ipykernel, less the connection file."""
    words, found = iter(cmd[3:]), []
    for word in words:
        if word == "-f":
            next(words, None)
        else:
            found.append(word)
    return found


def own_interpreter() -> tuple[str, list[str], str]:
    """The interpreter, its options and its user base: a zygote imports what the server would."""
    user = bool(site.ENABLE_USER_SITE)
    return sys.executable, ["-P", "-Xfrozen_modules=off", *([] if user else ["-s"])], site.getuserbase() if user else ""


@functools.cache
def own_trees() -> tuple[str, ...]:
    """The folders of the server's interpreter: where it lives, where its packages live, and what .pth files add."""
    packages = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    found = [sys.prefix, sys.base_prefix, *packages, ROOT]
    for folder in packages:
        if os.path.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if name.endswith(".pth"):
                    found += _added_by(os.path.join(folder, name))
    return _narrow(found)


def _added_by(pth: str) -> list[str]:
    with open(pth, encoding="utf-8", errors="replace") as file:
        lines = [line.strip() for line in file]
    return [line for line in lines if os.path.isabs(line) and os.path.isdir(line)]


def trees_of(program: str) -> tuple[str, ...]:
    """The folders of another program: the prefix it is installed in, and for a virtual environment that of its home."""
    found = shutil.which(program)
    if found is None:
        raise ProgramError(
            f"the kernelspec's program {program!r} does not exist", remedy="install it, or mend its argv"
        )
    prefixes = [_prefix(found), _prefix(os.path.realpath(found)), ROOT, *own_base()]
    if _prefix(found) == sys.prefix:
        prefixes += own_trees()
    configuration = os.path.join(_prefix(found), "pyvenv.cfg")
    if os.path.exists(configuration):
        with open(configuration, encoding="utf-8", errors="replace") as file:
            homes = [line.split("=", 1)[1].strip() for line in file if line.startswith("home")]
        prefixes += [os.path.dirname(home) for home in homes]
    return _narrow(prefixes)


def own_base() -> tuple[str, ...]:
    """What the launcher of other programs needs itself."""
    return (sys.prefix, sys.base_prefix)


def _prefix(program: str) -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(program)))


def _narrow(folders: list[str]) -> tuple[str, ...]:
    """Each once; nothing that would show the root, a home folder or what lies above one."""
    home = os.path.realpath(os.path.expanduser("~")) + "/"
    real = {os.path.abspath(folder) for folder in folders if os.path.isdir(folder)}
    return tuple(sorted(folder for folder in real if not home.startswith(folder.rstrip("/") + "/")))
