"""What is given up before the first cell, as Linux itself reports it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from isolated_python.layers import privileges
from isolated_python.layers.step import Step
from isolated_python.policy.profile import Layers, Profile
from isolated_python.record import replace

NOBODY = 65534
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")

# The steps, then what the process, and a program it starts, look like from /proc.
RUN = """
import json, os, resource, subprocess, sys
from isolated_python.layers import privileges
from isolated_python.layers.step import Step
from isolated_python.linux import caps, libc
if os.geteuid():
    # As in a sandbox: every capability, in a user namespace of our own.
    libc.call("unshare", 0x10000000)
for step in json.loads(sys.argv[1]):
    Step.from_wire(step).execute({})
def status(text): return dict(line.split(":\\t", 1) for line in text.splitlines() if ":\\t" in line)
own = status(open("/proc/self/status").read())
child = status(subprocess.run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True).stdout)
print(json.dumps({"own": own, "child": child, "held": caps.held(), "core": resource.getrlimit(resource.RLIMIT_CORE)}))
"""


def looks(steps: list[Step], user: int) -> dict[str, dict[str, str]]:
    identity = {"user": user, "group": user, "extra_groups": []} if user != os.geteuid() else {}
    wire = json.dumps([step.to_wire() for step in steps])
    done = subprocess.run(
        [sys.executable, "-c", RUN, wire], capture_output=True, text=True, timeout=60, cwd="/", **identity
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


USERS = [pytest.param(user, marks=pytest.mark.root) for user in (0, NOBODY)] if os.geteuid() == 0 else [os.geteuid()]


@pytest.mark.parametrize("user", USERS)
def test_nothing_inside_can_gain_a_privilege(user: int) -> None:
    """After the plan all five sets are empty and no_new_privs is set, in the process and in what it starts."""
    steps = privileges.plan(Profile(), core_pattern="core", parent_death_signal=signal.SIGKILL)
    seen = looks(steps, user)

    assert seen["held"] == 0
    for who in ("own", "child"):
        assert {int(seen[who][name], 16) for name in SETS} == {0}
        assert seen[who]["NoNewPrivs"].strip() == "1"
    before = looks([], user)
    assert before["held"] != 0
    assert int(before["own"]["CapBnd"], 16) != 0


def test_a_second_time_changes_nothing() -> None:
    steps = [privileges.DropCapabilities(), privileges.DropCapabilities(), privileges.DropOwnCapabilities()]
    if os.geteuid() == 0:
        assert looks(steps, 0)["held"] == 0


@pytest.mark.parametrize(("pattern", "limit"), [("core", 0), ("|/usr/lib/collect %p", 1), ("@/run/socket", 1)])
def test_no_core_is_left(pattern: str, limit: int) -> None:
    steps = privileges.plan(Profile(layers=Layers(capabilities="off")), core_pattern=pattern)

    assert looks(steps, os.geteuid())["core"] == [limit, limit]


def test_the_parents_death_is_followed() -> None:
    """A child with the step ends with its parent: the pipe that it holds comes to its end."""
    script = f"""
import os, signal, sys
from isolated_python.layers import privileges
ready, told = os.pipe()
if os.fork() == 0:
    privileges.DieWith({int(signal.SIGKILL)}).execute({{}})
    os.write(told, b'x')
    signal.pause()
os.read(ready, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60)

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")  # the end of file came: nobody holds stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a change of uid")
def test_a_process_whose_uid_changed_can_read_its_own_proc() -> None:
    script = """
import os, sys
from isolated_python.layers import privileges
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
if sys.argv[1:]:
    privileges.OwnProc().execute({})
try:
    open('/proc/self/environ').read(1)
except OSError as error:
    sys.exit(error.errno)
"""
    without = subprocess.run([sys.executable, "-c", script], timeout=60).returncode
    having = subprocess.run([sys.executable, "-c", script, "x"], timeout=60).returncode

    assert (without, having) == (errno.EACCES, 0)


def test_the_plan_can_be_sent_and_read() -> None:
    profile = Profile()
    steps = privileges.plan(profile, core_pattern="core", parent_death_signal=9)
    assert [Step.from_wire(json.loads(json.dumps(step.to_wire()))) for step in steps] == steps
    assert [type(step).__name__ for step in steps] == [
        *("NoCoreDumps", "DropCapabilities", "OwnProc", "DieWith", "NoNewPrivileges"),
    ]
    assert all(step.describe() and "\n" not in step.describe() for step in steps)
    off = privileges.plan(replace(profile, layers=Layers(capabilities="off")), core_pattern="core")
    assert not any(isinstance(step, privileges.DropCapabilities) for step in off)
    assert any(isinstance(step, privileges.NoNewPrivileges) for step in off)
