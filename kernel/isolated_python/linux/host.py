"""
What this machine can do, asked of the kernel itself and not guessed from its version.

Everything is tried once, in a throw-away child: what it makes ends with it. Costs about 10 ms.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from isolated_python.linux import cgroups, container, landlock, loop, mount, namespaces, prctl, process, seccomp
from isolated_python.record import Record, asdict

CAP_SYS_ADMIN = 21
EVERYBODY = 4294967295  # ids in the map of the first user namespace
NOBODY = 65534
ALLOW_ALL = bytes.fromhex("060000000000ff7f")  # struct sock_filter: BPF_RET, SECCOMP_RET_ALLOW

# Layers that need more than the probe of their own name.
NEEDS = {
    "mount": ("mount", "tmpfs", "detached", "chroot", "pivot_root"),
    "pid": ("pid", "clone3", "fresh_proc"),
    "uts": ("uts", "hostname"),
}

FORMATS = ("/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4")  # what makes a file system
STAGE = "/proc"  # the one folder that every host has; only the child sees what is mounted there


class Probe(Record):
    """One question to the kernel. `ask` raises OSError where the answer is no."""

    name: str
    question: str
    ask: Callable[[], object]
    remedy: str


class Lack(Record):
    """What this machine cannot do, why not, and what a person can do about it."""

    name: str
    cause: str
    remedy: str


class Host(Record):
    """What this machine can do for this process. Every answer that is not a lack is a yes."""

    release: str
    machine: str
    uid: int
    root: bool  # CAP_SYS_ADMIN in the first user namespace: a mere uid of 0 is not enough
    landlock_abi: int  # 0: none
    cgroup: str  # "v1", "v2" or "none"
    core_pattern: str  # of /proc/sys/kernel
    missing: tuple[Lack, ...] = ()

    def can(self, name: str) -> bool:
        """Whether the probe or layer `name` was answered with yes. What nobody asks for can be had anywhere."""
        return not self.lacks(name)[0]

    def lacks(self, name: str) -> tuple[str, str]:
        """Cause and remedy; two empty strings where nothing is missing."""
        needed = NEEDS.get(name, (name,))
        return next(((lack.cause, lack.remedy) for lack in self.missing if lack.name in needed), ("", ""))

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> Host:
        return Host(**{**wire, "missing": tuple(Lack(**lack) for lack in wire["missing"])})


# ---- the questions ---------------------------------------------------------------------------------------------------


def _unshare(name: str) -> Callable[[], None]:
    return lambda: namespaces.unshare(namespaces.FLAGS[name])


def _hostname() -> None:
    namespaces.set_hostname("probe")


def _clone3() -> None:
    child = process.fork(0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _fresh_proc() -> None:
    mount.mount("proc", STAGE, "proc", mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC)


def _tmpfs() -> None:
    mount.mount("tmpfs", STAGE, "tmpfs", mount.MS_NOSUID | mount.MS_NODEV, "size=64k")
    for name in ("one", "two", "upper", "work", "merged"):
        os.mkdir(f"{STAGE}/{name}")


def _detached() -> None:
    folder = os.open(f"{STAGE}/one", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    copy = mount.clone_tree(folder)
    mount.set_attributes(copy, mount.MOUNT_ATTR_RDONLY)
    mount.place(copy, f"{STAGE}/two")
    mount.detach(f"{STAGE}/two")
    os.close(copy)
    os.close(folder)


def _overlay() -> None:
    mount.mount("overlay", f"{STAGE}/merged", "overlay", 0, f"lowerdir={STAGE}/one:{STAGE}/two")


def _copy_on_write() -> None:
    folders = f"lowerdir={STAGE}/one,upperdir={STAGE}/upper,workdir={STAGE}/work,userxattr"
    mount.mount("overlay", f"{STAGE}/merged", "overlay", 0, folders)


def _pivot_root() -> None:
    mount.pivot(STAGE)


def _seccomp() -> None:
    prctl.set_no_new_privs()
    seccomp.load(ALLOW_ALL)


def _seccomp_notify() -> None:
    listener = seccomp.load(ALLOW_ALL, notify=True)
    if listener is not None:
        os.close(listener)


def _memfd() -> None:
    os.close(os.memfd_create("probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))


def _pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


NEWER = "use a newer kernel"
CALLS, PROC = container.CALLS, container.PROC  # if this is a container, it may withhold these

# In this order: the child leaves the namespaces one by one, and is process 1 of the last.
USER = Probe("user", "may an ordinary user make a user namespace?", _unshare("user"), CALLS)
INSIDE = (
    Probe("mount", "a mount namespace in it?", _unshare("mount"), CALLS),
    Probe("net", "a network namespace?", _unshare("net"), CALLS),
    Probe("ipc", "an ipc namespace?", _unshare("ipc"), CALLS),
    Probe("uts", "a uts namespace?", _unshare("uts"), CALLS),
    Probe("cgroup_namespace", "a cgroup namespace?", _unshare("cgroup_namespace"), CALLS),
    Probe("time", "a time namespace (linux 5.6)?", _unshare("time"), NEWER),
    Probe("hostname", "may it name the machine there?", _hostname, CALLS),
    # Before the next: the first child in a pid namespace takes it with it.
    Probe("clone3", "may it start processes in new namespaces at once (linux 5.5)?", _clone3, CALLS),
    Probe("pid", "a pid namespace?", _unshare("pid"), CALLS),
)
PROCESS_1 = (
    Probe("fresh_proc", "may it mount a /proc of its own?", _fresh_proc, PROC),
    Probe("tmpfs", "may it mount a tmpfs?", _tmpfs, CALLS),
    Probe("detached", "may it mount by descriptor (linux 5.12)?", _detached, CALLS),
    Probe("overlay", "may it mount a read-only overlay (linux 5.11)?", _overlay, f"modprobe overlay, or {NEWER}"),
    Probe("copy_on_write", "may it mount a writable overlay?", _copy_on_write, f"modprobe overlay, or {NEWER}"),
    Probe("chroot", "may it narrow its root, as the relay does?", lambda: os.chroot("/"), CALLS),
    Probe("pivot_root", "may it change its root?", _pivot_root, CALLS),
)
ANYWHERE = (
    Probe("memfd", "are there files in memory?", _memfd, NEWER),
    Probe("pidfd", "are there descriptors of processes (linux 5.3)?", _pidfd, NEWER),
    Probe("seccomp", "can system calls be filtered?", _seccomp, "use a kernel with CONFIG_SECCOMP_FILTER"),
    Probe("seccomp_notify", "can refused calls be told (linux 5.0)?", _seccomp_notify, NEWER),
)
IDMAP = Probe(
    "idmap", "can the root file system be mounted with other ids?", lambda: None, f"{NEWER}, or a volume for it"
)

# Switches that a distribution or a site may have thrown against user namespaces: file, thrown value, what undoes it.
SWITCHES = (
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or write an AppArmor profile that allows userns",
    ),
)


# ---- the asking ------------------------------------------------------------------------------------------------------


def probe() -> Host:
    """Ask everything. Called while this process has one thread: it forks."""
    root = privileged()
    abi = _landlock()
    missing = list(_ask_all(root))
    found = cgroups.find(cgroups.own(), root=root)  # last: it waits for whoever is being moved on this machine
    if found.version == "none":
        missing.append(Lack("cgroup", found.cause, found.remedy))
    if not abi:
        remedy = 'boot with lsm=landlock,… (linux 5.13), or write landlock = "prefer" under [layers] in the profile'
        missing.append(Lack("landlock", "this kernel has no Landlock, or it is not switched on", remedy))
    image = _image(root)
    if image is not None:
        missing.append(image)
    about = os.uname()
    return Host(
        release=about.release,
        machine=about.machine,
        uid=os.geteuid(),
        root=root,
        landlock_abi=abi,
        cgroup=found.version,
        # Where it cannot be read it may be a pipe, which is the stricter case.
        core_pattern=_line("/proc/sys/kernel/core_pattern") or "|",
        missing=tuple(missing),
    )


def asking() -> Callable[[], Host]:
    """Begin to ask everything, in a child. What is returned waits for the answers. Called with one thread, as above."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            os.write(theirs, json.dumps(probe().to_wire()).encode())
        finally:
            os._exit(0)
    os.close(theirs)

    def answers() -> Host:
        with open(ours, encoding="utf-8") as file:
            told = file.read()
        os.waitpid(child, 0)
        return Host.from_wire(json.loads(told)) if told else probe()

    return answers


