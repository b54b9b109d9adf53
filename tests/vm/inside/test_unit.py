"""The service under the system's manager, with cgroup v2: ordinary users' kernels, and the end of all of it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from isolated_python.engine.identities import COUNT, FIRST
from isolated_python.linux import cgroups
from isolated_python.policy import SOCKET

from tests.conftest import Ordinary
from tests.kernel.conftest import Server, outlive, serve, watched
from tests.machine import Caller
from tests.vm.inside.conftest import GROUP, PLACE, SECONDS, SETTINGS, UNITS, Unit, run, systemctl

SMALL = {"resources": {"memory": "200 MiB", "tmp": "16 MiB", "shm": "16 MiB", "processes": 40, "cpu": 0.5}}

# A child that no signal of its terminal's or its parent's ends.
DEAF = "import os, signal\nif not os.fork():\n    os.setsid(); signal.signal(15, signal.SIG_IGN); signal.pause()"

# linux/capability.h: modules, raw I/O, reboot, the clock, raw packets, audit, the kernel's log, bpf.
NEVER = {"SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_BOOT": 22, "SYS_TIME": 25, "NET_RAW": 13, "AUDIT_CONTROL": 30}
NEVER |= {"SYSLOG": 34, "BPF": 39}


@contextmanager
def served(who: Ordinary) -> Iterator[Server]:
    """A user's server. Nothing tells it of the service: it finds it, as every server of this machine does."""
    with serve(False, who) as server:
        server.cgroup = True
        yield server


def status(pid: int) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


