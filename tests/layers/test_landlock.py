"""Landlock: what a process that gave up its rights on files can still reach."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from isolated_python.errors import HostError
from isolated_python.layers import landlock as layer
from isolated_python.layers.step import Step
from isolated_python.linux import landlock
from isolated_python.policy.profile import Files, Layers, Mount, Profile
from isolated_python.record import replace

ABI = landlock.abi()
NOBODY = 65534
USERS = [pytest.param(user, marks=pytest.mark.root) for user in (0, NOBODY)] if os.geteuid() == 0 else [os.geteuid()]

# Carries out the steps given as JSON, then tries the snippets, each for its errno.
RUN = """
import json, sys, os, socket
from isolated_python.layers import landlock
from isolated_python.layers.step import Step
from isolated_python.linux import prctl
import fcntl, pty, signal, termios
steps, snippets = json.loads(sys.argv[1])
prctl.set_no_new_privs()
for step in steps:
    Step.from_wire(step).execute({})
answers = []
for snippet in snippets:
    try:
        exec(snippet)
        answers.append(0)
    except OSError as error:
        answers.append(error.errno)
print(json.dumps(answers))
"""


def attempt(steps: list[Step], snippets: list[str], user: int) -> list[int]:
    """The errno of each snippet, 0 where it worked."""
    wire = json.dumps([[step.to_wire() for step in steps], snippets])
    identity = {"user": user, "group": user, "extra_groups": []} if user != os.geteuid() else {}
    command = [sys.executable, "-c", RUN, wire]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", **identity)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def places() -> Iterator[tuple[str, str]]:
    """A folder to be granted and one not to be, both open to everybody."""
    with tempfile.TemporaryDirectory() as granted, tempfile.TemporaryDirectory() as other:
        for place in (granted, other):
            os.chmod(place, 0o777)
            Path(place, "file").write_text("x")
            os.chmod(Path(place, "file"), 0o666)
        yield granted, other


def step(write: tuple[str, ...] = (), abi: int = ABI) -> Step:
    return layer.RestrictFiles(layer.READABLE, write, layer.TERMINALS, abi)


@pytest.mark.parametrize("user", USERS)
def test_a_folder_can_be_written_and_yet_get_no_link(places: tuple[str, str], user: int) -> None:
    """Neither made there nor moved there: a server's file browser would follow it out of the folder."""
    plain, open_to_links = places
    steps = [layer.RestrictFiles(layer.READABLE, (open_to_links,), layer.TERMINALS, ABI, plain=(plain,))]
    snippets = [
        f"open('{plain}/new', 'w').write('x')",
        f"os.link('{plain}/new', '{plain}/hard')",
        f"os.symlink('/etc', '{open_to_links}/link')",
        f"os.symlink('/etc', '{plain}/link')",
        f"os.rename('{open_to_links}/link', '{plain}/link')",
    ]
    outcome = attempt(steps, snippets, user)
    assert outcome[:4] == [0, 0, 0, errno.EACCES]
    assert outcome[4] in (errno.EACCES, errno.EXDEV)
    assert not os.path.lexists(f"{plain}/link")


@pytest.mark.skipif(ABI < 3, reason="truncation is a right of its own since linux 6.2")
@pytest.mark.parametrize("user", USERS)
def test_files_are_read_everywhere_and_written_where_granted(places: tuple[str, str], user: int) -> None:
    granted, other = places
    snippets = [
        f"open('{granted}/new', 'w').write('x')",
        f"os.mkdir('{granted}/a'); os.rename('{granted}/new', '{granted}/a/new')",
        f"os.truncate('{granted}/file', 0)",
        f"open('{other}/file').read()",
        "os.listdir('/')",
        "open('/dev/null', 'w').write('x')",
        "assert os.system('/bin/true') == 0",
        f"open('{other}/new', 'w')",
        f"open('{other}/file', 'a')",
        f"os.truncate('{other}/file', 0)",
        f"os.unlink('{other}/file')",
        f"os.mkdir('{other}/a')",
        f"os.symlink('x', '{other}/s')",
        f"socket.socket(socket.AF_UNIX).bind('{other}/u')",
    ]
    steps = [step((*layer.WRITABLE[1:], granted))]  # without /tmp, where the folders of this test lie

    assert attempt(steps, snippets, user) == [0] * 7 + [errno.EACCES] * 7
    again = [
        f"os.unlink('{granted}/a/new')",
        f"os.rmdir('{granted}/a')",
        *(snippet for snippet in snippets[7:] if "truncate" not in snippet),
    ]
    assert attempt([], again, os.geteuid()) == [0] * 8


