"""`jupyter isolated audit` shows the records of one's own servers, to people and to scripts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from isolated_python.audit.log import Log
from isolated_python.cli.audit import line

from tests.conftest import BIN, Ordinary
from tests.kernel.conftest import serve


class Reader:
    """Somebody who reads a file that two supervisors have written, the older half of it in a file that was full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Log(str(folder / "audit.jsonl"), largest=6000)
        for number in range(50):
            self.log.write(
                "call-refused", kernel=f"{number % 2}abc", owner="ann", cell="c", call="ptrace", count=number
            )
        assert (folder / "audit.1.jsonl").exists()

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {"PATH": "/usr/bin:/bin", "ISOLATED_PYTHON_AUDIT_DIR": str(self.folder), "LANG": "C.UTF-8"}
        command = [f"{BIN}/jupyter-isolated", "audit", *words]
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, *words: str) -> tuple[str, str]:
        process = self.start(*words)
        said, complained = process.communicate(timeout=60)
        assert process.returncode == 0, complained
        return said, complained

    def records(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self("--json", *words)[0].splitlines()]


@pytest.fixture
def audit(tmp_path: Path) -> Reader:
    tmp_path.chmod(0o700)
    return Reader(tmp_path)


def test_the_last_records_of_all_files_in_their_order(audit: Reader) -> None:
    assert [one["count"] for one in audit.records()] == [*range(30, 50)]
    assert [one["count"] for one in audit.records("--last", "0")] == [*range(50)]
    assert [one["count"] for one in audit.records("--kernel", "1a", "--last", "3")] == [45, 47, 49]
    assert audit.records("--event", "kernel-ended") == []


def test_a_person_reads_a_line_each(audit: Reader) -> None:
    said, _ = audit("--last", "1")
    assert said.split()[1:] == ["call-refused", "1abc", "owner", "ann", "cell", "c", "call", "ptrace", "count", "49"]
    assert audit("--kernel", "none")[1].startswith("there is no such record in ")


def test_what_a_kernel_wrote_moves_nobodys_cursor() -> None:
    record = {
        "event": "kernel-ended",
        "time": "2026-01-01T00:00:00.000Z",
        "kernel": "\x1b[2J",
        "last_words": "a\x9bb\r",
    }
    assert line(record).isprintable()


def test_following_goes_on_with_what_is_written_across_a_full_file(audit: Reader) -> None:
    process = audit.start("--follow", "--json", "--last", "1")
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["count"] == 49
        for number in range(50, 100):
            audit.log.write("call-refused", kernel="1", owner="", cell="", call="bpf", count=number)
            assert json.loads(process.stdout.readline())["count"] == number
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == ""
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_others_may_write_to_is_refused(audit: Reader) -> None:
    audit.folder.chmod(0o777)
    process = audit.start()
    said, complained = process.communicate(timeout=20)
    assert (process.returncode, said) == (2, "")
    assert "nobody else writes to: chmod 700 it" in complained


def test_the_records_of_a_server_are_there(life: bool, ordinary: Ordinary) -> None:
    with serve(life, ordinary) as server:
        name = server.start()["id"]
        environment = ordinary.environment | {"ISOLATED_PYTHON_AUDIT_DIR": str(server.audit)}
        command = [f"{BIN}/jupyter-isolated", "audit", "--kernel", name[:8]]
        who = {"user": os.getuid(), "group": os.getgid(), "extra_groups": os.getgroups()} if life else {}
        process = ordinary.start(command, env=environment, **who)
        said, complained = process.communicate(timeout=60)
    assert complained == ""
    assert "kernel-started" in said