def limits(pid: int) -> list[str]:
    """Of the group in which a process stands, as Linux's files say them."""
    return [Path(cgroups.own(pid).v2, name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")]


def test_the_units_say_nothing_that_systemd_does_not_know(unit: Unit) -> None:
    checked = subprocess.run(
        ["systemd-analyze", "verify", *(str(PLACE / name) for name in UNITS)], capture_output=True, text=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    assert "isolated-python.service" in run("systemd-analyze", "security", "--no-pager")


def test_the_first_who_knocks_starts_it_and_it_has_the_rights_of_its_unit(unit: Unit, alice: Ordinary) -> None:
    """None beyond; of the kernels in it, none has any."""
    assert unit.shows("ActiveState") == "inactive"
    with Caller(SOCKET, alice) as caller:
        sandbox = psutil.Process(caller.started())
        assert unit.shows("ActiveState") == "active"
        has = status(unit.main.pid)
        assert (has["Uid"].split()[0], has["Seccomp"]) == ("0", "2")
        assert [name for name, bit in NEVER.items() if int(has["CapBnd"], 16) >> bit & 1] == []
        for one in unit.processes():
            assert int(status(one.pid)["CapBnd"], 16) & ~int(has["CapBnd"], 16) == 0
        inside = status(sandbox.children()[0].pid)
        assert [inside[name] for name in ("CapEff", "CapBnd", "CapPrm")] == ["0" * 16] * 3
        assert (inside["Seccomp"], inside["NoNewPrivs"]) == ("2", "1")


def test_two_peoples_kernels_have_groups_below_the_unit_and_uids_of_their_own(
    unit: Unit, alice: Ordinary, bob: Ordinary
) -> None:
    """What is made is its owner's on the disk; neither of them finds the other, or the door."""
    with served(alice) as hers, served(bob) as his:
        kernels = {hers: hers.start()["pid"], his: his.start()["pid"]}
        uids = {psutil.Process(pid).uids().real for pid in kernels.values()}
        assert len(uids) == 2
        assert all(FIRST <= uid < FIRST + COUNT for uid in uids)
        assert all(GROUP in Path(cgroups.own(pid).v2).parents for pid in kernels.values())
        for mine, theirs, who in ((hers, his, alice), (his, hers, bob)):
            made = "import os; open('made', 'w').write('x'); print(os.getuid(), os.stat('made').st_uid)"
            assert mine.text(made) == "1000 1000"
            assert (mine.folder / "made").stat().st_uid == who.uid
            look = f"print(*map(os.path.exists, ({str(theirs.folder)!r}, {SOCKET!r}, '/sys/fs/cgroup')))"
            assert mine.text(look) == "False False False"
            processes = mine.text("print(*(name for name in os.listdir('/proc') if name.isdigit()))").split()
            assert len(processes) < 8
        # From outside, too: what is hers is nothing to bob, whoever it is that asks in his name.
        kill = f"import os\ntry: os.kill({kernels[hers]}, 9)\nexcept PermissionError: print('refused')"
        assert bob.python(kill).stdout.strip() == "refused"
        channels = f"import os\ntry: os.listdir({str(channels_of(unit, alice))!r})\nexcept PermissionError: print('no')"
        assert bob.python(channels).stdout.strip() == "no"
        assert hers.text("print(6 * 7)") == "42"


def channels_of(unit: Unit, who: Ordinary) -> Path:
    return next(Path(SOCKET).parent.glob(f"isolated-{unit.supervisor(who).pid}-*/clients"))


def test_limits_hold_and_are_named_in_the_cell(unit: Unit, alice: Ordinary, bob: Ordinary) -> None:
    """They are written in the kernel's own group, and outlive systemd's reading of its files anew."""
    with served(alice) as hers, served(bob) as his:
        his.start()
        pid = hers.start(overrides=SMALL)["pid"]
        wanted = [str(200 << 20), "40", "50000 100000"]
        assert limits(pid) == wanted
        systemctl("daemon-reload")
        assert limits(pid) == wanted
        fork = (
            "import os, signal\npids = []\ntry:\n"
            "    while True:\n        pids.append(os.fork())\n        if not pids[-1]: signal.pause()\n"
            "finally:\n    for pid in pids: os.kill(pid, 9); os.waitpid(pid, 0)"
        )
        assert "resources.processes" in hers.run(fork)["text"]
        died = hers.run("x = bytearray(400 << 20)")["text"]
        assert "200 MiB of memory" in died
        assert "resources.memory" in died
        assert his.text("print(6 * 7)") == "42"


def test_what_a_user_has_altogether_is_the_settings(unit: Unit, alice: Ordinary, bob: Ordinary) -> None:
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text('[each_user]\nkernels = 2\nmemory = "600 MiB"\n')
    with Caller(SOCKET, alice) as hers, Caller(SOCKET, bob) as his:
        for number in range(2):
            pid = hers.started(f"kernel-{number}", sockets=f"0000000{number}")
        assert "no more than 2" in hers.start("kernel-2")["message"]
        assert Path(cgroups.own(pid).v2).parent.joinpath("memory.max").read_text().strip() == str(600 << 20)
        his.started()


def test_a_restart_ends_all_kernels_and_a_server_finds_the_new_one(unit: Unit, alice: Ordinary) -> None:
    with served(alice) as hers:
        hers.start()
        below, first = watched(unit.processes()), unit.main.pid
        systemctl("restart", UNITS[1])
        assert outlive(below, 1) == []
        hers.ask("ended", name="kernel")  # from here on the server knows
        assert hers.start("again")["pid"]
        assert hers.text("print(6 * 7)", "again") == "42"
        assert unit.main.pid != first


def test_one_that_is_killed_takes_everything_with_it_and_comes_back(unit: Unit, alice: Ordinary) -> None:
    """systemd starts it again; what the first could not clear away, the second does."""
    with served(alice) as hers:
        hers.start()
        hers.text(DEAF)
        below, first = watched(unit.processes()), unit.main.pid
        os.kill(first, 9)
        assert outlive(below, SECONDS) == []
        hers.ask("ended", name="kernel")
        assert hers.start("again")["pid"]
        assert hers.text("print(6 * 7)", "again") == "42"
        assert unit.shows("NRestarts") == "1"
        folders = [path.name for path in Path(SOCKET).parent.glob("isolated-*")]
        assert folders == [channels_of(unit, alice).parent.name]


def test_a_stop_leaves_nothing(unit: Unit, alice: Ordinary, bob: Ordinary) -> None:
    """No process, group, mount, socket or folder; not of a kernel that spins, nor of children that are deaf."""
    with served(alice) as hers, served(bob) as his:
        hers.start()
        his.start()
        hers.run("print('begun', flush=True)\nwhile True: pass", until="begun")
        his.text(DEAF)
        below = watched(unit.processes())
        assert len(below) > 8
        systemctl("stop", *UNITS)
        assert outlive(below, 1) == []
        assert unit.shows("Result") == "success"
        assert not GROUP.exists()
        assert not Path(SOCKET).exists()
