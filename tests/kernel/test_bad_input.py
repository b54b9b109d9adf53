"""What a person gets wrong ends in one sentence with a remedy, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from isolated_python.engine.identities import F_OFD_SETLK, SPARE

from tests.conftest import Ordinary
from tests.kernel.conftest import Server, cgroups_of, serve

OURS = {"provisioner_name": "isolated-python"}


def resources(**values: Any) -> dict[str, Any]:
    return {"resources": values}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a typo in a profile", {"overrides": {"resources": {"memry": "1 GiB"}}}, "did you mean memory"),
    ("a wrong unit", {"overrides": {"resources": {"memory": "1 G"}}}, "no unit that is known"),
    ("a contradiction", {"overrides": {"resources": {"memory": "64 MiB"}}}, "more than half"),
    ("a host that is too broad", {"overrides": {"network": {"reach": ["*.com"]}}}, "too broad"),
    ("a profile that is not there", {"profile": "standart"}, "did you mean standard"),
    ("a folder that is not there", {"cwd": "/nowhere/at/all"}, "No such file"),
    ("a file for a folder", {"cwd": "/etc/passwd"}, "Not a directory"),
    ("the whole machine for a folder", {"cwd": "/"}, "a whole home folder"),
    ("less memory than a kernel needs", {"overrides": resources(memory="8 MiB", tmp="1 MiB", shm="1 MiB")}, "at least"),
    ("fewer processes than a kernel needs", {"overrides": resources(processes=3)}, "at least"),
    ("fewer files than a kernel needs", {"overrides": resources(open_files=8)}, "at least"),
    ("less of /tmp than a kernel needs", {"overrides": resources(tmp="4 KiB")}, "at least"),
    ("less CPU than Linux can count", {"overrides": resources(cpu=0.001)}, "at least"),
    ("more processes than Linux can count", {"overrides": resources(processes=10**12)}, "whole number from 1 to"),
    ("a typo in a kernelspec", {"spec": {"metadata": {"kernel_provisioner": OURS | {"config": {"profil": "shared"}}}}},
     "did you mean profile"),
    ("a number for a profile", {"spec": {"metadata": {"kernel_provisioner": OURS | {"config": {"profile": 3}}}}},
     "'profile' trait"),
    ("a program that is not there", {"spec": {"argv": ["/nowhere/python", "{connection_file}"]}}, "does not exist"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "words"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_start_that_cannot_be_is_refused_in_one_sentence(
    server: Server, name: str, values: dict[str, Any], words: str
) -> None:
    said = refused_without_trace(server, lambda: server.refused(**values))
    assert words in said


def test_a_missing_granted_folder_is_named(server: Server) -> None:
    overrides = {"files": {"mounts": [{"source": "/nowhere/data", "target": "/data"}]}}
    assert "/nowhere/data" in refused_without_trace(server, lambda: server.refused(overrides=overrides))


@pytest.mark.parametrize("life", [os.geteuid() == 0])
def test_profiles_that_cannot_be_meant_start_nothing(life: bool, ordinary: Ordinary) -> None:
    """In a circle, by two levels, against what the profile below takes away; and what is no TOML."""
    site = ordinary.home / "etc" / "isolated-python" / "profiles"
    site.mkdir(parents=True)
    texts = {
        "a": ('extends = "b"', "in a circle, a → b → a"),
        "b": ('extends = "a"', "in a circle, b → a → b"),
        "far": ('extends = "near"', "one level is all there is"),
        "near": ('extends = "exam"', ""),
        "contrary": ('extends = "exam"\n[layers]\nseccomp = "off"', "is held by seccomp"),
        "broken": ("[resources", "is not TOML"),
    }
    for name, (text, _) in texts.items():
        (site / f"{name}.toml").write_text(text)
    with serve(life, ordinary, JUPYTER_CONFIG_PATH=str(ordinary.home / "etc")) as server:
        for name, (_, words) in texts.items():
            if words:
                wanted: dict[str, Any] = {"profile": name}
                assert words in refused_without_trace(server, lambda wanted=wanted: server.refused(**wanted)), name


def test_without_a_cgroup_an_ordinary_user_is_refused_with_a_remedy(server: Server) -> None:
    """On a host with version 1 alone nothing limits what a sandbox uses together: nothing starts, unless asked."""
    if server.root or os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return
    plain = {"name": "kernel", "overrides": {}, "cwd": str(server.folder)}
    assert 'cgroup = "prefer"' in refused_without_trace(server, lambda: server.ask("start", **plain))


ODD = ["with space", "with 'quotes\"", "with\nnewline", "with,comma:colon\\", "ü", "x" * 200 + "/" + "y" * 100]


@pytest.mark.parametrize("name", ODD, ids=["space", "quotes", "newline", "overlay", "unicode", "long"])
def test_a_folder_of_an_odd_name_is_a_workspace_like_any_other(server: Server, name: str) -> None:
    folder = server.folder / name
    folder.mkdir(parents=True)
    os.chown(folder, server.folder.stat().st_uid, server.folder.stat().st_gid)
    for mode in ("read-write", "copy-on-write"):
        server.start(mode, overrides={"files": {"workspace": mode}}, cwd=str(folder))
        assert server.text("import os; open('x', 'w').close(); print(os.listdir())", mode) == "['x']"


def test_a_link_to_a_folder_leads_where_it_leads(server: Server) -> None:
    (server.folder / "link").symlink_to(server.folder)
    server.give("given", "given")
    server.start(cwd=str(server.folder / "link"), pool=False)  # one that ran before might have made the link
    assert server.text("print(open('given').read())") == "given"


def test_a_kernelspec_without_our_metadata_is_run_in_the_sandbox(life: bool, ordinary: Ordinary) -> None:
    """The server's default names our provisioner, and the stock kernelspec names none: so it is ours that starts it."""
    site = ordinary.home / "etc" / "isolated-python" / "profiles"
    site.mkdir(parents=True)
    (site / "standard.toml").write_text('[layers]\ncgroup = "prefer"\n')
    told = {"JUPYTER_DEFAULT_PROVISIONER_NAME": "isolated-python", "JUPYTER_CONFIG_PATH": str(ordinary.home / "etc")}
    with serve(life, ordinary, **told) as server:
        server.start(kernel="python3", spec={"metadata": {}})
        status = server.text("print([line for line in open('/proc/self/status') if line.startswith('Seccomp:')])")
        assert "2" in status


