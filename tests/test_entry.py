"""On a machine that no sandbox is made for, a kernel is refused in a sentence at its start, and not by an import."""

from __future__ import annotations

import subprocess
import sys

import pytest
from isolated_python.entry import MACHINES
from isolated_python.linux import libc

# A Python as another system has it: without the modules and names that only Linux, or only Unix, has.
ELSEWHERE = """
import os, platform, select, signal, socket, sys
import jupyter_client.manager, jupyter_client.provisioning, click, traitlets
from jupyter_client.kernelspec import KernelSpec

system, machine = sys.argv[1:]
modules, names = set(), {
    os: ["memfd_create", "pidfd_open", "setresuid", "setresgid", "MFD_CLOEXEC", "O_PATH", "pipe2", "P_PIDFD"],
    signal: ["pidfd_send_signal"],
    socket: ["SO_PEERCRED", "SO_PASSCRED", "SCM_CREDENTIALS", "MSG_CMSG_CLOEXEC", "SOCK_CLOEXEC"],
    select: ["epoll"],
}
if system == "win32":
    modules = {"fcntl", "grp", "pwd", "resource", "termios"}
    names[os] += ["uname", "fork", "geteuid", "getuid", "register_at_fork", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY"]
    names[signal] += ["SIGKILL", "SIGHUP", "SIGCHLD", "SIGPIPE"]
    names[socket] += ["AF_UNIX", "send_fds", "CMSG_SPACE", "SCM_RIGHTS"]
    names[select] += ["poll"]
if system != "linux":
    for name in modules:
        sys.modules[name] = None
    for module, missing in names.items():
        for name in missing:
            delattr(module, name)
sys.platform = system
platform.machine = lambda: machine

import isolated_python.cli

spec = KernelSpec(metadata={"kernel_provisioner": {"provisioner_name": "isolated-python"}})
factory = jupyter_client.provisioning.KernelProvisionerFactory.instance()
assert factory.is_provisioner_available(spec)
try:
    factory.create_provisioner_instance("id", spec, None)
except Exception as error:
    print(type(error).__name__, error)
isolated_python.cli.main()
"""


@pytest.mark.parametrize("place", ["darwin arm64", "win32 AMD64", "linux riscv64"])
def test_elsewhere_a_start_and_a_command_are_refused_in_a_sentence(place: str) -> None:
    system, machine = place.split()
    command = [sys.executable, "-c", ELSEWHERE, system, machine]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    sentence = (
        f"Isolated Python needs Linux on x86_64 or aarch64, and this is {system} on {machine}: choose another kernel"
    )
    assert done.stdout.startswith(f"HostError {sentence}"), done
    assert done.stderr.startswith(f"error: {sentence}")
    assert (done.stdout.count("\n"), done.stderr.count("\n"), done.returncode) == (1, 1, 2)


def test_every_machine_that_is_let_in_has_its_numbers() -> None:
    assert {*MACHINES} == libc.NUMBERS.keys()
