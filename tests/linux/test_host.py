"""The host is asked, not guessed: each answer is compared with what happens when it is tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from isolated_python.linux import container, host, landlock, namespaces

# Asks in a process of its own: `probe` wants a single thread, and some of these tests change what it is asked in.
ASK = "import json; from isolated_python.linux import host; print(json.dumps(host.probe().to_wire()))"
SOURCES = str(Path(host.__file__).parents[2])


def asked(*before: str) -> host.Host:
    """What a fresh process finds out; `before` is a command that prepares a place for it."""
    program = f"import sys; sys.path.insert(0, {SOURCES!r}); {ASK}"
    command = [*before, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return host.Host.from_wire(json.loads(done.stdout))


def in_a_child(act: Callable[[], object]) -> bool:
    """Whether `act` works in a child that ends with it."""
    child = os.fork()
    if child == 0:
        status = 2  # something else is wrong than what Linux refuses
        try:
            act()
            status = 0
        except OSError:
            status = 1
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1)
    return status == 0


def test_the_answer_survives_the_wire() -> None:
    found = host.probe()
    assert host.Host.from_wire(json.loads(json.dumps(found.to_wire()))) == found


def test_the_plain_facts_are_those_of_this_machine() -> None:
    found = host.probe()
    assert (found.release, found.machine, found.uid) == (os.uname().release, os.uname().machine, os.geteuid())
    assert found.landlock_abi == landlock.abi()
    assert found.core_pattern == Path("/proc/sys/kernel/core_pattern").read_text().strip()


def test_a_lack_comes_with_a_cause_and_a_remedy() -> None:
    found = host.Host("6.1", "x86_64", 1, False, 0, "none", "core", (host.Lack("time", "too old", "use a newer one"),))
    assert found.lacks("time") == ("too old", "use a newer one")
    assert (found.can("time"), found.can("net"), found.lacks("net")) == (False, True, ("", ""))
    assert all(lack.cause and lack.remedy for lack in host.probe().missing)


@pytest.mark.parametrize("name", ["mount", "net", "ipc", "uts", "cgroup_namespace", "pid"])
def test_a_namespace_is_there_when_it_can_be_made(name: str) -> None:
    """The answer is the one that unshare(2) gives together with a user namespace."""
    flags = namespaces.FLAGS["user"] | namespaces.FLAGS[name]
    assert host.probe().can(name) == in_a_child(lambda: namespaces.unshare(flags))


def test_probing_leaves_nothing_behind() -> None:
    """No mount, no descriptor, no child, no other namespace."""

    def state() -> tuple[object, ...]:
        spaces = [os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))]
        mounts = [line.split()[3:5] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        children = {child.pid for child in psutil.Process().children()}
        return spaces, sorted(mounts), len(os.listdir("/proc/self/fd")), children

    before = state()
    found = host.probe()
    assert state() == before
    answers = host.asking()
    assert answers() == found
    assert state() == before


def test_an_ordinary_user_is_told_apart_from_root(ordinary) -> None:  # type: ignore[no-untyped-def]
    wire = json.loads(ordinary.python(ASK).stdout)
    found = host.Host.from_wire(wire)
    assert (found.root, found.uid) == (False, ordinary.uid)


inside = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"]
needs_namespaces = pytest.mark.skipif(not host.probe().can("fresh_proc"), reason="no namespaces here to try it in")


@needs_namespaces
def test_being_called_root_is_not_enough() -> None:
    """uid 0 in a user namespace has no right over the machine."""
    found = asked(*inside)
    assert (found.uid, found.root) == (0, False)


@needs_namespaces
def test_a_switch_against_user_namespaces_is_named() -> None:
    """With user.max_user_namespaces at 0, everything that needs one is missing, and the remedy turns the switch."""
    found = asked(*inside, "sh", "-c", 'echo 0 >/proc/sys/user/max_user_namespaces; exec "$@"', "sh")
    cause, remedy = found.lacks("user")
    assert "user.max_user_namespaces is 0" in cause
    assert remedy.startswith("sysctl -w user.max_user_namespaces=")
    assert not any(found.can(name) for name in ("mount", "pid", "fresh_proc", "overlay"))
    assert found.can("seccomp") == host.probe().can("seccomp")


@needs_namespaces
def test_a_masked_proc_is_noticed() -> None:
    """In most containers parts of /proc are covered; the kernel then refuses a fresh one, and the rest still works."""
    found = asked(*inside, "sh", "-c", 'mount -t tmpfs none /proc/sys/kernel; exec "$@"', "sh")
    cause, remedy = found.lacks("fresh_proc")
    assert "mounting proc" in cause
    assert remedy in container.REPAIRS[container.PROC].values()
    assert not found.can("pid"), "the pid layer is nothing without a /proc of its own"
    assert found.can("mount")
    assert found.core_pattern == "|"


@needs_namespaces
@pytest.mark.parametrize(
    ("mark", "kind", "says"),
    [
        ("run/.containerenv", "podman", "--security-opt unmask=ALL"),
        (".dockerenv", "Docker", "--security-opt systempaths=unconfined"),
        ("var/run/secrets/kubernetes.io", "Kubernetes", "procMount: Unmasked"),
        ("nothing", "", "if this is a container"),
    ],
)
def test_a_container_is_asked_for_what_it_withholds_in_its_own_words(
    tmp_path: Path, mark: str, kind: str, says: str
) -> None:
    """Known by what its kind leaves in it; a machine's own processes are in none, whatever lies on its disk."""
    (tmp_path / mark).mkdir(parents=True)
    program = f"import sys; sys.path.insert(0, {SOURCES!r}); from isolated_python.linux import container; "
    program += f"print(container.kind({str(tmp_path)!r}))"
    for before, expected in (((), ""), (inside, kind)):
        done = subprocess.run([*before, sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
    assert says in container.repair(container.PROC, inside=kind)
    cgroup = container.repair(container.CGROUP, "as ever", inside=kind)
    assert cgroup == "as ever" if not kind else "limits of the container" in cgroup
