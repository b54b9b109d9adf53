"""`jupyter isolated doctor`: what this machine can give, layer by layer, and what repairs the rest."""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from isolated_python.cli import attacks
from isolated_python.cli.attacks import FAIL, PASS
from isolated_python.errors import IsolatedPythonError, RequestError
from isolated_python.layers.cgroup import systemd
from isolated_python.linux import host as host_facts
from isolated_python.policy.profile import LAYERS, Profile

WEAK = "WEAK"
COLOURS = {PASS: "green", WEAK: "yellow", FAIL: "red"}
SCOPED_LANDLOCK = 6  # the first version that also cuts off signals and abstract sockets
OWN = 8  # processes that a kernel may see before a cell has started any: init, itself, and room for helpers
PATIENCE = 60.0  # seconds for a kernel to start, and again to answer
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Finding:
    layer: str
    verdict: str
    cause: str = ""
    remedy: str = ""


# ---- from outside ----------------------------------------------------------------------------------------------------


def examine(
    profile: Profile, host: host_facts.Host, *, delegation: bool = False, service: str = "", compiler: str = ""
) -> list[Finding]:
    """One finding for each layer of the profile, and for what else makes a sandbox weaker than it could be.

    `delegation`: systemd's user manager can be asked for a cgroup. `service`: the version of the cgroup that this
    machine's service gives, if it answers. `compiler`: why no filter can be compiled, if so.
    """
    findings = []
    for layer in LAYERS:
        wanted = getattr(profile.layers, layer)
        cause, remedy = host.lacks(layer)
        if layer == "seccomp" and not cause and compiler:
            cause, remedy = compiler, "apt-get install libseccomp2"
        if wanted == "off":
            findings.append(Finding(layer, WEAK, f"the profile {profile.name} switches it off", f'{layer} = "require"'))
        elif layer == "cgroup" and service:
            findings.append(Finding(layer, PASS, f"{service}, by the service"))
        elif layer == "cgroup" and cause and delegation:
            findings.append(Finding(layer, PASS, "systemd's user manager will be asked for one"))
        elif cause:
            findings.append(Finding(layer, FAIL if wanted == "require" else WEAK, cause, remedy))
        else:
            findings.append(_limits_of(layer, host))
    for name, loss in (
        ("copy_on_write", "no workspace can be copy-on-write"),
        ("idmap", "files in a workspace cannot keep their owner"),
        ("image", "what changes in a copy-on-write workspace lies in memory, whatever its size"),
    ):
        cause, remedy = host.lacks(name)
        if cause and (name != "image" or host.root):  # no ordinary user has any
            findings.append(Finding(name, WEAK, f"{loss}: {cause}", remedy))
    return findings


def _limits_of(layer: str, host: host_facts.Host) -> Finding:
    """A layer that is there, if not in full."""
    if layer == "landlock" and host.landlock_abi < SCOPED_LANDLOCK:
        cause = f"version {host.landlock_abi} of {SCOPED_LANDLOCK}: signals and abstract sockets are left to namespaces"
        return Finding(layer, WEAK, cause, "use linux 6.12 or newer")
    if layer == "seccomp" and not host.can("seccomp_notify"):
        cause, remedy = host.lacks("seccomp_notify")
        return Finding(layer, WEAK, f"refused calls cannot be told: {cause}", remedy)
    return Finding(layer, PASS, {"cgroup": host.cgroup, "landlock": f"version {host.landlock_abi}"}.get(layer, ""))


def _compiler() -> str:
    """Why no filter can be compiled; empty when it can."""
    try:
        import pyseccomp  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return f"libseccomp cannot be loaded ({error})"
    return ""


# ---- from inside -----------------------------------------------------------------------------------------------------

