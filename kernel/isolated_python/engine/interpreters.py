"""Which program a kernelspec names, and which folders of the host it needs to see to run."""

from __future__ import annotations

import functools
import glob
import os
import re
import shutil
import site
import sys

from isolated_python.engine import ROOT, sight
from isolated_python.engine.packages import ELSEWHERE, Interpreter
from isolated_python.errors import ProgramError
from isolated_python.policy.profile import Profile

OURS = ("isolated_python.launcher.argv", "ipykernel_launcher", "ipykernel")


def is_ours(cmd: list[str]) -> bool:
    """Whether a zygote of this server's interpreter can serve the command: `python -m ipykernel_launcher -f …`."""
    same = os.path.abspath(shutil.which(cmd[0]) or cmd[0]) in (sys.executable, os.path.abspath(sys.executable))
    words = [word for word in cmd[1:3] if word != "-Xfrozen_modules=off"]
    return same and len(cmd) >= 3 and words[:1] == ["-m"] and (cmd[2] in OURS) and _simple(cmd[3:])


def is_ipykernel(cmd: list[str]) -> bool:
    """Whether the command of another environment starts an ipykernel there."""
    words = [word for word in cmd[1:] if not word.startswith("-X")]
    return words[:1] == ["-m"] and words[1:2] != [] and words[1] in OURS[1:]


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


def own() -> Interpreter:
    """The server's interpreter, and where it looks for packages."""
    packages = [*([site.getusersitepackages()] if site.ENABLE_USER_SITE else []), *site.getsitepackages()]
    found = dict.fromkeys(os.path.realpath(folder) for folder in packages if os.path.isdir(folder))
    return Interpreter(sys.version_info[:2], tuple(found))


def of(program: str) -> Interpreter:
    """Another interpreter, by its path: what its prefix and pyvenv.cfg say. No folders where it is no Python."""
    path = os.path.abspath(shutil.which(program) or program)
    if not re.fullmatch(r"python[\d.]*", os.path.basename(path)):
        return Interpreter(sys.version_info[:2], ())
    settings = _pyvenv(_prefix(path))
    prefixes = [_prefix(path)] if settings else [_prefix(os.path.realpath(path)), "/usr/local"]
    if settings.get("include-system-site-packages", "").lower() == "true":
        prefixes += [os.path.dirname(settings.get("home", "")), "/usr/local"]
    folders = [folder for prefix in prefixes for pattern in ELSEWHERE for folder in glob.glob(f"{prefix}/{pattern}")]
    found = dict.fromkeys(os.path.realpath(folder) for folder in folders)
    versions = re.findall(r"python(\d+)\.(\d+)", " ".join([os.path.basename(os.path.realpath(path)), *found]))
    major, minor = versions[0] if versions else sys.version_info[:2]
    return Interpreter((int(major), int(minor)), tuple(found))


def shown(cmd: list[str], profile: Profile) -> tuple[tuple[str, ...], sight.View | None]:
    """The host folders that a kernel of this command sees, and what of their packages is granted.

    Raises ProgramError, ProfileError, LaunchError.
    """
    ours = is_ours(cmd)
    if profile.modules.grant is None:
        return (own_trees() if ours else trees_of(cmd[0])), None
    trees = _own_places() if ours else trees_of(cmd[0], added=False)
    view = sight.view(profile, own() if ours else of(cmd[0]), trees)
    return (_narrow([*trees, *view.adds]) if view else trees), view


def _own_places() -> tuple[str, ...]:
    return _narrow([sys.prefix, sys.base_prefix, *own().folders, ROOT])


@functools.cache
def own_trees() -> tuple[str, ...]:
    """The folders of the server's interpreter: where it lives, where its packages live, and what .pth files add."""
    found = [*_own_places()]
    for folder in own().folders:
        if os.path.isdir(folder):
            for name in sorted(os.listdir(folder)):
                if name.endswith(".pth"):
                    found += _added_by(os.path.join(folder, name))
    return _narrow(found)


def _added_by(pth: str) -> list[str]:
    try:
        with open(pth, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file]
    except OSError:  # Python goes on without it, too
        return []
    return [line for line in lines if os.path.isabs(line) and os.path.isdir(line)]


def trees_of(program: str, *, added: bool = True) -> tuple[str, ...]:
    """The folders of another program: the prefix it is installed in, and for a virtual environment that of its home.

    `added`: also what .pth files add to the server's own interpreter, if that is the program.
    """
    found = shutil.which(program)
    if found is None:
        raise ProgramError(
            f"the kernelspec's program {program!r} does not exist", remedy="install it, or mend its argv"
        )
    prefixes = [_prefix(found), _prefix(os.path.realpath(found)), ROOT, *own_base()]
    if added and _prefix(found) == sys.prefix:
        prefixes += own_trees()
    home = _pyvenv(_prefix(found)).get("home")
    return _narrow([*prefixes, *([os.path.dirname(home)] if home else [])])


def _pyvenv(prefix: str) -> dict[str, str]:
    """What makes a virtual environment of a prefix; empty where it is none."""
    try:
        with open(os.path.join(prefix, "pyvenv.cfg"), encoding="utf-8", errors="replace") as file:
            pairs = [line.partition("=") for line in file]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


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
