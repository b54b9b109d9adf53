"""The cgroup layer, asked on this machine's own hierarchies: every group is a child of ours, and gone afterwards."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated_python.errors import HostError, RequestError
from isolated_python.layers import cgroup
from isolated_python.layers.cgroup import files, systemd, v2
from isolated_python.linux import cgroups
from isolated_python.policy.profile import MiB, Resources


def can_choose() -> bool:
    try:
        cgroup.choose()
    except HostError:
        return False
    return True


here = pytest.mark.skipif(not can_choose(), reason="no cgroup here may be used by whoever runs the tests")


@pytest.fixture
def parent() -> Iterator[cgroup.Parent]:
    parent = cgroup.choose().open()
    yield parent
    parent.close()
    assert left_of(parent.name) == []


def left_of(name: str) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").rglob(name)]


class Child:
    """A Python process that runs its source when it is told to, once it has been put where it belongs."""

    def __init__(self, source: str) -> None:
        command = [sys.executable, "-I", "-S", "-c", f"input()\n{source}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def go(self) -> tuple[int, str]:
        """Its status and what it said."""
        said, _ = self.process.communicate("\n", timeout=60)
        return self.process.returncode, said

    def line(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def wait(self) -> int:
        self.process.communicate(timeout=60)
        return self.process.returncode


@here
def test_what_outgrows_its_memory_is_killed_and_counted(parent: cgroup.Parent) -> None:
    """A process that wants 200 MiB of 64 dies of SIGKILL, and the group knows why."""
    group = parent.group("memory", Resources(memory=64 * MiB))
    child = Child("hog = bytearray(200 << 20)")
    group.attach(child.pid)

    status, _ = child.go()

    events, usage = group.events(), group.usage()
    group.remove()
    assert status == -signal.SIGKILL
    assert events.oom_kills == 1
    assert events.oom_failures > 0
    assert 32 * MiB < usage.memory_peak <= 64 * MiB


@here
def test_a_child_that_is_killed_for_memory_leaves_its_parent_alive(parent: cgroup.Parent) -> None:
    """The kernel picks the hog and no one else; the counter is how the two are told apart."""
    group = parent.group("child", Resources(memory=64 * MiB))
    hog = "import os; pid = os.fork()\nif not pid: hog = bytearray(200 << 20)\nprint(os.waitpid(pid, 0)[1])"
    child = Child(hog)
    group.attach(child.pid)

    status, said = child.go()

    kills = group.events().oom_kills
    group.remove()
    assert (status, said.strip()) == (0, str(int(signal.SIGKILL)))
    assert kills == 1


@here
def test_one_process_too_many_is_refused_and_counted(parent: cgroup.Parent) -> None:
    """With two tasks granted, the second fork fails with EAGAIN."""
    group = parent.group("pids", Resources(processes=2))
    twice = (
        "import os, signal\nfirst = os.fork()\nif not first: signal.pause()\n"
        "try: os.fork()\nexcept BlockingIOError: print('refused')\nos.kill(first, 9)"
    )
    child = Child(twice)
    group.attach(child.pid)

    status, said = child.go()

    events = group.events()
    group.kill()
    group.remove()
    assert (status, said.strip()) == (0, "refused")
    assert events.processes_refused == 1


@here
def test_cpu_is_rationed(parent: cgroup.Parent) -> None:
    """A fifth of a core, busy for a fifth of a second of its own time, takes most of a second."""
    group = parent.group("cpu", Resources(cpu=0.2))
    busy = (
        "import time\nt, end = time.monotonic(), time.process_time() + 0.2\n"
        "while time.process_time() < end: pass\nprint(time.monotonic() - t)"
    )
    child = Child(busy)
    group.attach(child.pid)

    status, said = child.go()

    used = group.usage().cpu_seconds
    group.remove()
    assert status == 0
    assert float(said) > 0.5
    assert 0.1 < used < 1


@here
def test_kill_leaves_nothing_alive(parent: cgroup.Parent) -> None:
    """A process, its child and its grandchild all die, also the one that does not listen to anything else."""
    group = parent.group("kill", Resources())
    tree = (
        "import os, signal\n[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]\n"
        "os.fork(); os.fork()\nprint('here', flush=True)\nsignal.pause()"
    )
    child = Child(tree)
    group.attach(child.pid)
    assert child.line() == "here"
    opened = [os.pidfd_open(pid) for pid in group.processes()]

    group.kill()

    try:
        for descriptor in opened:
            assert select.select([descriptor], [], [], 10)[0]
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert child.wait() == -signal.SIGKILL
    group.remove()
    assert not any(os.path.exists(path) for path in group.paths)


@here
def test_kill_ends_a_storm_of_forks(parent: cgroup.Parent) -> None:
    """Processes that only fork and exit, faster than a list of them can be read, are all caught."""
    group = parent.group("storm", Resources(processes=64))
    storm = (
        "import os\nn = 0\nwhile True:\n    n += 1\n    try:\n"
        "        if n == 100: print('here', flush=True)\n"
        "        if os.fork(): os._exit(0)\n        os.fork()\n    except OSError: pass"
    )
    child = Child(storm)
    group.attach(child.pid)
    assert child.line() == "here"
    assert group.events().processes_refused > 0, "it has not grown to its limit"

    group.kill()
    group.remove()

    assert not any(os.path.exists(path) for path in group.paths)
    child.wait()


@here
def test_a_group_that_lives_on_is_not_removed(parent: cgroup.Parent) -> None:
    """remove() waits no longer than it is told to, says EBUSY, and can be asked again."""
    group = parent.group("busy", Resources())
    child = Child("")
    group.attach(child.pid)

    with pytest.raises(OSError, match="busy"):
        group.remove(patience=0.05)

    child.go()
    group.remove()
    group.remove()  # what is gone already is removed


@here
def test_limits_change_while_the_kernel_runs(parent: cgroup.Parent) -> None:
    """Up, down and away; but not below what is in use, which is refused with a way out."""
    group = parent.group("update", Resources(memory=256 * MiB))
    child = Child("hold = bytearray(100 << 20)\nprint('held', flush=True)\ninput()")
    group.attach(child.pid)
    assert child.line() == "held"

    group.update(Resources(memory=512 * MiB, processes=9, cpu=1.5))
    group.update(Resources(memory=200 * MiB, processes=None, cpu=None))
    with pytest.raises(RequestError, match="in use") as refused:
        group.update(Resources(memory=50 * MiB))
    group.update(Resources(memory=None))
    group.weight(800)

    status, _ = child.go()
    group.remove()
    assert refused.value.remedy
    assert status == 0


@here
def test_a_group_has_a_name_and_not_a_path(parent: cgroup.Parent) -> None:
    for id in ("../x", "", ".", "a/b", "a\nb"):
        with pytest.raises(ValueError, match="cannot be the name"):
            parent.group(id, Resources())
    with pytest.raises(FileExistsError):
        parent.group("twice", Resources()) and parent.group("twice", Resources())
    assert parent.group("thrice", Resources()).processes() == []


@here
def test_what_a_dead_supervisor_left_is_swept(parent: cgroup.Parent) -> None:
    """Its kernels are killed and its groups removed; those of a live one stay."""
    hierarchy = cgroup.choose()
    supervisor = Child("")
    name = cgroup.name_for(supervisor.pid)
    orphaned = hierarchy.open(name).group("kernel", Resources())
    kernel = Child("")
    orphaned.attach(kernel.pid)
    assert name not in hierarchy.sweep()
    supervisor.go()

    assert name in cgroup.sweep()

    assert kernel.wait() == -signal.SIGKILL
    assert left_of(name) == []
    assert left_of(parent.name)


@here
def test_the_same_pid_at_another_time_is_another_supervisor() -> None:
    """A name carries the start time, so that a reused pid protects nothing."""
    name = cgroup.name_for(os.getpid())
    assert not files.is_dead(name)
    assert files.is_dead(f"isolated-python-{os.getpid()}-1")
    assert not files.is_dead("somebody-elses")


def test_an_ordinary_user_is_told_what_to_do(ordinary) -> None:  # type: ignore[no-untyped-def]
    """Where nothing is delegated, the refusal names the cause and a remedy."""
    if cgroups.find(cgroups.own(), root=False).version == "v2" and os.geteuid() != 0:
        pytest.skip("a cgroup is delegated to whoever runs the tests")
    source = (
        "from isolated_python.layers import cgroup\nfrom isolated_python.errors import HostError\n"
        "try: cgroup.choose()\nexcept HostError as error: print(error.message, '|', error.remedy)"
    )

    cause, _, remedy = ordinary.python(source).stdout.partition(" | ")

    assert "root" in cause or "delegated" in cause or "handed" in cause
    assert 'cgroup = "prefer"' in remedy


UNIFIED = cgroups.own().v2
unified = pytest.mark.skipif(not UNIFIED or not os.access(UNIFIED, os.W_OK), reason="no v2 folder here may be written")


@pytest.fixture
def bare() -> Iterator[str]:
    """A v2 group of our own. Where its controllers are on v1, everything but the limits still works."""
    folder = f"{UNIFIED}/test-{os.getpid()}"
    os.mkdir(folder)
    yield folder
    os.rmdir(folder)


@unified
def test_v2_kills_all_at_once_and_waits_for_the_last(bare: str) -> None:
    """cgroup.kill ends a tree of processes; remove() returns when the group is gone."""
    os.mkdir(f"{bare}/kernel")
    group = v2.Group(f"{bare}/kernel", "kernel")
    child = Child("import os, signal\nos.fork(); os.fork()\nprint('here', flush=True)\nsignal.pause()")
    group.attach(child.pid)
    assert child.line() == "here"
    assert child.pid in group.processes()
    with pytest.raises(OSError, match="busy"):
        group.remove(patience=0.05)

    group.kill()
    group.remove()

    assert child.wait() == -signal.SIGKILL
    assert group.paths == (f"{bare}/kernel",)
    assert not os.path.exists(group.folder)
    group.kill()  # what is gone already is dead


@unified
def test_v2_sweeps_what_a_dead_supervisor_left(bare: str) -> None:
    """Its kernels are killed, its groups removed; a stranger's group is left alone."""
    name = f"isolated-python-{os.getpid()}-1"
    for folder in ("stranger", name, f"{name}/kernel"):
        os.mkdir(f"{bare}/{folder}")
    kernel = Child("")
    v2.Group(f"{bare}/{name}/kernel", "kernel").attach(kernel.pid)

    assert v2.Hierarchy(bare).sweep() == [name]

    assert kernel.wait() == -signal.SIGKILL
    assert files.children(bare) == ["stranger"]
    os.rmdir(f"{bare}/stranger")