# Run as a cell. `home` maps the names in the home folder of whoever runs the server to inode and time of change.
FIELDS = ("Seccomp", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
CELL = """
import ctypes, json, os, sys
home, files = {home!r}, {files!r}
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
facts = {{name: status[name].strip() for name in {fields!r}}}
facts["uid"] = os.getuid()
facts["processes"] = {{pid: open(f"/proc/{{pid}}/comm").read().strip() for pid in os.listdir("/proc") if pid.isdigit()}}
facts["shadow"] = os.path.lexists("/etc/shadow")
needed = [os.path.realpath(path) for path in (*sys.path, sys.prefix, sys.base_prefix, sys.executable) if path]
def same(name, inode, changed):
    try:
        found = os.lstat(os.path.join(home, name))
    except OSError:
        return False
    return [found.st_ino, found.st_mtime_ns] == [inode, changed]
facts["home"] = [
    name for name, (inode, changed) in files.items() if same(name, inode, changed)
    and not any((path + "/").startswith(os.path.join(os.path.realpath(home), name) + "/") for path in needed)
]
facts["environment"] = dict(os.environ)
facts["interfaces"] = [line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]]
libc = ctypes.CDLL(None, use_errno=True)
facts["unshare"] = 0 if libc.unshare(0x10000000) == 0 else ctypes.get_errno()
print(json.dumps(facts))
"""


@dataclass(frozen=True, slots=True)
class Check:
    """What a kernel must find when it looks around. `says` shows what it found."""

    name: str
    holds: Callable[[dict[str, Any]], bool]
    says: Callable[[dict[str, Any]], str]


def _no_capability(facts: dict[str, Any]) -> bool:
    return not any(int(facts[name], 16) for name in FIELDS if name.startswith("Cap"))


def _checks(token: str) -> tuple[Check, ...]:
    def leaked(facts: dict[str, Any]) -> list[str]:
        return [name for name, value in facts["environment"].items() if token in value or name.endswith("_TOKEN")]

    return (
        Check("seccomp filter", lambda f: f["Seccomp"] == "2", lambda f: f"Seccomp {f['Seccomp']}"),
        Check("no new privileges", lambda f: f["NoNewPrivs"] == "1", lambda f: f"NoNewPrivs {f['NoNewPrivs']}"),
        Check("no capability", _no_capability, lambda f: f"CapEff {f['CapEff']}, CapBnd {f['CapBnd']}"),
        Check("not root", lambda f: f["uid"] != 0, lambda f: f"uid {f['uid']}"),
        Check("own processes only", lambda f: len(f["processes"]) <= OWN, _processes),
        Check("no /etc/shadow", lambda f: not f["shadow"], lambda f: "visible" if f["shadow"] else "absent"),
        Check(
            "no home folder", lambda f: not f["home"], lambda f: f"visible: {', '.join(f['home'])}" * bool(f["home"])
        ),
        Check("no token", lambda f: not leaked(f), lambda f: f"{len(f['environment'])} variables {leaked(f) or ''}"),
        Check("no network", lambda f: f["interfaces"] in ([], ["lo"]), lambda f: ", ".join(f["interfaces"])),
        Check("unshare refused", lambda f: f["unshare"] != 0, lambda f: f"errno {f['unshare']}"),
    )


def _processes(facts: dict[str, Any]) -> str:
    return ", ".join(f"{pid} {name}" for pid, name in list(facts["processes"].items())[: OWN + 1])


def judge(facts: dict[str, Any], token: str) -> list[Finding]:
    """What a kernel found inside, held against what it must find."""
    repair = "this is a fault of Isolated Python: please report it with the output of `jupyter isolated doctor --json`"
    return [
        Finding(check.name, PASS, check.says(facts))
        if check.holds(facts)
        else Finding(check.name, FAIL, check.says(facts), repair)
        for check in _checks(token)
    ]


def look_inside() -> tuple[list[Finding], list[attacks.Result]]:
    """Start a kernel as Jupyter would, let a cell look around, and let others attack this machine."""
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import KernelManager

    token = secrets.token_hex(16)
    manager = KernelManager(kernel_name="isolated-python")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "JUPYTER_TOKEN": token}
    with tempfile.TemporaryDirectory(prefix="isolated-doctor-") as workspace:
        try:
            assert manager.kernel_spec is not None  # else it raises NoSuchKernel
            attacks.tighten(manager.kernel_spec.metadata["kernel_provisioner"])
            manager.start_kernel(cwd=workspace, env=environment)
            with attacks.Stage(Path(workspace), token) as stage:

                def questions(ask: attacks.Ask) -> tuple[list[Finding], list[attacks.Result]]:
                    findings, results = judge(json.loads(ask(_cell(Path.home()))), token), stage.attack(ask)
                    stage.stay(ask)
                    return findings, results

                try:
                    findings, results = _ask(manager, questions)
                finally:
                    manager.shutdown_kernel(now=True)
                return findings, [*results, stage.outlived()]
        except NoSuchKernel:
            failure = Finding("kernel", FAIL, "Jupyter knows no kernel isolated-python", "jupyter isolated install")
        except IsolatedPythonError as error:
            failure = Finding("kernel", FAIL, error.message, error.remedy)
        except (OSError, RuntimeError, TimeoutError, ValueError) as error:
            failure = Finding("kernel", FAIL, f"no kernel answers ({error})", "look at the server's log")
    return [failure], []


