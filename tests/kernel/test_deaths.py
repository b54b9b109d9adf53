"""Why did it die? The cell, the server's log and the audit say the same, in one sentence."""

from __future__ import annotations

import platform
from typing import Any

from tests.kernel.conftest import Server
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
