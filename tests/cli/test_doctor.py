"""`jupyter isolated doctor` says what is there, what is missing and what repairs it; its status is for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from isolated_python.cli import attacks, doctor
from isolated_python.linux import host
from isolated_python.linux.host import Host, Lack
from isolated_python.policy.profile import LAYERS, Layers, Profile

GOOD = Host("6.18", "x86_64", 0, True, 7, "v1", "core")
PROGRAM = "from isolated_python.cli.doctor import doctor; doctor(prog_name='doctor')"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *options], capture_output=True, text=True, timeout=100)


def found(machine: Host, profile: Profile | None = None, **more: bool | str) -> dict[str, doctor.Finding]:
    findings = doctor.examine(profile or Profile(), machine, **more)  # type: ignore[arg-type]
    return {finding.layer: finding for finding in findings}


def lacking(*names: str) -> Host:
    lacks = tuple(Lack(name, f"no {name} here", f"get {name}") for name in names)
    return Host("5.4", "x86_64", 1000, False, 0 if "landlock" in names else 7, "none", "core", lacks)


def test_every_layer_of_the_profile_gets_a_verdict() -> None:
    findings = found(GOOD)
    assert list(findings) == list(LAYERS)
    assert {finding.verdict for finding in findings.values()} == {"PASS"}


def test_what_is_required_and_missing_fails_and_what_is_preferred_weakens() -> None:
    """`seccomp` is required and `time` preferred in the standard profile."""
    findings = found(lacking("seccomp", "time"))
    assert findings["seccomp"] == doctor.Finding("seccomp", "FAIL", "no seccomp here", "get seccomp")
    assert findings["time"] == doctor.Finding("time", "WEAK", "no time here", "get time")


def test_a_layer_fails_with_what_it_needs() -> None:
    """Without a /proc of its own a pid namespace is not enough."""
    assert found(lacking("fresh_proc"))["pid"].verdict == "FAIL"


def test_half_a_layer_is_weak() -> None:
    old = Host("6.1", "x86_64", 0, True, 2, "v2", "core", (Lack("seccomp_notify", "no", "newer"),))
    findings = found(old)
    assert findings["landlock"].verdict == findings["seccomp"].verdict == "WEAK"
    assert findings["cgroup"].verdict == "PASS"


def test_a_layer_that_is_switched_off_is_weak() -> None:
    assert found(GOOD, Profile(layers=Layers(landlock="off")))["landlock"].verdict == "WEAK"


def test_systemd_can_be_asked_for_what_is_missing() -> None:
    assert found(lacking("cgroup"))["cgroup"].verdict == "FAIL"
    assert found(lacking("cgroup"), delegation=True)["cgroup"].verdict == "PASS"


def test_a_filter_that_cannot_be_compiled_is_none() -> None:
    finding = found(GOOD, compiler="libseccomp cannot be loaded")["seccomp"]
    assert (finding.verdict, finding.remedy) == ("FAIL", "apt-get install libseccomp2")


def test_the_table_shows_every_layer_and_the_status_follows_it() -> None:
    done = run()
    assert all(layer in done.stdout for layer in LAYERS)
    assert done.returncode == ("FAIL" in done.stdout), done.stderr


def test_a_script_reads_the_same_in_json() -> None:
    done = run("--json")
    report = json.loads(done.stdout)
    assert Host.from_wire(report["host"]).uid == os.geteuid()
    assert {finding["layer"] for finding in report["layers"]} >= set(LAYERS)
    assert done.returncode == any(finding["verdict"] == "FAIL" for finding in report["layers"])
    assert all(finding["remedy"] for finding in report["layers"] if finding["verdict"] != "PASS")


def test_an_ordinary_user_on_cgroup_v1_is_told_what_repairs_it(ordinary) -> None:  # type: ignore[no-untyped-def]
    done = ordinary.python(f"import sys; sys.argv[1:] = ['--json']; {PROGRAM}", check=False)
    cgroup = next(finding for finding in json.loads(done.stdout)["layers"] if finding["layer"] == "cgroup")
    assert cgroup["verdict"] == "PASS" or (done.returncode == 1 and 'cgroup = "prefer"' in cgroup["remedy"])


@pytest.mark.skipif(not host.probe().can("cgroup"), reason="no kernel starts here without cgroup")
def test_a_kernel_looks_around_inside_and_finds_nothing() -> None:
    """A real kernel, started as Jupyter starts it, with a token in its server's environment."""
    done = run("--probe", "--json")
    report = json.loads(done.stdout)
    assert [finding for finding in report["inside"] if finding["verdict"] != "PASS"] == []
    assert len(report["inside"]) > 5
    assert {one["verdict"] for one in report["attacks"]} <= {"PASS", "VOID"}
    assert len(report["attacks"]) == len(attacks.ATTACKS) + 1
    assert [one["attack"] for one in report["attacks"] if one["verdict"] == "PASS" and not one["stopped_by"]] == []
    # What every machine lets a plain process do, and so proves something.
    certain = {"read a file in the home folder", "connect to a service of this machine", "outlive its kernel"}
    assert certain <= {one["attack"] for one in report["attacks"] if one["verdict"] == "PASS"}
    assert done.returncode == 0, done.stderr


