"""What is tested, brought into the machine: the wheel that `make` built, and the tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.vm import image
from tests.vm.machine import Machine

PLACE = "/srv/isolated-python"  # of the sources inside
PYTHON = f"{image.VENV}/bin/python"


def install(machine: Machine) -> None:
    """Unpack the tests at PLACE, install the wheel."""
    (wheel,) = (image.ROOT / ".cache" / "wheel").glob("*.whl")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in ("pyproject.toml", "README.md", "kernel", "tests", "notebooks", "deploy"):
            archive.add(image.ROOT / path, path, filter=_readable)
        archive.add(wheel, wheel.name, filter=_readable)
    machine.run("root", "sh", "-c", f"mkdir -p {PLACE} && tar -C {PLACE} -xmf -", stdin=packed.getvalue())
    pip = f"{image.VENV}/bin/pip"
    machine.run("root", pip, "install", "-q", "--no-deps", "--no-index", "--force-reinstall", f"{PLACE}/{wheel.name}")


def _readable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Everything belongs to root and can be read by all; nothing that was compiled out here."""
    member.uid = member.gid = 0
    member.mode |= 0o555 if member.isdir() else 0o444
    return None if Path(member.name).name == "__pycache__" else member
