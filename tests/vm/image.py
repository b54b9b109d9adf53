"""
The disk of the virtual machine: a small Debian with systemd, and the Python packages that our tests need.

    python tests/vm/image.py      builds it ahead of the tests, in a minute or two, as root

Its folder's name says what went into it, so that another recipe makes another disk. The product is not on it: its wheel
is installed at each run, and a change of our code costs no new disk.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "vm"
SUITE, PYTHON = "bookworm", "3.11"
PERSON = "person"  # who has a systemd --user
HOST = "isolated-vm"
VENV = "/opt/venv"  # of the tests, and of the servers of notebooks
SERVICE = "/opt/isolated-python"  # root's own, as docs/how-to/jupyterhub.md has it
PROXY = "/opt/proxy"
READY = "the machine stands"  # on its serial line, when someone may log in
SIZE = "3G"  # a sparse file

PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "kmod", "udev", "systemd", "systemd-sysv", "polkitd", "procps"),
    *("dbus", "dbus-user-session", "libpam-systemd", "openssh-server", "iproute2", "uidmap", "ca-certificates"),
    *("python3", "python3-venv", "libseccomp2", "strace", "nodejs"),
)

# What the tests inside need of the optional dependencies; the scientific stack is tried elsewhere.
TEST_PACKAGES = ("pytest", "hypothesis", "psutil", "jupyter-server", "jupyterhub")

FILES = {
    "etc/hostname": HOST,
    "etc/hosts": f"127.0.0.1 localhost {HOST}",
    "etc/fstab": "",
    "etc/systemd/network/wired.network": "[Match]\nType=ether\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2",
    "etc/systemd/system/ready.service": (
        "[Unit]\nAfter=ssh.service systemd-logind.service systemd-networkd.service\n"
        f"[Service]\nType=oneshot\nExecStart=/bin/sh -c 'echo {READY} >/dev/ttyS0'\n"
        "[Install]\nWantedBy=multi-user.target"
    ),
    "etc/security/limits.d/files.conf": "* soft nofile 4096",
}

MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "e2scrub_reap.service"),
    *("systemd-networkd-wait-online.service", "serial-getty@ttyS0.service", "getty@tty1.service"),
)
IN_THE_TREE = (
    f"useradd --create-home --shell /bin/bash {PERSON}",
    "systemctl --quiet enable systemd-networkd.service ready.service",
    f"systemctl --quiet mask {' '.join(MASKED)}",
    f"/usr/bin/python3 -m venv {VENV}",
    f"{VENV}/bin/pip install -q --no-index --find-links /wheels -r /wheels/requirements.txt",
    f"mkdir -p {VENV}/etc/jupyter",  # a server's configuration; only root may make it there
    f"/usr/bin/python3 -m venv {SERVICE}",
    f"{SERVICE}/bin/pip install -q --no-index --find-links /wheels -r /wheels/needed.txt",
)


def build(say: Callable[[str], None]) -> Path:
    """The folder with disk.qcow2, vmlinuz, initrd.img, the key and the host's keys; made where it is missing."""
    needed, wanted = requirements()
    folder = CACHE / hashlib.sha256("\n".join([Path(__file__).read_text(), *wanted]).encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    if os.geteuid() != 0:
        raise SystemExit("A disk for the virtual machine is built by root alone; please run:  sudo make test-vm")
    making = CACHE / "making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    tree = making / "tree"
    say("Building the virtual machine's disk, once: Debian …")
    packages = ",".join(PACKAGES)
    run("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={packages}", SUITE, str(tree))
    say("… the Python packages …")
    download(needed, wanted, tree / "wheels")
    shutil.copytree(ROOT / ".cache" / "proxy", f"{tree}{PROXY}", symlinks=True)
    say("… the machine's own files …")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests/vm", "-f", str(making / "key"))
    furnish(tree, (making / "key.pub").read_text())
    for name in ("vmlinuz", "initrd.img"):
        (newest,) = tree.glob(f"boot/{name}-*")
        shutil.move(newest, making / name)
    public = (tree / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()
    (making / "known_hosts").write_text(f"{HOST} {public[0]} {public[1]}\n")
    say("… the disk.")
    run("mkfs.ext4", "-q", "-d", str(tree), str(making / "disk.raw"), SIZE)
    run("qemu-img", "convert", "-O", "qcow2", str(making / "disk.raw"), str(making / "disk.qcow2"))
    (making / "disk.raw").unlink()
    shutil.rmtree(tree)
    for older in [path for path in CACHE.iterdir() if path != making]:
        shutil.rmtree(older)
    making.rename(folder)
    return folder


def requirements() -> tuple[list[str], list[str]]:
    """Our own declared dependencies; those, and what the tests inside need beside them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    tests = [line for line in (*optional["test"], *optional["places"]) if line.startswith(TEST_PACKAGES)]
    return project["dependencies"], [*project["dependencies"], *tests]


def download(needed: list[str], wanted: list[str], folder: Path) -> None:
    """Fetched out here, with whatever settings this machine's pip has; installed in there, without a network."""
    folder.mkdir()
    for name, lines in (("needed.txt", needed), ("requirements.txt", wanted)):
        (folder / name).write_text("\n".join(lines) + "\n")
    run(
        sys.executable, "-m", "pip", "download", "-q", "--dest", str(folder), "--python-version", PYTHON,
        "--only-binary=:all:", "-r", str(folder / "requirements.txt"),
    )  # fmt: skip


def furnish(tree: Path, key: str) -> None:
    """Write the machine's own files, run what has to run inside, let both of its users in by the key."""
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text + "\n")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    for command in IN_THE_TREE:
        run("chroot", str(tree), *command.split(), env=environment)
    shutil.rmtree(tree / "wheels")
    for home in (tree / "root", tree / "home" / PERSON):
        (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
        (home / ".ssh/authorized_keys").write_text(key)
        owner = home.stat()
        for path in (home / ".ssh", home / ".ssh/authorized_keys"):
            os.chown(path, owner.st_uid, owner.st_gid)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command to its end; what it said is shown only where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        said = re.sub(r"\n{2,}", "\n", done.stdout + done.stderr)[-4000:]
        raise SystemExit(f"{' '.join(command)[:300]}\nended with {done.returncode}:\n{said}")


if __name__ == "__main__":
    os.umask(0o022)
    print(build(lambda word: print(word, flush=True)))
