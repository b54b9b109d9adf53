"""In a container: with what a sandbox needs a notebook runs in one; without, the doctor says what to ask for."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from isolated_python.linux import container as asks
from nbformat.v4 import new_code_cell, new_notebook

from tests.conftest import BIN
from tests.places.conftest import DEPLOY

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(os.geteuid() != 0, reason="a container with this machine's own files is root's"),
]
PODMANS = Path("/usr/share/containers/seccomp.json")
NAMESPACES = 0x7E020000  # flags of clone(2) that Docker's profile refuses

# Everything that podman keeps or makes is in this shell's own mounts and processes, and ends with it. No image: the
# root of the container is this machine's, beneath a layer that takes what is written. crun knows no hybrid cgroups.
SCRIPT = """
set -e
mount --make-rprivate /
umount /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir /run/upper /run/work /run/root
chmod 755 /run/upper
mount -t overlay overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work /run/root
echo hidden >/run/root/secret-of-the-container
exec podman --root /run/storage --runroot /run/podman --tmpdir /run/tmp --cgroup-manager=cgroupfs \
    --events-backend=none run --rm --network=none --cgroups=disabled "$@"
"""
LOOK = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "secret": os.path.exists("/secret-of-the-container"), "shadow": os.path.exists("/etc/shadow"), "uid": os.getuid(),
    "seccomp": status["Seccomp"].strip(), "capabilities": int(status["CapBnd"], 16),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]) < 8,
}))
open("made", "w").write("x")
"""
PREFER = 'extends = "standard"\n[layers]\ncgroup = "prefer"\n'


UNMASKED = "--security-opt=unmask=ALL"
STRICT = ["--cap-drop=ALL", "--security-opt=no-new-privileges"]


class Container:
    """A folder that is mounted in it as /work, its home, and the containers that are made with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        notebook = new_notebook(cells=[new_code_cell(LOOK)])
        (folder / "notebooks").mkdir()
        nbformat.write(notebook, folder / "notebooks" / "look.ipynb")
        profiles = folder / ".jupyter" / "isolated-python" / "profiles"
        profiles.mkdir(parents=True)
        (profiles / "container.toml").write_text(PREFER)
        self.widened = str(folder / "widened.json")
        self.profile("widened.json", PODMANS)

    def profile(self, name: str, source: Path) -> None:
        """What deploy/containers/seccomp.py makes of a runtime's profile."""
        command = [sys.executable, DEPLOY / "containers" / "seccomp.py", source]
        (self.folder / name).write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def run(self, uid: int, flags: list[str], *command: str) -> subprocess.CompletedProcess[str]:
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, uid, uid)
        limits = [f"--ulimit={name}={soft}:{hard}" for name, (soft, hard) in rlimits().items()]
        own = [f"--user={uid}:{uid}", f"--volume={self.folder}:/work", "--workdir=/work/notebooks", "--env=HOME=/work"]
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", SCRIPT, "sh",
             *limits, *own, *flags, "--rootfs", "/run/root", f"{BIN}/jupyter-isolated", *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    def doctor(self, uid: int, flags: list[str]) -> dict[str, dict[str, str]]:
        """What is missing, by layer."""
        done = self.run(uid, flags, "doctor", "--json")
        assert done.stdout, done.stderr
        layers = {one["layer"]: one for one in json.loads(done.stdout)["layers"]}
        missing = {name: one for name, one in layers.items() if one["verdict"] == "FAIL"}
        assert done.returncode == bool(missing)
        return missing

    def start(self, uid: int, flags: list[str]) -> subprocess.CompletedProcess[str]:
        command = ["run", "--profile", "container", "--output", "done.ipynb", "look.ipynb"]
        return self.run(uid, flags, *command)


def rlimits() -> dict[str, tuple[int, int]]:
    """What we have ourselves: podman would ask for more than a test machine may give."""
    files, processes = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_NPROC)
    fewer = [32768 if one < 0 else min(one, 32768) for one in processes]
    return {"nofile": files, "nproc": (fewer[0], fewer[1])}


@pytest.fixture
def container() -> Iterator[Container]:
    assert shutil.which("podman"), "apt-get install podman crun"
    folder = Path(tempfile.mkdtemp(prefix="isolated-container-"))
    try:
        yield Container(folder)
    finally:
        shutil.rmtree(folder)