def test_bad_usage_ends_with_2() -> None:
    assert run("--nonsense").returncode == 2
    assert run("--", "--ServerApp.port=1").returncode == 2  # of a server that is not asked about


def test_without_a_server_there_is_a_sentence() -> None:
    hidden = "import sys; sys.modules['jupyter_server'] = None; sys.argv[1:] = ['doctor', '--server']"
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}; from isolated_python.cli import main; main()"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no Jupyter Server in this environment: ask where the server is\n"


FACTS = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0000000000000000") | {
    "Seccomp": "2",
    "NoNewPrivs": "1",
    "uid": 1000,
    "processes": {"1": "init", "2": "kernel"},
    "shadow": False,
    "home": [],
    "environment": {"HOME": "/home/user"},
    "interfaces": ["lo"],
    "unshare": 1,
}


def test_what_a_kernel_must_find_inside() -> None:
    assert {finding.verdict for finding in doctor.judge(FACTS, "secret")} == {"PASS"}


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("Seccomp", "0"),
        ("NoNewPrivs", "0"),
        ("CapBnd", "000001ffffffffff"),
        ("uid", 0),
        ("processes", {str(pid): "x" for pid in range(1, 100)}),
        ("shadow", True),
        ("home", [".ssh"]),
        ("environment", {"X": "a secret of ours"}),
        ("environment", {"JUPYTERHUB_API_TOKEN": ""}),
        ("interfaces", ["lo", "eth0"]),
        ("unshare", 0),
    ],
)
def test_one_thing_too_much_inside_fails(fact: str, value: object) -> None:
    """Each of these alone makes one finding fail."""
    findings = doctor.judge({**FACTS, fact: value}, "secret")
    assert [finding.verdict for finding in findings].count("FAIL") == 1


def test_the_look_around_sees_an_open_house_where_there_is_no_sandbox(tmp_path: Path) -> None:
    """The control: the same cell run as a plain process of ours finds the harm that it looks for."""
    (tmp_path / ".ssh").mkdir()
    probe = "import os\nos.environ['JUPYTER_TOKEN'] = 'secret'\n" + doctor._cell(tmp_path)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)

    verdicts = {finding.layer: finding.verdict for finding in doctor.judge(json.loads(done.stdout), "secret")}

    for name in (
        "seccomp filter",
        "no new privileges",
        "own processes only",
        "no /etc/shadow",
        "no home folder",
        "no token",
    ):
        assert verdicts[name] == "FAIL", name


def test_without_a_sandbox_the_attacks_succeed_and_nothing_is_left(tmp_path: Path) -> None:
    """The control: a plain process in place of the kernel is attacked with success, and the doctor says FAIL."""

    def plain(code: str) -> str:
        command = [sys.executable, "-I", "-S", "-c", code]
        environment = {"PATH": "/usr/bin:/bin", "JUPYTER_TOKEN": "a token of ours"}
        asked = {"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, **asked).stdout

    before = {*Path.home().iterdir()}
    with attacks.Stage(tmp_path, "a token of ours") as stage:
        results = {one.attack: one for one in stage.attack(plain)}
        stage.stay(plain)
        outlived = stage.outlived()
    assert {one.verdict for one in results.values()} <= {"FAIL", "VOID"}
    assert [one.verdict for one in results.values()].count("FAIL") > 10
    assert results["read a file in the home folder"].said == "it got the secret"
    assert (outlived.verdict, outlived.said) == ("FAIL", "it got 1 processes")
    assert {*Path.home().iterdir()} == before
    assert "a token of ours" not in " ".join(" ".join(one.info["cmdline"] or ()) for one in processes())


def processes() -> Iterator[psutil.Process]:
    return psutil.process_iter(["cmdline"])


def test_what_fails_without_a_sandbox_too_proves_nothing(tmp_path: Path) -> None:
    stage = attacks.Stage(tmp_path, "token")
    one = attacks.Attack("reach nothing", "mount", "loot = open('/no/such/file').read()")
    assert stage._result(one, {"refused": "no"}, {"refused": "no"}).verdict == "VOID"
    assert stage._result(one, {"loot": "x"}, {"refused": "no"}).verdict == "PASS"
    assert stage._result(one, {"refused": "no"}, {"loot": "x"}).verdict == "FAIL"
    assert attacks.said("noise\n") == {}
