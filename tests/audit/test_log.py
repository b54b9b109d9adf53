"""The file of the audit: bounded, shared by several writers, and never without its newest records."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from isolated_python.audit import events, log
from isolated_python.audit.ledger import KINDS, RECORDS, Ledger
from isolated_python.audit.log import Log, numbered
from isolated_python.audit.read import Reader

from tests.kernel.conftest import SCHEMAS

PACKAGE = Path(log.__file__).parent.parent


def records(path: Path) -> list[dict[str, Any]]:
    reader = Reader(str(path))
    try:
        return [*reader.older(), *reader.newer()]
    finally:
        reader.close()


def told() -> tuple[Ledger, list[dict[str, Any]]]:
    """A ledger, and what it writes."""
    found: list[dict[str, Any]] = []
    return Ledger(lambda event, **values: found.append({"event": event, **values})), found


# ---- the file --------------------------------------------------------------------------------------------------------


def test_the_oldest_makes_room_and_the_newest_is_always_there(tmp_path: Path) -> None:
    """All files together keep to their bound; what is left is the last part of what was written, without a gap."""
    path = tmp_path / "audit.jsonl"
    one = Log(str(path), largest=4096, files=3)
    for number in range(400):
        one.write("zygote-ended", pid=number, ready=True)
        assert records(path)[-1]["pid"] == number
    one.close()
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"audit.jsonl", "audit.1.jsonl", "audit.2.jsonl", "audit.jsonl.lock"}
    assert all(file.stat().st_size <= 4096 for file in tmp_path.iterdir())
    found = [record["pid"] for record in records(path)]
    assert found == [*range(found[0], 400)]
    assert len(found) > 30


WRITES = """
import sys
from isolated_python.audit.log import Log
one = Log(sys.argv[1], largest=20_000, files=50)
sys.stdin.read()
for number in range(1000):
    one.write("zygote-ended", pid=number, ready=True)