@unified
def test_v2_moves_the_processes_of_its_group_out_of_the_way_and_back(bare: str) -> None:
    """What cannot be divided is left as it was found: no leaf, and every process where it was."""
    if {"memory", "pids", "cpu"} <= set(files.read(f"{bare}/cgroup.controllers").split()):
        pytest.skip("this group can be divided")
    child = Child("")
    v2.Group(bare, "").attach(child.pid)

    with pytest.raises(HostError, match="cannot be divided"):
        v2.Hierarchy(bare).open()

    assert files.children(bare) == []
    assert files.processes(f"{bare}/cgroup.procs") == [child.pid]
    child.go()


def test_v2_is_found_where_it_is_handed_down(tmp_path: Path) -> None:
    """Our own group, or the one above when we sit in a leaf that a colleague made; never one that has processes."""
    scope = tmp_path / "scope"
    for folder in (tmp_path, scope, scope / cgroups.LEAF):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu io memory pids\n")
        for name in ("procs", "subtree_control", "type"):
            (folder / f"cgroup.{name}").write_text("")
    top = str(tmp_path)

    assert cgroups.find(cgroups.Own(v2=str(scope), v2_top=top), root=False).folders == (("", str(scope)),)
    leaf = cgroups.Own(v2=str(scope / cgroups.LEAF), v2_top=top)
    assert cgroups.find(leaf, root=False).folders == (("", str(scope)),)

    (scope / "cgroup.controllers").write_text("memory pids\n")
    assert cgroups.find(leaf, root=False).folders == (("", top),)
    (tmp_path / "cgroup.procs").write_text("1\n")
    refused = cgroups.find(leaf, root=False)
    assert (refused.version, refused.cause) == ("none", f"the cgroup {scope} is not handed cpu")
    assert "Delegate=cpu memory pids" in refused.remedy  # a further scope would lack it as well


