"""The mount of a workspace: what helps to make it ends with whoever makes it."""

from __future__ import annotations

import subprocess
import sys

# A supervisor that makes one map after the other, killed at any point of that. Whom it leaves behind becomes our child.
KILLED = """
import os, select, signal, time
from isolated_python.engine import workspace
from isolated_python.linux import prctl
prctl.set_child_subreaper()
uid, gid = os.getuid(), os.getgid()
for turn in range(60):
    begun, begins = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.write(begins, b"x")
        while True:
            os.close(workspace.Translations().take(uid, gid, uid))
    os.read(begun, 1)
    select.poll().poll(turn % 6)  # milliseconds
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    until = time.monotonic() + 5
    try:
        while True:
            os.waitpid(-1, os.WNOHANG)
            if time.monotonic() > until:
                for left in open(f"/proc/self/task/{os.getpid()}/children").read().split():
                    os.kill(int(left), signal.SIGKILL)
                raise SystemExit("somebody is left")
    except ChildProcessError:
        pass
    os.close(begun)
    os.close(begins)
"""


def test_a_helper_that_makes_a_map_of_owners_ends_with_its_supervisor() -> None:
    """It holds the supervisor's lifeline and channels: were it left, nobody would notice that that has gone."""
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