"""


def test_several_writers_lose_no_record_and_tear_none(tmp_path: Path) -> None:
    """Four supervisors write at once while the file is begun anew some twenty times."""
    path = tmp_path / "audit.jsonl"
    command = [sys.executable, "-c", WRITES, str(path)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0] * 4
    files = [Path(numbered(str(path), number)) for number in range(50)]
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    assert len([file for file in files if file.exists()]) > 10
    assert Counter(record["pid"] for record in found) == dict.fromkeys(range(1000), 4)
    for record in found[:100]:
        SCHEMAS["zygote-ended"].validate(record)


def test_a_writer_that_slept_through_every_rotation_finds_the_file(tmp_path: Path) -> None:
    """It had a file open that has been removed meanwhile."""
    path = tmp_path / "audit.jsonl"
    slow, quick = (Log(str(path), largest=500, files=2) for _ in range(2))
    for number in range(20):
        quick.write("zygote-ended", pid=number, ready=True)
    slow.write("zygote-ended", pid=1000, ready=True)
    assert records(path)[-1]["pid"] == 1000


def test_a_file_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    one = Log(str(path))
    path.unlink()
    one.write("zygote-ended", pid=1, ready=True)
    assert [record["pid"] for record in records(path)] == [1]
    assert path.stat().st_mode & 0o777 == 0o600


FULL = """
import resource, signal, sys
from isolated_python.audit.log import Log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
one = Log(sys.argv[1])
one.write("zygote-ended", pid=1, ready=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
for number in range(3):
    one.write("zygote-ended", pid=2, ready=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
one.write("zygote-ended", pid=3, ready=True)
"""


def test_what_could_not_be_written_is_counted(tmp_path: Path) -> None:
    """Where the disk is full, the records are lost, also the one that was written in part; that is told afterwards."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    path = tmp_path / "audit.jsonl"
    subprocess.run([sys.executable, "-c", FULL, str(path)], check=True)
    assert [(record["event"], record.get("pid"), record.get("count")) for record in records(path)] == [
        ("zygote-ended", 1, None),
        ("records-lost", None, 3),
        ("zygote-ended", 3, None),
    ]


def test_a_record_has_a_bound_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    deep: Any = "x"
    for _ in range(100):
        deep = {"a" * 1000: [deep, "y" * 10_000]}
    one = Log(str(path))
    one.write("supervisor-started", host={"deep": deep, **{str(number): "z" * 10_000 for number in range(1000)}})
    one.close()
    assert path.stat().st_size < 64 * 1024
    assert records(path)[0]["event"] == "supervisor-started"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Log(str(tmp_path / "audit.jsonl"))
    assert os.listdir(tmp_path) == ["audit.jsonl"]


# ---- what a kernel may cause to be written ---------------------------------------------------------------------------


def test_a_flood_loses_only_its_own_records_and_that_is_a_record() -> None:
    """An attacker makes a hundred thousand different things happen; its neighbour's one record is there."""
    ledger, found = told()
    for number in range(100_000):
        ledger.count("relay-refused", "attacker", f"rule {number}", channel="iopub", rule="r", owner="eve", cell="")
        if number == 50_000:
            ledger.count("relay-refused", "neighbour", "rule", channel="iopub", rule="r", owner="ann", cell="")
    ledger.end("attacker")
    events_of = Counter((record["event"], record["kernel"]) for record in found)
    assert events_of["relay-refused", "neighbour"] == 1
    assert events_of["relay-refused", "attacker"] == RECORDS
    dropped = [record for record in found if record["event"] == "records-dropped"]
    assert 0 < len(dropped) < 20
    assert {(record["kernel"], record["owner"], record["of"]) for record in dropped} == {
        ("attacker", "eve", "relay-refused")
    }
    # Everything beyond KINDS is one kind, told when its count doubles.
    assert dropped[-1]["count"] == KINDS + len(f"{100_000 - KINDS:b}") - RECORDS


def test_a_flood_of_one_event_leaves_room_for_others() -> None:
    ledger, found = told()
    for number in range(1000):
        ledger.count("relay-refused", "attacker", str(number))
    ledger.tell("call-refused", "attacker", call="ptrace", count=1)
    assert found[-1]["event"] == "call-refused"


def test_a_server_that_asks_under_a_thousand_names_has_one_share() -> None:
    """The users of a shared machine share the file."""
    ledger, found = told()
    for number in range(10_000):
        ledger.tell("start-refused", f"kernel-{number}", account_of="", owner="eve", profile="", reason="no")
    assert len(found) < RECORDS + 20
    assert {(one["kernel"], one["count"].bit_count()) for one in found[RECORDS:]} == {("", 1)}
    assert len(ledger._accounts) == 1


def test_how_often_is_told_at_each_doubling() -> None:
    ledger, found = told()
    for _ in range(9):
        ledger.count("limit-reached", "kernel", "resources.processes")
    ledger.count("limit-reached", "kernel", "resources.processes", 100)
    assert [record["count"] for record in found] == [1, 2, 4, 8, 109]


# ---- the schemas -----------------------------------------------------------------------------------------------------


def test_every_event_that_the_code_writes_has_a_schema_and_every_schema_is_of_one() -> None:
    """Every literal first argument of `log.write`, `ledger.tell` and what passes them on."""
    said = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = ast.unparse(node.func).rpartition(".")[2]
                receiver = ast.unparse(node.func)
                if name in ("tell", "count", "write", "_say", "_write", "_tell") and receiver.startswith(
                    ("self", "log")
                ):
                    said.add(node.args[0].value)
    assert {word for word in said if isinstance(word, str)} >= SCHEMAS.keys()
    assert {word for word in said if isinstance(word, str) and "-" in word} <= SCHEMAS.keys()


def test_schemas_are_what_jupyter_events_registers() -> None:
    """Under ids of their own, with a version, and closed: what is not named is not in a record."""
    from jupyter_events import EventLogger

    logger = EventLogger()
    events.register(logger)
    events.register(logger)  # a second server manager of the same application
    assert set(logger.schemas.schema_ids) == {events.schema_id(name) for name in SCHEMAS}
    for schema in events.schemas():
        assert schema["additionalProperties"] is False
        assert schema["required"] == [*schema["properties"]]
        assert schema["properties"]["version"]["const"] == log.VERSION == int(schema["version"])