@pytest.fixture
def plain(tmp_path: Path) -> v2.Group:
    """A folder with the files of a v2 group: what is written and read, letter by letter, without the kernel's part."""
    for name, text in {
        "memory.max": "",
        "memory.swap.max": "",
        "memory.current": "1048576\n",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
        "pids.max": "",
        "pids.current": "4\n",
        "pids.events": "max 5\n",
        "cpu.max": "",
        "cpu.weight": "",
        "cpu.stat": "usage_usec 1500000\nuser_usec 1\nsystem_usec 1\n",
    }.items():
        (tmp_path / name).write_text(text)
    return v2.Group(str(tmp_path), "plain")


@pytest.mark.parametrize(
    ("resources", "written"),
    [
        (Resources(memory=64 * MiB, processes=9, cpu=1.5), ("67108864", "0", "9", "150000 100000")),
        (Resources(memory=None, processes=None, cpu=None), ("max", "max", "max", "max 100000")),
        (Resources(memory=4096, processes=1, cpu=0.001), ("4096", "0", "1", "1000 100000")),
    ],
)
def test_v2_writes_its_limits_as_the_kernel_reads_them(
    plain: v2.Group, resources: Resources, written: tuple[str, ...]
) -> None:
    plain.limit(resources)
    names = ("memory.max", "memory.swap.max", "pids.max", "cpu.max")
    assert tuple(files.read(f"{plain.folder}/{name}") for name in names) == written


