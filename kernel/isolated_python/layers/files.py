"""The files of one kernel: its own /proc, /tmp, home, /dev/shm and terminals, and the workspace it was granted."""

from __future__ import annotations

import os

from isolated_python.errors import LaunchError
from isolated_python.layers import view
from isolated_python.layers.step import Descriptors, Step
from isolated_python.linux import mount
from isolated_python.policy.profile import Profile

HOME = "/home/user"
WORKSPACE = view.WORKSPACE
LAYER = "/tmp/layer"  # what a copy-on-write workspace is written to, while the whole scratch space is seen
CHANGED = "changes"  # the folder in it with what has changed
CHANGES = f"{LAYER}/{CHANGED}"

# What of /proc speaks of the whole machine, or acts on it. An ordinary user may not open most of it: seen twice.
MASKED = (
    *("kcore", "keys", "key-users", "kmsg", "kallsyms", "sysrq-trigger", "timer_list"),
    *("kpagecount", "kpageflags", "kpagecgroup", "iomem", "ioports", "acpi", "bus", "irq", "scsi"),
    "cmdline",  # virtual machines are handed tokens there
    *("interrupts", "softirqs"),  # they tick with other people's keys and packets
)

PTYS = 128  # terminals of one sandbox

SAFE = mount.MS_NOSUID | mount.MS_NODEV


class MountProc(Step):
    """A /proc that knows this pid namespace only; a process that may not be traced is not even listed."""

    def describe(self) -> str:
        return "see only its own processes in /proc"

    def execute(self, descriptors: Descriptors) -> None:
        mount.mount("proc", "/proc", "proc", SAFE | mount.MS_NOEXEC, "hidepid=invisible")


class MaskProc(Step):
    """Put something empty over what the machine as a whole shows in /proc, and make its settings read-only."""

    names: tuple[str, ...] = MASKED

    def describe(self) -> str:
        return "find the machine-wide files of /proc empty and its settings read-only"

    def execute(self, descriptors: Descriptors) -> None:
        for name in self.names:
            path = f"/proc/{name}"
            if os.path.exists(path):
                mount.mount("/run/empty" if os.path.isdir(path) else "/dev/null", path, "", mount.MS_BIND)
        settings = os.open("/proc/sys", os.O_PATH | os.O_CLOEXEC)
        tree = mount.clone_tree(settings)
        mount.set_attributes(tree, mount.MOUNT_ATTR_RDONLY)
        mount.place(tree, "/proc/sys")
        os.close(tree)
        os.close(settings)


class MountScratch(Step):
    """One tmpfs with one limit for all that a kernel writes outside of its workspace."""

    size: int  # bytes
    shm: int  # bytes
    run: bool = True  # whether what is written there may be run

    def describe(self) -> str:
        nothing = "" if self.run else ", and run none of it"
        return f"write at most {self.size >> 20} MiB to /tmp and its home, {self.shm >> 20} MiB to /dev/shm{nothing}"

    def execute(self, descriptors: Descriptors) -> None:
        flags = SAFE if self.run else SAFE | mount.MS_NOEXEC
        mount.mount(
            "tmpfs", "/tmp", "tmpfs", flags, f"size={self.size},mode=755,nr_inodes={max(1024, self.size >> 12)}"
        )
        for name, mode in (("home", 0o700), ("workspace", 0o700), ("tmp", 0o1777)):
            os.mkdir(f"/tmp/{name}")
            os.chmod(f"/tmp/{name}", mode)
        os.mkdir(LAYER)
        for name, place in (("home", HOME), ("workspace", WORKSPACE)):
            mount.mount(f"/tmp/{name}", place, "", mount.MS_BIND)
        mount.mount(
            "tmpfs", "/dev/shm", "tmpfs", flags, f"size={self.shm},mode=1777,nr_inodes={max(1024, self.shm >> 12)}"
        )
        # All sandboxes together have no more terminals than the machine: kernel.pty.max less kernel.pty.reserve.
        options = f"newinstance,ptmxmode=0666,max={PTYS}"
        mount.mount("devpts", "/dev/pts", "devpts", mount.MS_NOSUID | mount.MS_NOEXEC, options)