def privileged() -> bool:
    """Whether this process holds CAP_SYS_ADMIN over the whole machine."""
    ids = [int(word) for word in _line("/proc/self/uid_map").split()]
    if ids != [0, 0, EVERYBODY]:
        return False
    with open("/proc/self/status", encoding="utf-8") as file:
        held = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return bool(held >> CAP_SYS_ADMIN & 1)


def _image(root: bool) -> Lack | None:
    """Why no file can be mounted as a disk, if so."""
    if not root:
        return Lack(
            "image", "only root can mount a file as a disk", "use the service of this machine, which root starts"
        )
    if formatter() is None:
        return Lack("image", "mkfs.ext4 is not installed", "apt-get install e2fsprogs")
    try:
        os.close(os.open(loop.CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = f"modprobe loop; if this is a container, give it {loop.CONTROL} and loop devices"
        return Lack("image", f"{loop.CONTROL}: {error.strerror}", remedy)
    return None


def formatter() -> str | None:
    return next((path for path in FORMATS if os.access(path, os.X_OK)), None)


def _landlock() -> int:
    try:
        return landlock.abi()
    except OSError:
        return 0


def _ask_all(root: bool) -> Iterator[Lack]:
    asked = [USER, *INSIDE, *PROCESS_1, *ANYWHERE, *([IDMAP] if root else [])]
    answers = _ask_a_child(root)
    for question in asked:
        if question.name not in answers:
            cause, remedy = next(
                (_explain(other, *answers[other.name]) for other in asked if answers.get(other.name, (0, ""))[0]),
                ("the child that asks the kernel did not come back", container.repair(CALLS)),
            )
            yield Lack(question.name, f"{question.question} cannot be asked: {cause}", remedy)
        elif answers[question.name][0]:
            yield Lack(question.name, *_explain(question, *answers[question.name]))


def _explain(question: Probe, number: int, words: str) -> tuple[str, str]:
    """Cause and remedy of a no, in the terms of whoever can change it."""
    if question is USER and number == errno.EPERM and words.startswith("writing ") and os.geteuid() == 0:
        # Who maps an outer uid 0 must hold this since linux 5.12: file capabilities are root's, in any namespace.
        return words, "run the server as an ordinary user, or let its root keep CAP_SETFCAP"
    if question is USER or (number in (errno.EPERM, errno.EACCES) and question in INSIDE + PROCESS_1):
        for file, thrown, remedy in SWITCHES:
            if _line(f"/proc/sys/{file}") == thrown:
                return f"{words} ({file.replace('/', '.', 1)} is {thrown})", remedy
    if number == errno.ENOSPC and question in (USER, *INSIDE):
        return f"{words} (too many namespaces)", "raise the limits user.max_*_namespaces with sysctl"
    if number == errno.EINVAL and question in (USER, *INSIDE):
        return f"{words} (this kernel was built without it)", NEWER
    if question.remedy in (CALLS, PROC):
        return words, container.repair(question.remedy)
    return words, question.remedy


def _ask_a_child(root: bool) -> dict[str, tuple[int, str]]:
    """Each probe's name with errno and words; errno 0 is a yes. What was never asked is not in it."""
    answers: dict[str, tuple[int, str]] = {}
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    wait, go = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            os.close(go)
            _in_the_child(theirs, wait, root)
        finally:
            os._exit(0)
    os.close(theirs)
    os.close(wait)
    try:
        with open(ours, encoding="utf-8") as lines:
            for line in lines:
                name, number, words = line.rstrip("\n").split("\t")
                answers[name] = (int(number), words)
                if name != "user":
                    continue
                if number == "0":
                    # An ordinary user may write the map of a single id, their own; root does it for whom it became.
                    answers["user"] = _no(lambda: _map(child, root))
                    if root:
                        answers["idmap"] = _no(lambda: _map_a_mount(child))
                os.write(go, b"." if answers["user"][0] == 0 else b"!")
    finally:
        os.close(go)
        os.waitpid(child, 0)
    return answers


def _in_the_child(up: int, wait: int, root: bool) -> None:
    if root:
        # The sandbox is made by someone without rights, also where the supervisor has all of them.
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _tell(up, USER)
    if os.read(wait, 1) == b".":
        for question in INSIDE:
            _tell(up, question)
        first = os.fork()
        if first == 0:
            mount.make_private()
            for question in PROCESS_1:
                _tell(up, question)
            os._exit(0)
        os.waitpid(first, 0)
    for question in ANYWHERE:
        _tell(up, question)


def _tell(up: int, question: Probe) -> None:
    number, words = _no(question.ask)
    os.write(up, f"{question.name}\t{number}\t{words}\n".encode())


def _no(ask: Callable[[], object]) -> tuple[int, str]:
    """Errno and words of a refusal; (0, "") where there was none."""
    try:
        ask()
    except OSError as error:
        return error.errno or errno.EIO, " ".join((error.strerror or str(error)).split())
    return 0, ""


def _map(child: int, root: bool) -> None:
    uid, gid = (NOBODY, NOBODY) if root else (os.geteuid(), os.getegid())
    namespaces.map_ids(child, [(0, uid, 1)], [(0, gid, 1)])


def _map_a_mount(child: int) -> None:
    user = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copy = mount.clone_tree(folder)
        try:
            mount.set_attributes(copy, mount.MOUNT_ATTR_IDMAP, user_namespace=user)
        finally:
            os.close(copy)
    finally:
        os.close(folder)
        os.close(user)


def _line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return ""