def test_our_kernelspec_without_our_provisioner_is_no_kernel(server: Server) -> None:
    """A front end that runs the argv by itself gets a sentence, and no kernel without a sandbox."""
    spec = {"metadata": {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}}
    assert "died" in server.refused(spec=spec, pool=False)["error"]


def test_the_kernelspecs_command_refuses_whoever_runs_it_by_itself(ordinary: Ordinary) -> None:
    """VS Code and emacs do. One sentence, the status of a wrong configuration, and no kernel."""
    spec = json.loads((Path(sys.prefix) / "share/jupyter/kernels/isolated-python/kernel.json").read_text())
    file = ordinary.home / "connection.json"
    words = {"python": sys.executable, "{connection_file}": str(file)}
    done = ordinary.run([words.get(word, word) for word in spec["argv"]], check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (78, "", 1)
    assert "run without a sandbox" in done.stderr
    assert "jupyter lab" in done.stderr
    assert not file.exists()


def test_whoever_asks_for_tcp_gets_sockets_that_nobody_else_can_reach(server: Server) -> None:
    """No port is opened on any address. Encryption that may be there is not missed where there is no network."""
    before = ports(server)
    server.start(manager={"transport": "tcp", "ip": "0.0.0.0", "transport_encryption": "auto"})
    assert server.text("print(1)") == "1"
    told, folder = server.ask("connection", name="kernel"), Path(server.ask("supervisor")["folder"])
    assert told["transport"] == "ipc"
    assert Path(told["ip"]).parent == folder / "clients"
    assert (folder / "clients").stat().st_mode & 0o077 == 0
    assert ports(server) <= before


def ports(server: Server) -> set[str]:
    """Where its processes listen; without root, who may not look at them all, where their user's do."""
    if os.geteuid() == 0:
        all_of_it = [psutil.Process(server.process.pid), *server.ours()]
        found = [one for process in all_of_it for one in process.net_connections("inet")]
        return {str(one.laddr) for one in found if one.status == psutil.CONN_LISTEN}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {words[1] for words in lines if words[3] == "0A" and words[7] == str(os.geteuid())}  # 0A: TCP_LISTEN


@pytest.mark.parametrize("declared", [True, False])
def test_encryption_that_is_required_is_refused_clearly(server: Server, declared: bool) -> None:
    """jupyter_client asks the kernelspec first; where that declares it, we say what there is in its place."""
    server.pool = False  # which is said in the stanza that is replaced here
    ours = {"kernel_provisioner": OURS}
    metadata = ours | {"supported_encryption": ["curve"]} if declared else ours
    said = refused_without_trace(
        server,
        lambda: server.refused(spec={"metadata": metadata}, manager={"transport_encryption": "required"}),
    )
    assert ("no network transport to encrypt" if declared else "does not declare 'curve'") in said


RUNTIME = {
    "missing": "not a folder that is ours",
    "relative": "not a folder that is ours",
    "file": "not a folder that is ours",
    "open to others": "not a folder that is ours",
    "of somebody else": "not a folder that is ours",
    "too long": "too long for the path of a socket",
}


@pytest.mark.parametrize("fault", RUNTIME)
def test_a_runtime_folder_that_cannot_be_trusted_is_refused(life: bool, ordinary: Ordinary, fault: str) -> None:
    place = ordinary.home / ("run" if fault != "too long" else "x" * 90)
    if fault == "file":
        place.touch()
    elif fault != "missing":
        place.mkdir()
    place = Path("/usr") if fault == "of somebody else" and not life else place
    if fault != "missing" and place != Path("/usr"):
        theirs = (fault == "of somebody else") == life
        os.chown(place, *((ordinary.uid, ordinary.gid) if theirs else (os.getuid(), os.getgid())))
        place.chmod(0o777 if fault == "open to others" else 0o700)
    with serve(life, ordinary, ISOLATED_PYTHON_RUNTIME_DIR="run" if fault == "relative" else str(place)) as server:
        answer = server.refused()
        assert RUNTIME[fault] in answer["error"], answer
        assert "\n" not in answer["error"]
        assert server.ours() == []
    if place.is_dir() and place != Path("/usr"):
        assert os.listdir(place) == []


def test_without_a_free_uid_nothing_starts(root_server: Server) -> None:
    """All of the range is held by somebody else; as soon as they let go, a kernel starts."""
    folder = root_server.folder.parent / "identities"
    folder.mkdir()
    root_server.ask("identities", folder=str(folder))
    root_server.ask("supervisor")
    with open(folder / "lock", "r+b") as lock:
        everything = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, SPARE, 0, 0)
        fcntl.fcntl(lock, F_OFD_SETLK, everything)
        assert "host identities for kernels are taken" in refused_without_trace(root_server, root_server.refused)
    root_server.start()


def refused_without_trace(server: Server, start: Callable[[], dict[str, Any]]) -> str:
    """What a start that cannot be is told: one line. Again and again, until what the first has made for all kernels has
    come to rest: a zygote, and the group it stands in. A start that leaves something does so each time.
    """
    assert "error" in start()
    before, after, deadline = {}, traces(server), time.monotonic() + 15
    while after != before and time.monotonic() < deadline:
        before = traces(server)
        said = start()["error"]
        assert "\n" not in said
        after = traces(server)
    assert after == before
    assert before["sockets"] == []
    return str(said)


def traces(server: Server) -> dict[str, Any]:
    """What a start leaves behind, if it does: processes, descriptors, mounts, sockets, cgroups."""
    where = server.ask("supervisor")
    supervisor = psutil.Process(where["pid"])
    return {
        "processes": sorted(one.pid for one in supervisor.children(recursive=True)),
        "descriptors": (supervisor.num_fds(), psutil.Process(server.process.pid).num_fds()),
        "mounts": len(Path(f"/proc/{where['pid']}/mountinfo").read_text().splitlines()),
        "sockets": [name for part in ("clients", "kernels") for name in os.listdir(f"{where['folder']}/{part}")],
        "cgroups": cgroups_of(where["pid"]),
    }
