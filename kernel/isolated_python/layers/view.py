"""The view: a root of our own, made once per zygote, that shows the system's programs and nothing of its people."""

from __future__ import annotations

import contextlib
import functools
import os
import stat

from isolated_python.errors import HostError, ProtocolError
from isolated_python.layers.step import Descriptors, Step
from isolated_python.linux import mount
from isolated_python.linux.process import Person

STAGE = "/tmp"  # any folder that every host has; only this mount namespace sees what lies over it

# What every program expects of the system, read-only. Where the host has a link, the view has the same link.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

# Of /etc only what is the same for everybody and needed by libraries; who and where are generated.
SHARED_ETC = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/fonts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/python3",
    "/etc/python3.11",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/R",
    "/etc/julia",
)
GENERATED_ETC = {
    "passwd": "user:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "user:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "hostname": "sandbox\n",
    "resolv.conf": "",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
CPU_TOPOLOGY = "/sys/devices/system/cpu"  # numpy, torch and joblib count the cores here

# Empty folders that each sandbox puts a mount of its own over.
WORKSPACE = "/mnt/workspace"
PLACES = ("/dev/pts", "/dev/shm", "/home/user", WORKSPACE, "/proc", "/run/empty", "/run/lower", "/tmp")

# Where the parts of an overlay lie that leaves out what is not granted: of tree N the whiteouts, and the tree itself.
HIDDEN, TREES = "/run/hidden", "/run/trees"
# The zygote and every sandbox put a mount of their own over these. A tree that lies below one is kept elsewhere, under
# its number, to be shown at its own place again: see show.
COVERED = ("/tmp", "/home/user", "/dev/shm")
KEPT = "/run/kept"
WHITEOUT = (stat.S_IFCHR, os.makedev(0, 0))  # linux/fs.h: what this name hides is not there, for an overlay
LISTS = "/etc/isolated-python/modules.json"  # what a cell may import, for the guard

Hidden = tuple[tuple[str, tuple[str, ...]], ...]  # folder → names in it that are not there

READ_ONLY = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV


class BuildRoot(Step):
    """Make the root of the view from our own tmpfs, and move into it."""

    trees: tuple[str, ...]  # further host folders shown at their own place: interpreters, environments
    places: tuple[str, ...]  # further mount points that sandboxes need
    hidden: Hidden = ()
    modules: str = ""  # for LISTS; empty where every module is granted
    person: Person | None = None  # with whose rights the trees are looked for; None: with ours

    def describe(self) -> str:
        count = sum(len(names) for _, names in self.hidden)
        without = f", without {count} files and folders that are not granted" if count else ""
        trees = ", ".join(self.trees) or "nothing more"
        return f"see a root of its own: the system's programs and {trees}, read-only{without}"

    def execute(self, descriptors: Descriptors) -> None:
        os.umask(0o022)  # others, whose root this is, must find their way
        mount.make_private()
        # Everything is opened before the stage hides what lies beneath it.
        trees = {path: _detached(path, self.person) for path in shown(self.trees)}
        etc = {path: _detached(path) for path in SHARED_ETC if os.path.exists(path)}
        devices = {name: _device(name, *numbers) for name, numbers in DEVICES.items()}
        topology = _detached(CPU_TOPOLOGY)
        proc = _open_clone("/proc")

        mount.mount("tmpfs", STAGE, "tmpfs", mount.MS_NOSUID | mount.MS_NODEV, "mode=755,size=4m")
        os.chdir(STAGE)
        for place in (*PLACES, *self.places):
            os.makedirs(STAGE + place, exist_ok=True)
        os.symlink("mnt/workspace", f"{STAGE}/workspace")  # for whoever types it
        for path in SYSTEM:
            if os.path.islink(path):
                os.symlink(os.readlink(path), STAGE + path)
        kept = covered(tuple(trees))
        for number, (path, tree) in enumerate(trees.items()):
            names = below(path, self.hidden)
            where = f"{KEPT}/{number}" if (number, path) in kept else path
            if names:
                _leave_out(tree, where, number, names)
            else:
                _place(tree, where)
        for _, path in kept:
            os.makedirs(STAGE + path, exist_ok=True)
        for path, tree in etc.items():
            _place(tree, path)
        for name, device in devices.items():
            _place(device, f"/dev/{name}", is_file=True)
        _place(topology, CPU_TOPOLOGY)
        mount.place(proc, STAGE + "/proc")
        for name, target in {
            "ptmx": "pts/ptmx",
            "fd": "/proc/self/fd",
            "stdin": "/proc/self/fd/0",
            "stdout": "/proc/self/fd/1",
            "stderr": "/proc/self/fd/2",
        }.items():
            os.symlink(target, f"{STAGE}/dev/{name}")
        for name, text in GENERATED_ETC.items():
            with open(f"{STAGE}/etc/{name}", "w") as file:
                file.write(text)
        if self.modules:
            os.mkdir(STAGE + os.path.dirname(LISTS))
            with open(STAGE + LISTS, "w") as file:
                file.write(self.modules)
        mount.pivot(STAGE)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mount.set_attributes(root, READ_ONLY)
        os.close(root)
        # For what is imported and built ahead; every sandbox puts its own over them.
        for place in ("/tmp", "/home/user"):
            mount.mount("tmpfs", place, "tmpfs", mount.MS_NOSUID | mount.MS_NODEV, "mode=1777,size=64m")
        show(kept)


def plan(
    trees: tuple[str, ...],
    places: tuple[str, ...],
    hidden: Hidden = (),
    modules: str = "",
    person: Person | None = None,
) -> list[Step]:
    return [BuildRoot(trees, places, hidden, modules, person)]


def check(hidden: Hidden) -> None:
    """Each name is one that a folder of the view can have. Raises ProtocolError: a whiteout is made at its path."""
    for folder, names in hidden:
        for path in (f"{folder}/{name}" for name in names):
            if not path.startswith("/") or os.path.normpath(path) != path or "\0" in path:
                raise ProtocolError(f"{path[:200]!r} is no path that can be hidden")


@functools.lru_cache(maxsize=256)
def private(trees: tuple[str, ...]) -> Hidden:
    """Jupyter's configuration in the prefixes of a view: a server's may hold its tokens and passwords.

    Looked for once: a zygote's view and its sandboxes' own overlays must agree. What a kernel needs of Jupyter is in
    share/jupyter: templates, kernelspecs.
    """
    prefixes = dict.fromkeys((*trees, "/usr", "/usr/local"))
    return tuple((f"{prefix}/etc", ("jupyter",)) for prefix in prefixes if os.path.isdir(f"{prefix}/etc"))


@functools.lru_cache(maxsize=256)
def below(tree: str, hidden: Hidden) -> tuple[str, ...]:
    """The paths that are hidden in a tree, relative to it, none below another."""
    paths = sorted(f"{folder}/{name}" for folder, names in hidden for name in names)
    found: list[str] = []
    for path in paths:
        if path.startswith(tree.rstrip("/") + "/"):
            path = path[len(tree.rstrip("/")) + 1 :]
            if not found or not path.startswith(found[-1] + "/"):
                found.append(path)
    return tuple(found)


def shown(trees: tuple[str, ...]) -> tuple[str, ...]:
    """The host folders of a view: each once, none that lies below another, links left to be links."""
    wanted = [path for path in (*SYSTEM, *trees) if os.path.isdir(path) and not os.path.islink(path)]
    return tuple(
        sorted({p for p in wanted if not any(p != other and p.startswith(other.rstrip("/") + "/") for other in wanted)})
    )


def covered(trees: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """Those of the shown trees that lie below COVERED, each with its number. Raises HostError for one that cannot be
    shown: the workspace is not ours to make folders in.
    """
    for tree in trees:
        if f"{tree}/".startswith(f"{WORKSPACE}/"):
            raise HostError(
                f"the environment in {tree!r} lies where a sandbox has its workspace", remedy="install it elsewhere"
            )
    return tuple(
        (number, tree) for number, tree in enumerate(trees) if any(tree.startswith(f"{place}/") for place in COVERED)
    )


def show(kept: tuple[tuple[int, str], ...]) -> None:
    """Show trees at their own places, over which something was mounted."""
    for number, path in kept:
        os.makedirs(path, exist_ok=True)
        mount.mount(f"{KEPT}/{number}", path, "", mount.MS_BIND | mount.MS_REC)


def _leave_out(tree: int, path: str, number: int, names: tuple[str, ...]) -> None:
    """Show a tree through an overlay whose upper layer says of each of `names` that it is not there.

    Costs nothing per kernel: a sandbox's own overlay takes the same two layers, and a look-up stops at the first.
    """
    whiteouts = f"{STAGE}{HIDDEN}/{number}"
    os.makedirs(whiteouts)
    for name in names:
        os.makedirs(os.path.dirname(f"{whiteouts}/{name}"), exist_ok=True)
        os.mknod(f"{whiteouts}/{name}", *WHITEOUT)
    _place(tree, f"{TREES}/{number}")
    os.makedirs(STAGE + path, exist_ok=True)
    flags = mount.MS_RDONLY | mount.MS_NOSUID | mount.MS_NODEV
    mount.mount("overlay", STAGE + path, "overlay", flags, f"lowerdir={whiteouts}:{STAGE}{TREES}/{number}")


def _open_clone(path: str, person: Person | None = None) -> int:
    """With what is mounted below it: systemd, say, has an automount in /proc, and we may not show /proc without it."""
    with person.acting() if person else contextlib.nullcontext():
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount.clone_tree(descriptor, recursive=True)
    finally:
        os.close(descriptor)


def _detached(path: str, person: Person | None = None) -> int:
    tree = _open_clone(path, person)
    mount.set_attributes(tree, READ_ONLY, recursive=True)
    return tree


def _device(name: str, major: int, minor: int) -> int:
    """The host's device node, after a look that it is the device it claims to be."""
    node = os.stat(f"/dev/{name}")
    if not stat.S_ISCHR(node.st_mode) or (os.major(node.st_rdev), os.minor(node.st_rdev)) != (major, minor):
        raise OSError(f"/dev/{name} on this host is not the character device {major}:{minor}")
    return _open_clone(f"/dev/{name}")


def _place(tree: int, path: str, *, is_file: bool = False) -> None:
    target = STAGE + path
    if is_file or not stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o444))
    else:
        os.makedirs(target, exist_ok=True)
    mount.place(tree, target)
    os.close(tree)
