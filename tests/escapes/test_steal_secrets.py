"""What the attacker wants: tokens, keys and passwords."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from typing import Any

from tests.escapes.attack import Attack, attack
from tests.escapes.places import Place
from tests.escapes.proof import prove
from tests.escapes.shares import HostName, PrivateFile
from tests.escapes.targets import HostFile, ServerToken
from tests.escapes.tools import first, read


def test_steal_secrets(attack: Attack, place: Place, proven: set[tuple[str, str]]) -> None:
    prove(attack, place, proven)


@attack(ServerToken, stopped_by="environment")
def in_its_own_environment(target: Any) -> str:
    """Find the server's token among the variables that the kernel was started with."""
    return str(dict(os.environ))


@attack(ServerToken, stopped_by="pid")
def in_the_environment_of_any_process(target: Any) -> str:
    """Read the environment of every process, the server's among them."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                found.append(read(f"/proc/{name}/environ"))
            except OSError:
                pass
    return "\n".join(found)


@attack(ServerToken, stopped_by="environment", runs="cell")
def in_the_memory_of_the_kernel(target: Any) -> str:
    """Search the kernel's own memory for what its ancestors knew."""
    found = set()
    with open("/proc/self/mem", "rb", 0) as memory, open("/proc/self/maps") as maps:
        for line in maps:
            low, high, mode = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
            size = int(high, 16) - int(low, 16)
            if mode.startswith("rw") and size < 1 << 28 and "[v" not in line:
                try:
                    memory.seek(int(low, 16))
                    text = memory.read(size)
                except OSError:
                    continue
                # Put together here, so that the program itself is not what is found.
                found |= {*re.findall(b"HUB_API_" + b"TOKEN=([0-9a-f]{32})", text)}
    return str(found)


@attack(ServerToken, stopped_by="environment")
def in_the_environment_of_its_programs(target: Any) -> str:
    """Let programs say what they were given: the shell, and what Linux keeps of a process's start."""
    said = subprocess.run(["/bin/sh", "-c", "set; export -p"], capture_output=True, text=True, check=False).stdout
    return said + read("/proc/self/environ")


@attack(ServerToken, stopped_by="environment")
def on_the_stack_of_the_process(target: Any) -> str:
    """Find the first environment on the stack, where it stays when a program changes its own."""
    libc = ctypes.CDLL(None)
    first_word = ctypes.cast(ctypes.c_void_p.in_dll(libc, "environ").value, ctypes.POINTER(ctypes.c_char_p))
    found = []
    for number in range(1000):
        if first_word[number] is None:
            break
        found.append(first_word[number].decode())
    return str(found)


@attack(ServerToken, stopped_by="pid")
def in_the_environment_of_its_ancestors(target: Any) -> str:
    """Climb from parent to parent, and read what each was started with."""
    found, pid = [], os.getpid()
    while pid > 1:
        status = read(f"/proc/{pid}/status")
        pid = int(re.search(r"PPid:\s+(\d+)", status).group(1))
        try:
            found.append(read(f"/proc/{pid}/environ"))
        except OSError:
            pass
    try:
        found.append(read(f"/proc/{target.server}/environ"))
    except OSError:
        pass
    return "".join(found)


def _kept(target: Any) -> str:
    """Read a file whose name is the same in everybody's home."""
    names = (target.path, "~/" + os.path.relpath(target.path, target.home), f"{target.home}/{target.file}")
    return str(first(lambda name=name: read(os.path.expanduser(name)) for name in names))


KEPT = [
    attack(PrivateFile, stopped_by="mount", name=name, wants=f"Read {what}.", facts={"file": file})(_kept)
    for name, what, file in (
        ("the_key_of_ssh", "the key by which the owner logs in elsewhere", ".ssh/id_ed25519"),
        ("the_keys_of_the_cloud", "the owner's credentials for a cloud", ".aws/credentials"),
        ("the_tokens_of_git", "the owner's tokens for their repositories", ".git-credentials"),
        ("the_passwords_of_netrc", "the owner's passwords for other machines", ".netrc"),
        ("the_key_of_another_kernel", "the file that says how to speak to another kernel, and with which key",
         ".local/share/jupyter/runtime/kernel-1.json"),
        ("the_password_of_the_server", "the password and the tokens of the Jupyter server",
         ".jupyter/jupyter_server_config.json"),
        ("the_history_of_the_shell", "what the owner typed into a shell", ".bash_history"),
        ("the_history_of_notebooks", "what the owner ran in other notebooks",
         ".ipython/profile_default/history.sqlite"),
    )
]  # fmt: skip


@attack(HostName, stopped_by="uts")
def the_name_of_the_machine(target: Any) -> str:
    """Learn on which machine it runs."""
    return os.uname().nodename


@attack(HostName, stopped_by="mount")
def the_name_of_the_machine_in_a_file(target: Any) -> str:
    """Learn the same from where the machine keeps it."""
    return read("/etc/hostname").strip()


@attack(HostFile, stopped_by="mount", facts={"file": "/etc/hosts"})
def the_machines_around(target: Any) -> str:
    """Read the names of the machines that this one knows."""
    return read(target.file)