class PlaceWorkspace(Step):
    """The folder of the notebook, as the profile grants it. Its mount was made outside, by descriptor."""

    mode: str
    run: bool = True
    size: int | None = None  # bytes that may be in it, or may change in it; None: as many as there is room for
    image: bool = False  # what changes lies on an image, made and mounted outside

    def describe(self) -> str:
        nothing = "" if self.run else ", and run nothing in it"
        return f"work in {WORKSPACE}, the notebook's folder, {self.mode}{nothing}{self._bounded()}"

    def _bounded(self) -> str:
        if self.mode == "copy-on-write":
            place = "on the disk, in an image of its own" if self.image else "in memory"
            return f"; what changes lies {place}, " + (
                f"and Linux holds it to {self.size >> 20} MiB" if self.size else "and shares the room of /tmp"
            )
        return f"; of more than {self.size >> 20} MiB in it the cell is told, and nothing holds it" if self.size else ""

    def execute(self, descriptors: Descriptors) -> None:
        tree = descriptors["workspace"]
        if self.mode != "copy-on-write":
            mount.place(tree, WORKSPACE)
            return
        mount.place(tree, "/run/lower")
        if self.image:
            mount.place(descriptors["image"], LAYER)
        elif self.size is not None:
            mount.mount("tmpfs", LAYER, "tmpfs", SAFE, f"size={self.size},mode=700,nr_inodes={self.size >> 12}")
        os.mkdir(CHANGES)
        os.mkdir(f"{LAYER}/work")
        options = f"lowerdir=/run/lower,upperdir={CHANGES},workdir={LAYER}/work,userxattr"
        flags = SAFE if self.run else SAFE | mount.MS_NOEXEC
        try:
            mount.mount("overlay", WORKSPACE, "overlay", flags, options)
        except OSError as error:
            raise LaunchError(
                f"the workspace's file system cannot be a layer of an overlay ({os.strerror(error.errno or 0)})",
                remedy='move the notebook to a local file system or write workspace = "read-only" in the profile',
            ) from None


class PlaceMounts(Step):
    """Further folders that the profile grants, each made outside, by descriptor."""

    targets: tuple[str, ...]

    def describe(self) -> str:
        return f"see {', '.join(self.targets)}"

    def execute(self, descriptors: Descriptors) -> None:
        for number, target in enumerate(self.targets):
            mount.place(descriptors[f"mount-{number}"], target)


class CloseScratch(Step):
    """Show /tmp as a folder of the scratch tmpfs, so that its other folders are out of reach by that way."""

    def describe(self) -> str:
        return "reach its scratch space by /tmp and its home only"

    def execute(self, descriptors: Descriptors) -> None:
        mount.mount("/tmp/tmp", "/tmp", "", mount.MS_BIND)


class ShowTrees(Step):
    """Programs that lie where a sandbox has a place of its own, an environment in /tmp, are seen there all the same."""

    kept: tuple[tuple[int, str], ...]

    def describe(self) -> str:
        return f"see {', '.join(path for _, path in self.kept)} in a place of its own"

    def execute(self, descriptors: Descriptors) -> None:
        view.show(self.kept)
        mount.mount("/run/empty", view.KEPT, "", mount.MS_BIND)  # where they are not an overlay of its own


class OverlayTrees(Step):
    """A read-only overlay over each shared tree: without it two sandboxes meet in its file locks and inotify events."""

    trees: tuple[str, ...]
    parted: tuple[int, ...] = ()  # the numbers of those that the view shows without what is hidden

    def describe(self) -> str:
        return "share no file lock, lease or inotify event with another sandbox"

    def execute(self, descriptors: Descriptors) -> None:
        for number, tree in enumerate(self.trees):
            if number in self.parted:
                layers = f"{view.HIDDEN}/{number}:{view.TREES}/{number}"
            else:
                os.chdir(tree)  # the path itself may hold what overlay's options cannot
                layers = ".:/run/empty"
            mount.mount("overlay", tree, "overlay", SAFE | mount.MS_RDONLY, f"lowerdir={layers}")
        os.chdir("/")


class CoverTrees(Step):
    """The view keeps whole trees in a place that only we reach; from here on nobody does."""

    def describe(self) -> str:
        return "find no other way to what its profile hides"

    def execute(self, descriptors: Descriptors) -> None:
        for place in (view.TREES, view.HIDDEN):
            mount.mount("/run/empty", place, "", mount.MS_BIND)


def in_memory(profile: Profile) -> int:
    """How much may change in a copy-on-write workspace whose changes lie in memory.

    Never more than in /tmp. Both together are still less than the memory, of which tmp and shm are at most half.
    """
    return min(profile.files.bound or profile.resources.tmp, profile.resources.tmp)


def plan(
    profile: Profile, trees: tuple[str, ...], parted: tuple[int, ...] = (), kept: tuple[tuple[int, str], ...] = (), *,
    workspace_later: bool = False, image: bool = False,
) -> list[Step]:  # fmt: skip
    """The mounts of one kernel, in order. `trees`: what the view shares between sandboxes; empty for no overlay.

    `parted`: the numbers of the view's trees of which it hides something; `kept`: those that each sandbox has to show.
    `image`: there is one for what changes.
    """
    steps: list[Step] = [MountProc()] if profile.layers.pid != "off" else []
    run = profile.capabilities.native_code
    steps.append(MountScratch(profile.resources.tmp, profile.resources.shm, run))
    if profile.files.workspace != "none" and not workspace_later:
        size = profile.files.size if image or profile.files.bound is None else in_memory(profile)
        steps.append(PlaceWorkspace(profile.files.workspace, run, size, image))
    if profile.files.mounts:
        steps.append(PlaceMounts(tuple(grant.target for grant in profile.files.mounts)))
    steps.append(CloseScratch())
    if kept:
        steps.append(ShowTrees(kept))
    if trees:
        steps.append(OverlayTrees(trees, parted))
    if parted:
        steps.append(CoverTrees())
    return steps
