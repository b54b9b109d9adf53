"""The zygote by itself."""

from __future__ import annotations

import subprocess
import sys

from isolated_python.engine import ROOT
from isolated_python.launcher.spawn import program
from isolated_python.linux import packets


def test_a_zygote_whose_supervisor_has_gone_ends_without_a_word() -> None:
    """A server may end while its zygote still imports; whoever reads its log is not to look for a fault."""
    ours, theirs = packets.pair()
    ours.close()
    code = f"import os; os.dup2({theirs.fileno()}, 3); {program(ROOT, 'isolated_python.launcher.zygote')}"
    command = [sys.executable, "-I", "-S", "-c", code]
    with theirs:
        found = subprocess.run(
            command, pass_fds=(theirs.fileno(),), capture_output=True, text=True, check=False, timeout=60
        )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