@pytest.mark.skipif(ABI < 6, reason="scopes are there since linux 6.12")
@pytest.mark.parametrize("user", USERS)
def test_signals_and_abstract_sockets_end_at_the_border(user: int) -> None:
    name = f"isolated-python-{os.getpid()}-{user}"
    identity = {"user": user, "group": user, "extra_groups": []} if user != os.geteuid() else {}
    with (
        socket.socket(socket.AF_UNIX) as server,
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, **identity) as victim,
    ):
        server.bind("\0" + name)
        server.listen()
        snippets = [
            f"socket.socket(socket.AF_UNIX).connect('\\0{name}')",
            f"os.kill({victim.pid}, 0)",
            "os.kill(os.getpid(), 0)",
        ]
        assert attempt([step()], snippets, user) == [errno.EPERM, errno.EPERM, 0]
        assert attempt([], snippets, user) == [0, 0, 0]
        victim.stdin.close()


@pytest.mark.skipif(ABI < 5, reason="requests to devices are a right since linux 6.10")
def test_terminals_still_work() -> None:
    snippets = ["master, slave = pty.openpty(); termios.tcgetattr(slave); os.open(os.ttyname(slave), os.O_RDWR)"]

    assert attempt([step()], snippets, os.geteuid()) == [0]


@pytest.mark.skipif(ABI < 1, reason="no Landlock here")
def test_no_files_means_no_path_opens() -> None:
    snippets = ["open('/etc/passwd')", "os.listdir('/')", "open('/dev/null')"]

    assert attempt(layer.no_files(ABI), snippets, os.geteuid()) == [errno.EACCES] * 3
    assert layer.no_files(0) == []


@pytest.mark.skipif(ABI < 1, reason="no Landlock here")
@pytest.mark.parametrize("older", [version for version in landlock.ABIS if 1 <= version <= ABI])
def test_every_older_version_still_keeps_writers_out(places: tuple[str, str], older: int) -> None:
    """A plan made for an older Linux runs here, and writing outside stays refused from the first version on."""
    granted, other = places
    snippets = [f"open('{granted}/new', 'w')", f"open('{other}/new', 'w')"]

    assert attempt([step((granted,), older)], snippets, os.geteuid()) == [0, errno.EACCES]


def test_the_table_only_ever_grows() -> None:
    for version in range(1, landlock.LATEST + 1):
        before, now = landlock.ABIS[version - 1], landlock.ABIS[version]
        for name in ("files", "tcp", "scopes", "flags"):
            assert getattr(before, name) & ~getattr(now, name) == 0
    assert landlock.handled(99) == landlock.ABIS[landlock.LATEST]
    assert landlock.handled(-1).files == 0


def test_no_grant_makes_a_device() -> None:
    assert not (layer.READ | layer.WRITE) & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK | landlock.IOCTL_DEV)


def test_the_plan_follows_the_profile() -> None:
    mounts = (Mount("/srv/a", "/data/a"), Mount("/srv/b", "/data/b", writable=True))
    for workspace, there in (("read-write", True), ("copy-on-write", True), ("read-only", False), ("none", True)):
        [planned] = layer.plan(Profile(files=Files(workspace, mounts=mounts)), ABI or 1)
        assert isinstance(planned, layer.RestrictFiles)
        assert ("/mnt" in planned.write) is there
        assert "/data/b" in planned.write
        assert "/data/a" not in planned.write
        assert Step.from_wire(json.loads(json.dumps(planned.to_wire()))) == planned
    assert "signals" in layer.plan(Profile(), 5)[0].describe()
    assert "not yet" not in layer.plan(Profile(), 6)[0].describe()


def test_without_landlock_the_profile_decides() -> None:
    profile = Profile()
    with pytest.raises(HostError, match=r"no Landlock.*prefer"):
        layer.plan(profile, 0)
    assert layer.plan(replace(profile, layers=Layers(landlock="prefer")), 0) == []
    assert layer.plan(replace(profile, layers=Layers(landlock="off")), 7) == []