def test_v2_reads_usage_and_events_as_the_kernel_writes_them(plain: v2.Group) -> None:
    """memory.peak is missing before linux 5.19: then the most that was seen is the peak."""
    assert plain.usage() == cgroup.Usage(memory=1 * MiB, memory_peak=1 * MiB, cpu_seconds=1.5, processes=4)
    assert plain.events() == cgroup.Events(oom_kills=2, oom_failures=3, processes_refused=5)


def test_v2_refuses_a_limit_below_what_is_in_use(plain: v2.Group) -> None:
    """The kernel would kill for it, so the old limit stays."""
    with pytest.raises(RequestError, match="1048576 bytes of memory are in use"):
        plain.update(Resources(memory=4096))
    assert files.read(f"{plain.folder}/memory.max") == ""
    plain.weight(800)
    assert files.read(f"{plain.folder}/cpu.weight") == "800"


HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,pids
35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_our_own_folders_are_found_behind_every_kind_of_mount() -> None:
    """Controllers mounted together, a mount that shows a part, a name with a space, a group above the mount."""
    own = cgroups.parse(
        "5:pids:/a\n4:cpu,cpuacct:/\n3:memory:/docker/ab/in\n2:freezer:/x\n1:name=systemd:/\n0::/b", HYBRID
    )

    assert dict(own.v1) == {
        "pids": "/sys/fs/cgroup/with space/a",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory/in",
    }
    assert (own.v2, own.v2_top) == ("/sys/fs/cgroup/unified/b", "/sys/fs/cgroup/unified")
    assert cgroups.parse("3:memory:/elsewhere\n0::/../up", HYBRID) == cgroups.Own()


def test_systemd_is_asked_for_a_delegated_scope() -> None:
    """The message is what systemd documents, and it can be put on the wire."""
    message = systemd.request(4711)

    name, mode, properties, auxiliary = message.body
    assert (name, mode, auxiliary) == ("isolated-python-4711.scope", "fail", [])
    wanted = {"PIDs": ("au", [4711]), "Delegate": ("b", True), "CollectMode": ("s", "inactive-or-failed")}
    assert wanted.items() <= dict(properties).items()
    assert b"StartTransientUnit" in message.serialise(serial=1)


def test_to_wait_ahead_of_a_move_moves_nobody() -> None:
    before = Path("/proc/self/cgroup").read_text()
    here = cgroup.here()
    if here is not None:
        for _ in range(2):
            os.write(here, b"0")
        os.close(here)
    assert Path("/proc/self/cgroup").read_text() == before
