"""
Landlock: a second opinion on files, from another part of Linux, should the mounted view ever have a hole.

The view decides what exists; Landlock then says that only a few places in it can be written, whatever is mounted there,
and that signals and abstract sockets end at the sandbox's border.
"""

from __future__ import annotations

from ..errors import HostError
from ..linux import landlock
from ..linux.landlock import EXECUTE, IOCTL_DEV, MAKE_BLOCK, MAKE_CHAR, MAKE_SYM, READ_DIR, READ_FILE, Beneath
from ..policy.profile import Profile
from . import view
from .step import Descriptors, Step

# The workspace, and the folder that it is mounted in. Landlock looks for rules from a file upwards, until it has found
# every right: one on the workspace itself ends that sooner than one above its mount, and a file there is opened a tenth
# faster. The other holds for a workspace that is mounted only after the rules were made.
WORKSPACES = (view.WORKSPACE, "/mnt")
READABLE = ("/",)
WRITABLE = ("/tmp", "/var/tmp", "/home", "/dev/shm", "/dev/null", "/dev/zero", "/dev/full")
TERMINALS = ("/dev/pts", "/dev/ptmx", "/dev/tty", "/dev/console")  # the only devices that may be told to do something

READ = READ_FILE | READ_DIR | EXECUTE
WRITE = landlock.ABIS[landlock.LATEST].files & ~(READ | IOCTL_DEV | MAKE_CHAR | MAKE_BLOCK)

# What is not there yet, by the version that brought it, in words for a person.
WANTED = {
    2: "files can be renamed from one folder into another",
    3: "truncating counts as writing",
    5: "requests to devices are refused",
    6: "signals and abstract sockets end at the border",
}


class RestrictFiles(Step):
    """Give up every right on files, less reading beneath `read`, writing beneath `write`, terminals.

    Beneath `plain`, what is written can be no symbolic link: whoever follows one outside would leave the folder.
    """

    read: tuple[str, ...]
    write: tuple[str, ...]
    terminals: tuple[str, ...]
    abi: int
    plain: tuple[str, ...] = ()

    def describe(self) -> str:
        places = ", ".join((*self.write, *(f"{path} (no links)" for path in self.plain))) or "nowhere"
        without = "; ".join(f"not yet here: {words}" for version, words in WANTED.items() if version > self.abi)
        return f"write only beneath {places} (Landlock {self.abi}{'; ' + without if without else ''})"

    def execute(self, descriptors: Descriptors) -> None:
        landlock.restrict(
            (
                *(Beneath(path, READ) for path in self.read),
                *(Beneath(path, READ | WRITE) for path in self.write),
                *(Beneath(path, READ | WRITE & ~MAKE_SYM) for path in self.plain),
                *(Beneath(path, READ | WRITE | IOCTL_DEV) for path in self.terminals),
            ),
            version=self.abi,
        )


def plan(profile: Profile, host_abi: int) -> list[Step]:
    """After the mounts and no_new_privs, before seccomp. `host_abi` is linux.landlock.abi(); 0 is none."""
    if profile.layers.landlock == "off":
        return []
    if not host_abi:
        if profile.layers.landlock == "prefer" and profile.files.links:
            return []
        raise HostError(
            "this kernel has no Landlock, and the profile requires it",
            remedy='boot linux 5.13 or newer with lsm=landlock,… or write landlock = "prefer" in the profile',
        )
    more = granted(profile)
    if profile.files.links:
        return [RestrictFiles(READABLE, (*WRITABLE, *more), TERMINALS, host_abi)]
    return [RestrictFiles(READABLE, WRITABLE, TERMINALS, host_abi, plain=more)]


def granted(profile: Profile) -> tuple[str, ...]:
    """The places that this profile lets its kernel write, beside those that every kernel has."""
    # Where there is none, it is scratch space.
    workspace = WORKSPACES if profile.files.workspace != "read-only" else ()
    return (*workspace, *(mount.target for mount in profile.files.mounts if mount.writable))


def no_files(host_abi: int) -> list[Step]:
    """For the relay and its like, which hold all they need: no path can be opened at all, where Landlock is."""
    return [RestrictFiles((), (), (), host_abi)] if host_abi else []
