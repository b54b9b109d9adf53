"""What the attacker wants: the host's disk, full, busy, or with something on it that works later."""

from __future__ import annotations

import os
import resource
import sqlite3
from typing import Any

from isolated_python.policy.profile import MiB

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import LaterStart, OnDisk, Taken
from tests.escapes.targets import Loot
from tests.escapes.tools import must

ONE_FILE: dict[str, Any] = {
    "stopped_by": "rlimits",
    "overrides": {"resources": {"file_size": "4 MiB"}},
    "facts": {"most": 4 * MiB},
}


COPY: dict[str, Any] = {
    "stopped_by": "mount",
    "overrides": {"files": {"workspace": "copy-on-write", "changes": "discard", "size": "16 MiB"}},
    "facts": {"most": 16 * MiB, "wanted": 24 * MiB},
    "paths": ("zygote", "exec"),  # no kernel stands ready for a workspace of this kind
}


def test_fill_the_disk(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(OnDisk, **ONE_FILE)
def by_one_large_file(target: Any) -> str:
    """Write and write."""
    with open(target.name, "wb", 0) as file:
        file.writelines(bytes(MiB) for _ in range(6))
    return "written"


@attack(OnDisk, **ONE_FILE)
def by_a_file_of_holes(target: Any) -> str:
    """Make a file that claims to be a terabyte, for whoever copies or backs it up."""
    with open(target.name, "wb") as file:
        os.ftruncate(file.fileno(), 1 << 40)
    return "made"


@attack(OnDisk, **ONE_FILE)
def by_asking_for_space(target: Any) -> str:
    """Have space set aside without writing to it."""
    with open(target.name, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 6 * MiB)
    return "set aside"


@attack(OnDisk, **ONE_FILE)
def by_writing_far_behind_the_end(target: Any) -> str:
    """Write one byte at an offset that nobody checks."""
    with open(target.name, "wb") as file:
        os.pwrite(file.fileno(), b"x", 6 * MiB)
    return "written"


@attack(OnDisk, **ONE_FILE)
def by_letting_linux_copy(target: Any) -> str:
    """Have Linux do the writing: sendfile."""
    with open("/bin/sh", "rb") as source, open(target.name, "wb") as file:
        size = os.fstat(source.fileno()).st_size
        for number in range(6 * MiB // size + 1):
            os.lseek(file.fileno(), number * size, os.SEEK_SET)
            os.sendfile(file.fileno(), source.fileno(), 0, size)
    return "copied"


@attack(OnDisk, **ONE_FILE)
def by_raising_the_limit(target: Any) -> str:
    """Take the limit away first."""
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        pass
    with open(target.name, "wb", 0) as file:
        file.writelines(bytes(MiB) for _ in range(6))
    return "written"


@attack(OnDisk, **ONE_FILE)
def by_a_database(target: Any) -> str:
    """Let a library write, which catches every signal that says it is too much."""
    with sqlite3.connect(target.name) as base:
        base.execute("create table t (x)")
        for _ in range(6):
            base.execute("insert into t values (zeroblob(1000000))")
    base.close()
    return "written"


def written_here(files: int, wanted: int) -> int:
    """How many bytes could be written to so many files of the workspace, until it was full; they are gone again."""
    place, size = f"many-{os.getpid()}", 0
    os.mkdir(place)
    try:
        for number in range(files):
            with open(f"{place}/{number}", "wb", 0) as file:
                while os.fstat(file.fileno()).st_size < wanted // files:
                    size += file.write(bytes(MiB))
    except OSError:
        pass
    finally:
        for name in os.listdir(place):
            os.unlink(f"{place}/{name}")
        os.rmdir(place)
    return size


@attack(Taken, **COPY)
def by_a_large_file_in_a_copy(target: Any) -> int:
    """Write and write to what becomes of a copy-on-write workspace."""
    return written_here(1, target.wanted)


@attack(Taken, **COPY)
def by_many_files_in_a_copy(target: Any) -> int:
    """Write no file that is large, but many."""
    return written_here(24, target.wanted)


@attack(Taken, **COPY)
def by_having_space_set_aside_in_a_copy(target: Any) -> int:
    """Write nothing, and have space set aside in many files."""
    place, size = f"copied-{os.getpid()}", 0
    try:
        for number in range(24):
            with open(f"{place}-{number}", "wb", 0) as file:
                os.posix_fallocate(file.fileno(), 0, MiB)
            size += MiB
    except OSError:
        pass
    finally:
        for number in range(24):
            try:
                os.unlink(f"{place}-{number}")
            except FileNotFoundError:
                break
    return size


@attack(Loot, stopped_by="seccomp")
def by_a_storm_of_syncs(target: Any) -> str:
    """Make everybody on the machine wait while Linux writes out all there is."""
    for _ in range(3):
        must(306, os.open(".", os.O_RDONLY))  # syncfs
    return "written out"


@attack(Taken, stopped_by="privileges", facts={"most": 1})
def by_what_a_crash_leaves(target: Any) -> int:
    """Let crashes leave all of their memory on the disk, the key of the session with it."""
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    return resource.getrlimit(resource.RLIMIT_CORE)[0]


def _left(target: Any) -> str:
    """Leave something in the owner's home that their next program runs."""
    with open(target.path, "w") as file:
        file.write("print('here I am')")
    return "left"


LEFT = [
    attack(LaterStart, stopped_by="mount", name=name, wants=f"Leave code in {what}.", facts={"file": file})(_left)
    for name, what, file in (
        ("by_a_start_up_file", "what every notebook of the owner runs first", ".ipython/profile_default/startup/00.py"),
        ("by_a_kernel_of_the_owner", "a kernelspec of the owner's", ".local/share/jupyter/kernels/mine/kernel.json"),
        ("by_a_path_file", "what every Python of the owner loads", ".local/lib/python3/site-packages/mine.pth"),
        ("by_a_shell_file", "what every shell of the owner runs", ".bash_profile"),
        ("by_a_setting_of_jupyter", "what the owner's server loads", ".jupyter/jupyter_server_config.py"),
    )
]


@attack(LaterStart, stopped_by="mount", facts={"file": ".ipython/profile_default/history.sqlite"})
def by_the_history(target: Any) -> str:
    """Write into the history that all of the owner's notebooks share."""
    with sqlite3.connect(target.path) as base:
        base.execute("create table history (session, line, source)")
        base.execute("insert into history values (1, 1, 'rm -rf ~')")
    base.close()
    return "written"