def _ask(manager: Any, questions: Callable[[attacks.Ask], Made]) -> Made:
    """What comes of asking a kernel: a question is a cell, and its answer what the cell prints."""
    printed: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])
        elif message["msg_type"] == "error":
            raise RuntimeError(message["content"]["evalue"])

    def ask(code: str) -> str:
        printed.clear()
        client.execute_interactive(code, output_hook=hear, timeout=PATIENCE, store_history=False)
        return "".join(printed)

    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE)
        return questions(ask)
    finally:
        client.stop_channels()


def _cell(home: Path) -> str:
    files = {}
    for path in home.iterdir() if home.is_dir() else ():
        about = path.lstat()
        if not stat.S_ISLNK(about.st_mode):
            files[path.name] = [about.st_ino, about.st_mtime_ns]
    return CELL.format(home=str(home), files=files, fields=FIELDS)


# ---- the privileged service ------------------------------------------------------------------------------------------


def ask_service() -> tuple[list[Finding], str]:
    """What this machine's service has for us, if there is one; and the version of the cgroup that it gives."""
    from isolated_python import __version__
    from isolated_python.engine import places, visits
    from isolated_python.policy import SOCKET

    root = os.geteuid() == 0
    path = places.service("auto") or (SOCKET if root and os.path.exists(SOCKET) else "")
    if not path:
        return [], ""
    try:
        told = visits.ask(path, "about")
    except IsolatedPythonError as error:
        if root and isinstance(error, RequestError):  # it has heard us, and knows who we are
            return [Finding("service", PASS, f"answers at {path}; root's own servers do without it")], ""
        return [Finding("service", FAIL, error.message, error.remedy or INSTALL)], ""
    if told["version"] != __version__:
        cause = f"it is isolated-python {told['version']}, and here is {__version__}"
        return [Finding("service", FAIL, cause, INSTALL)], ""
    findings = [Finding("service", PASS, f"answers at {path}")]
    if told["cgroup"] == "none":
        findings.append(Finding("cgroup", FAIL, "the service has none to give", "sudo jupyter isolated doctor"))
    else:
        findings.append(Finding("cgroup", PASS, f"{told['cgroup']}, one for each kernel and one for all of yours"))
    first, last = told["identities"]
    findings.append(Finding("uid", PASS, f"one of {first} to {last - 1} for each kernel; files stay yours"))
    findings += [_quota(name, told["has"].get(name), most) for name, most in told["may_have"].items()]
    findings.append(Finding("profiles", PASS, ", ".join(told["profiles"])))
    return findings, "" if told["cgroup"] == "none" else told["cgroup"]