def dockers(container: Container) -> Path:
    """A profile that refuses what Docker's does, to a container without capabilities: as its documentation says."""
    profile: dict[str, Any] = json.loads(PODMANS.read_text())
    refused = ("unshare", "setns", "mount", "umount2", "open_tree", "move_mount", "mount_setattr", "pivot_root")
    refused += ("sethostname", "clone", "clone3")
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in refused]
    plain = {"index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    profile["syscalls"] = [rule for rule in profile["syscalls"] if rule["names"]] + [
        {"names": [*refused[:-2]], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [plain]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]
    path = container.folder / "docker.json"
    path.write_text(json.dumps(profile))
    return path


def test_a_root_without_capabilities_is_told_to_be_an_ordinary_user(container: Container) -> None:
    """Who may not even name root in a namespace: of all settings it is the user that is wrong."""
    flags = [UNMASKED, f"--security-opt=seccomp={container.widened}", *STRICT]
    done = container.start(0, flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "run the server as an ordinary user" in done.stderr
    assert "run the server as an ordinary user" in container.doctor(0, flags)["user"]["remedy"]


def test_the_pod_has_each_setting_that_the_doctor_asks_of_kubernetes() -> None:
    """It is read as Kubernetes would; whether one runs it is not known here."""
    pod = yaml.safe_load((DEPLOY / "containers" / "pod.yaml").read_text())["spec"]
    (server,) = pod["containers"]
    assert (pod["hostUsers"], server["securityContext"]["procMount"]) == (False, "Unmasked")
    assert pod["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}
    assert pod["securityContext"]["seccompProfile"]["type"] == "Localhost"
    asked = " ".join(asks.repair(what, inside="Kubernetes") for what in (asks.CALLS, asks.PROC))
    words = ("hostUsers: false", "procMount: Unmasked", "appArmorProfile", "seccompProfile", "Localhost", "Unconfined")
    assert [word for word in words if word not in asked] == []


@pytest.mark.parametrize(("uid", "more"), [(1000, STRICT), (1000, []), (0, [])])
@pytest.mark.parametrize("like", ["podman", "Docker"])
def test_with_what_is_needed_a_notebook_runs_in_a_sandbox(
    container: Container, uid: int, more: list[str], like: str
) -> None:
    """Under no more rights than the container has: as an ordinary user of it even without any."""
    if like == "Docker":
        container.profile("widened.json", dockers(container))
    flags = [UNMASKED, f"--security-opt=seccomp={container.widened}", *more]
    done = container.start(uid, flags)
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = nbformat.read(container.folder / "notebooks" / "done.ipynb", 4).cells[0].outputs
    assert json.loads(outputs[0].text) == {
        "secret": False, "shadow": False, "uid": 1000, "seccomp": "2", "capabilities": 0, "processes": True,
    }  # fmt: skip
    assert (container.folder / "notebooks" / "made").stat().st_uid == uid
    assert not {*container.doctor(uid, flags)} - {"cgroup"}


@pytest.mark.parametrize(
    ("like", "masked", "missing"),
    [
        ("podman", True, {"pid": "--security-opt unmask=ALL", "uts": "--security-opt seccomp="}),
        ("podman", False, {"uts": "--security-opt seccomp="}),
        ("widened", True, {"pid": "--security-opt unmask=ALL"}),
        ("Docker", True, {"user": "--security-opt seccomp=", "pid": "--security-opt seccomp="}),
    ],
)
def test_without_it_the_start_is_refused_in_one_sentence_and_the_doctor_names_the_setting(
    container: Container, like: str, masked: bool, missing: dict[str, str]
) -> None:
    """What was tried above is what it names."""
    profile = {"podman": str(PODMANS), "widened": container.widened}.get(like) or str(dockers(container))
    flags = [f"--security-opt=seccomp={profile}", *([] if masked else [UNMASKED])]
    done = container.start(1000, flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert any(remedy in done.stderr for remedy in missing.values())
    found = container.doctor(1000, flags)
    assert {*missing} <= {*found}
    if like != "Docker":  # where there is no user namespace, nothing else is
        assert {*found} - {*missing} <= {"cgroup"}
    for layer, remedy in missing.items():
        assert remedy in found[layer]["remedy"]
    assert "limits of the container" in found["cgroup"]["remedy"]
