"""Why did it die? The cell, the server's log and the audit say the same, in one sentence."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from tests.kernel.conftest import Server, cgroups_of
from tests.kernel.test_reasons import FOREIGN_CALL

SMALL = {"memory": "200 MiB", "tmp": "40 MiB", "shm": "16 MiB"}

# What of a profile, the cell that meets it, and what the sentence must hold: the limit, what was used, the key.
DEATHS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "memory": (SMALL, "x = bytearray(400 << 20)", ["200 MiB of memory", "it had used", "(resources.memory)"]),
    "CPU time": (
        {"cpu_time": "2 s"},
        "while True: pass",
        ["it used", "s of CPU time", "grants no more (resources.cpu_time)"],
    ),
    "wall clock": (
        {"wall_clock": "2 s"},
        "import threading; threading.Event().wait()",
        ["it used 2 s since its start", "grants no more (resources.wall_clock)"],
    ),
    "a call of a foreign architecture": ({}, FOREIGN_CALL, ["killed by its seccomp filter", "foreign architecture"]),
    "a crash": ({}, "import ctypes; ctypes.string_at(0)", ["crashed with SIGSEGV"]),
}


def test_the_cell_the_log_and_the_audit_say_the_same(server: Server) -> None:
    for name, (granted, code, words) in DEATHS.items():
        if "foreign" in name and platform.machine() != "x86_64":
            continue
        if not server.cgroup and name in ("memory", "CPU time"):
            continue  # nothing counts them there
        id = server.start(name, overrides={"resources": granted})["id"]
        said = server.run(code, name)
        assert said["status"] == "error", (name, said)
        reason = server.ask("ended", name=name)["reason"]
        assert all(word in reason for word in words), (name, reason)
        assert " ".join(reason.split()) in " ".join(said["text"].split()), (name, said)
        assert server.ask("alive", name=name) == {"alive": False}
        assert reason in server.ask("logged")["text"]
        assert [one["reason"] for one in server.records("kernel-ended", kernel=id)] == [reason]


def test_a_start_that_fails_when_it_was_answered_already_is_told_as_an_end(limited: Server) -> None:
    """The second kernel of a profile is answered as soon as it is born. What goes wrong after that, and what comes of
    it, is in the server's log and in the audit, and the start after it waits, and says so itself.
    """
    limited.pool = False
    limited.start()
    groups = [Path(group) for group in cgroups_of(limited.ask("supervisor")["pid"])]
    counts = min((group for group in groups if (group / "pids.max").exists()), key=lambda group: len(group.parts))
    now = int((counts / "pids.current").read_text())
    (counts / "pids.max").write_text(f"{now + 1}")  # room for process 1, and not for the kernel
    assert "error" in limited.refused("second")
    reason = limited.ask("ended", name="second")["reason"]
    assert reason.startswith("the kernel could not be started: ")
    assert "temporarily unavailable" in reason
    assert limited.ask("alive", name="second") == {"alive": False}
    assert reason in limited.ask("logged")["text"]
    assert [one["reason"] for one in limited.records("kernel-ended", reason=reason)] == [reason]
    assert "temporarily unavailable" in limited.refused("third")["error"]
    (counts / "pids.max").write_text("max")
    limited.start("fourth")
    assert limited.text("print(1)") == limited.text("print(1)", "fourth") == "1"