INSTALL = "install the same version of isolated-python for the service and for this server"
# What makes room where a quota is used up.
END_ONE = "jupyter isolated list; jupyter isolated kill ID"
ROOM = {
    "kernels": END_ONE,
    "servers": "stop one of your servers",
    "starts": "try again in a minute",
    "memory": END_ONE,
    "processes": END_ONE,
    "disk": END_ONE,
}


def _quota(name: str, used: int | None, most: float | None) -> Finding:
    """Of what a user has and may have; without a bound, or what is not counted, is never used up."""

    def shown(value: float) -> str:
        return f"{int(value) >> 20} MiB" if name in ("memory", "disk") else f"{value:g}"

    said = "unlimited" if most is None else f"at most {shown(most)}"
    if used is not None:
        said = f"{shown(used)}, {said}" + " within a minute" * (name == "starts")
    if most == 0:
        said = "none"
    if most is not None and used is not None and used >= most:
        return Finding(name, FAIL, f"{said}: the next kernel is refused", ROOM[name])
    return Finding(name, PASS, said)


# ---- from beside -----------------------------------------------------------------------------------------------------


def look_beside(arguments: list[str]) -> list[Finding]:
    """Configure the server that would be started here, and try each of its side doors."""
    from isolated_python import doors

    app = doors.configured(arguments)
    found = [(door, door.open(app)) for door in (*doors.DOORS, *doors.extensions(app))]
    return [Finding(door.name, FAIL if why else PASS, why, door.setting if why else "") for door, why in found]


# ---- the command -----------------------------------------------------------------------------------------------------


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--probe", is_flag=True, help="Start a kernel, ask from the inside, and attack this machine from there.")
@click.option("--server", is_flag=True, help="Name what else than kernels would run on the host, and what shuts it.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def doctor(as_json: bool, probe: bool, server: bool, arguments: tuple[str, ...]) -> None:
    """Say what this machine can give, layer by layer, and what repairs the rest.

    Ends with 0 when the profile `standard` can be had here, with 1 when something it requires is missing, an attack
    succeeds or, with --server, a side door stands open. ARGUMENTS, after --, are those that the server is started with.
    The attacks reach for what the doctor has laid out itself, and each is first made without a sandbox: what fails
    there as well proves nothing, and is said to be VOID.

    \b
    Examples:
      jupyter isolated doctor
      jupyter isolated doctor --probe --json
      jupyter isolated doctor --server -- --config=/srv/jupyter/config.py
    """
    if arguments and not server:
        raise click.UsageError("arguments are for the server: they need --server")
    host = host_facts.probe()
    asked, given = ask_service()
    outside = examine(Profile(), host, delegation=systemd.wanted(), service=given, compiler=_compiler())
    inside, attacked = look_inside() if probe else ([], [])
    beside = look_beside([*arguments]) if server else []
    if as_json:
        report = {"host": host.to_wire(), "layers": outside, "service": asked, "inside": inside}
        report |= {"attacks": attacked, "server": beside}
        click.echo(json.dumps(report, indent=2, default=asdict))
    else:
        who = "root" if host.root else f"uid {host.uid}"
        show(f"Linux {host.release}, {host.machine}, as {who}", outside)
        if asked:
            show("The service of this machine", asked, "what")
        if inside:
            show("From inside a kernel", inside)
        if attacked:
            attacks.show(attacked)
        if beside:
            show("Beside the kernels of this server", beside, "door")
    found = [one.verdict for one in outside + asked + inside + beside] + [one.verdict for one in attacked]
    sys.exit(FAIL in found)


def show(title: str, findings: list[Finding], what: str = "layer") -> None:
    """The findings as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in (what, "", "why", "what repairs it"):
        table.add_column(heading, overflow="fold")  # a command that is cut short repairs nothing
    for finding in findings:
        verdict = Text(finding.verdict, style=COLOURS[finding.verdict])
        # As plain texts: a bracket in a cause is no markup.
        table.add_row(Text(finding.layer), verdict, Text(finding.cause), Text(finding.remedy))
    Console().print(table)
