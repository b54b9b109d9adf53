"""What real kernels cause to be written: each event, and all of them as their schemas say (see Server.records)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from isolated_python.audit.ledger import RECORDS
from isolated_python.audit.read import Reader
from isolated_python.layers.filters import compiler

from tests.conftest import Ordinary
from tests.escapes.channels import connect, execute, messages_of
from tests.kernel.conftest import Server, commands, outlive, serve, watched

# Audited, and without effect where it were not refused.
HARMLESS = "import ctypes; ctypes.CDLL(None).ptrace(0xffff, 0, 0, 0)"


@pytest.fixture
def server(life: bool, ordinary: Ordinary) -> Iterator[Server]:
    """The server of somebody whom a hub calls ann."""
    with serve(life, ordinary, JUPYTERHUB_USER="ann") as one:
        yield one


def test_a_life_is_a_start_refusals_and_an_end(server: Server) -> None:
    """Who, which kernel, which cell's id, what, how often."""
    name = server.start()["id"]
    about = {"kernel": name, "owner": "ann"}
    started = server.records("kernel-started", **about)
    assert [(one["profile"], one["supervisor"]) for one in started] == [("standard", server.ask("supervisor")["pid"])]
    assert (started[0]["kernel_uid"] is not None) == server.root
    server.text(HARMLESS)
    cell = server.ask("asked", name="kernel")["msg_id"]
    assert [(one["cell"], one["call"], one["count"]) for one in server.records("call-refused", **about)] == [
        (cell, "ptrace", 1)
    ]
    server.text(f"for _ in range(9): {HARMLESS}")
    assert [one["count"] for one in server.records("call-refused", **about)] == [1, 2, 4, 8]
    server.ask("stop", name="kernel", now=True)
    (ended,) = server.records("kernel-ended", **about)
    assert (ended["status"], ended["refused"]) == (-9, {"ptrace": 10})


def test_of_many_cells_that_wait_the_one_is_named_whose_turn_it_is(server: Server) -> None:
    """As with "Run All": asked for together, they run one after the other."""
    name = server.start()["id"]
    info = server.ask("connection", name="kernel")
    late = f"import threading; threading.Event().wait(0.3); {HARMLESS}"
    with connect(info, "shell") as one:
        messages = messages_of(one)
        next(messages)  # the handshake
        cells = [execute(one, info["key"], code) for code in ("1", late, "2")]
        for cell in cells:
            assert cell.encode() in b"".join(next(messages))
    assert [one["cell"] for one in server.records("call-refused", kernel=name)] == [cells[1]]


def test_a_server_begins_and_ends(server: Server) -> None:
    """Also one that is killed: then the end is missing, and its kernels' too."""
    supervisors = []
    for name, number in (("ended", signal.SIGTERM), ("killed", signal.SIGKILL)):
        server.start(name)
        supervisors.append(server.ask("supervisor")["pid"])
        os.kill(supervisors[-1], number)
        server.ask("ended", name=name)  # from here on the server knows
    assert [(one["supervisor"], one["kernels"]) for one in server.records("supervisor-ended")] == [(supervisors[0], 1)]
    server.start("again")
    assert {one["host"]["root"] for one in server.records("supervisor-started")} == {server.root}
    assert len(server.records("supervisor-started")) == 3


def test_what_is_not_started_and_what_is_weakened_is_told(server: Server) -> None:
    if server.cgroup:
        pytest.skip("here is a cgroup for whoever runs the tests")
    assert "error" in server.refused("a", {"layers": {"cgroup": "require"}})
    (refused,) = server.records("start-refused", owner="ann", profile="standard")
    assert "cgroup" in refused["reason"]
    server.start("b")
    (weakened,) = server.records("kernel-weakened")
    assert "cgroup" in weakened["what"]


REFUSED: dict[str, dict[str, Any]] = {
    "does not exist": {"spec": {"argv": ["/usr/bin/no-such-program", "{connection_file}"]}},
    "there is no profile": {"profile": "standart"},
    "No such file": {"cwd": "/nowhere/at/all"},
    "did you mean memory": {"overrides": {"resources": {"memry": "1 GiB"}}},
    "did you mean profile": {
        "spec": {
            "metadata": {"kernel_provisioner": {"provisioner_name": "isolated-python", "config": {"profil": "exam"}}}
        }
    },
    "no network transport to encrypt": {
        "spec": {
            "metadata": {
                "kernel_provisioner": {"provisioner_name": "isolated-python"},
                "supported_encryption": ["curve"],
            }
        },
        "manager": {"transport_encryption": "required"},
    },
}


def test_what_the_servers_side_refuses_is_told_too(server: Server) -> None:
    """The provisioner asks the supervisor for no kernel then. What that refuses itself: tests/kernel/test_kill.py."""
    server.start()
    for number, (words, values) in enumerate(REFUSED.items(), 1):
        assert words in server.refused("a", **values)["error"]
        refused = server.records("start-refused")
        assert len(refused) == number
        assert refused[-1]["owner"] == ("ann" if "manager" not in values else "")  # nobody has been asked for yet
        assert words in refused[-1]["reason"]
        assert refused[-1]["profile"] == values.get("profile", "standard")
        assert refused[-1]["kernel"] not in ("", *(one["kernel"] for one in refused[:-1]))
    assert len(server.records("kernel-started")) == 1


def test_limits_that_were_met_are_told(server: Server) -> None:
    """Of memory and processes, where there is a cgroup; of time always."""
    name = server.start(
        overrides={"resources": {"memory": "256 MiB", "tmp": "8 MiB", "shm": "8 MiB", "processes": 40}}
    )["id"]
    if server.cgroup:
        balloon = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'bytearray(1 << 30)']).returncode"
        server.text(balloon)
        server.text(FORKS)
        # A cell is over for its client a moment before it is for the supervisor: the next one is not.
        server.text("1")
        server.text("2")
        met = {one["limit"]: one["what"] for one in server.records("limit-reached", kernel=name, owner="ann")}
        assert met.keys() == {"resources.memory", "resources.processes"}
    name = server.start("hasty", {"resources": {"wall_clock": "2 s"}})["id"]
    assert server.run("while True: pass", "hasty")["status"] in ("dead", "error")
    (met,) = server.records("limit-reached", kernel=name)
    assert (met["limit"], met["cell"]) == ("resources.wall_clock", server.ask("asked", name="hasty")["msg_id"])
    (ended,) = server.records("kernel-ended", kernel=name)
    assert "resources.wall_clock" in ended["reason"]
    name = server.start("patient", {"cells": {"wall_clock": "1 s"}})["id"]
    assert server.run("while True: pass", "patient")["status"] == "error"
    assert [one["limit"] for one in server.records("limit-reached", kernel=name)] == ["cells.wall_clock"]


FORKS = """
import os, signal
children = []
try:
    for _ in range(60):
        children.append(os.fork())
        if not children[-1]:
            signal.pause()
except BlockingIOError:
    print("refused")
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_what_the_relay_refuses_is_told(server: Server) -> None:
    name = server.start(overrides={"channels": {"output_messages": 20}})["id"]
    # Each display is a message.
    server.text("for number in range(60): display(number)")
    refused = server.records("relay-refused", kernel=name, owner="ann")
    assert {(one["channel"], one["rule"]) for one in refused} == {("iopub", "output rate")}
    assert refused[0]["cell"] == server.ask("asked", name="kernel")["msg_id"]


def test_processes_of_ours_that_end_are_told(server: Server) -> None:
    server.start()
    (relay,) = (pid for pid, words in commands(server.ours()).items() if "relay.broker" in words)
    ending = watched([psutil.Process(relay)])
    os.kill(relay, signal.SIGKILL)
    assert not outlive(ending, 10)
    server.ask("supervisor")
    server.start("second")  # answered after it has noticed
    assert len(server.records("relay-ended")) == 1


FLOOD = """
import ctypes
libc = ctypes.CDLL(None)
for _ in range(4):
    for number in {numbers}:
        libc.syscall(number, -1, -1, -1, -1, -1, -1)
"""


def test_a_flood_of_refusals_loses_only_its_own_records(server: Server) -> None:
    """A kernel makes every call that is audited, again and again; its neighbour makes one."""
    filter = compiler.compile("kernel")
    numbers = [number for number, name in filter.names.items() if name not in ("prctl", "ioctl", "clone", "socket")]
    attacker, neighbour = server.start("attacker")["id"], server.start("neighbour")["id"]
    server.text(FLOOD.format(numbers=numbers), "attacker")
    server.text(HARMLESS, "neighbour")
    server.ask("stop", name="attacker", now=True)
    of = Counter((one["kernel"], one["event"]) for one in server.records() if "kernel" in one)
    assert of[attacker, "call-refused"] == RECORDS
    assert of[neighbour, "call-refused"] == 1
    dropped = server.records("records-dropped", kernel=attacker, owner="ann", of="call-refused")
    assert dropped[-1]["count"] > 50
    assert of[neighbour, "records-dropped"] == 0
    # What it was refused is in the record of its end, whatever it did.
    (ended,) = server.records("kernel-ended", kernel=attacker)
    assert set(ended["refused"].values()) == {4}


# ---- in a Jupyter server ---------------------------------------------------------------------------------------------

LISTENS = """
import asyncio, io, json, logging, os, sys
from jupyter_events import EventLogger
from jupyter_server.services.kernels.kernelmanager import ServerKernelManager

async def main():
    out = io.StringIO()
    manager = ServerKernelManager(kernel_name="isolated-python")
    manager.event_logger = EventLogger(handlers=[logging.StreamHandler(out)])
    overrides = json.loads(sys.argv[1])
    manager.kernel_spec.metadata["kernel_provisioner"]["config"] = {"overrides": overrides}
    await manager.start_kernel(cwd=sys.argv[2])
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=60)
    await client._async_execute_interactive(sys.argv[3], timeout=60)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    for _ in range(200):  # the last record takes another way than the answer
        if "kernel-ended" in out.getvalue():
            break
        await asyncio.sleep(0.05)
    print(out.getvalue())

asyncio.run(main())
"""


def test_a_jupyter_server_has_them_as_events_of_its_own(life: bool, ordinary: Ordinary) -> None:
    """By jupyter_events, with their schemas' ids; validated there once more."""
    folder = ordinary.home / "work"
    folder.mkdir()
    overrides = {} if life else {"layers": {"cgroup": "prefer"}}
    command = [sys.executable, "-c", LISTENS, json.dumps(overrides), str(folder), HARMLESS + ";"]
    if life:
        environment = ordinary.environment | {"HOME": str(ordinary.home)}
        environment |= {"ISOLATED_PYTHON_AUDIT_DIR": str(ordinary.home / "audit")}
        said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True).stdout
    else:
        os.chown(folder, ordinary.uid, ordinary.gid)
        said = ordinary.run(command).stdout
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    ours = {one["__schema__"].split(":")[3] for one in found if one["__schema__"].startswith("urn:isolated-python:")}
    assert {"kernel-started", "call-refused", "kernel-ended"} <= ours
    (refused,) = [one for one in found if one["__schema__"] == "urn:isolated-python:audit:call-refused:v1"]
    assert (refused["call"], refused["__schema_version__"]) == ("ptrace", "1")
    assert refused["__timestamp__"].startswith(refused["time"][:19])


def test_the_owner_is_who_asked_the_server(ordinary: Ordinary) -> None:
    """As a Jupyter server knows them: here by a token and a cookie, on a hub by a name."""
    environment = ordinary.environment | {"JUPYTER_RUNTIME_DIR": str(ordinary.home / "runtime")}
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=abc"]
    process = ordinary.start([sys.executable, "-m", "jupyter_server", *options], env=environment)
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())

    def ask(path: str, data: dict[str, str] | None = None) -> dict[str, Any]:
        body = json.dumps(data).encode() if data else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", body, {"Authorization": "token abc"})
        with browser.open(request, timeout=60) as answer:
            return json.load(answer)  # type: ignore[no-any-return]

    try:
        assert listens(port), "the server does not begin"
        who = ask("api/me")["identity"]["username"]
        # On a host with version 1 of cgroups alone nothing starts for an ordinary user, and that is told.
        with contextlib.suppress(urllib.error.HTTPError):
            ask("api/kernels", {"name": "isolated-python"})
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    reader = Reader(str(ordinary.home / ".local/state/isolated-python/audit.jsonl"))
    owners = {record["owner"] for record in reader.newer() if record["event"] in ("kernel-started", "start-refused")}
    reader.close()
    assert owners == {who} != {""}


def listens(port: int) -> bool:
    """It says nothing when it begins to listen, so it is asked."""
    patience = threading.Event()
    for _ in range(600):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return True
        patience.wait(0.05)
    return False
