"""What attackers of a list of modules reach for: a package that is not on it, and what a module would do."""

from __future__ import annotations

import secrets
import sysconfig
from importlib.metadata import version
from typing import Any

from tests.escapes.places import Said
from tests.escapes.targets import Target

# Third-party packages: all but numpy, and what the kernel itself needs, are not granted.
HIDDEN: dict[str, Any] = {"modules": {"grant": ["@stdlib", "numpy"]}}

# As in an examination: what starts programs, makes sockets or loads code is not on the list, and Linux refuses it.
BARE: dict[str, Any] = {
    "modules": {"grant": ["@stdlib-safe", "numpy"]},
    "capabilities": {"subprocess": False, "sockets": False, "native_code": False},
}


class Package(Target):
    """Packages that are installed, one of them compiled, and not granted. The harm: what only their files tell."""

    names = ("iniconfig", "kiwisolver")  # of pytest and of matplotlib: every environment of these tests has them

    def prepare(self) -> None:
        folders = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
        self.facts = {"folders": [*folders], "pure": self.names[0], "compiled": self.names[1]}

    def harm(self, said: Said) -> str:
        found = [name for name in self.names if said.loot == f"{name} {version(name)}"]
        return f"{found[0]} is there" if found else ""


class Installer(Target):
    """pip, wherever a copy of it lies. The harm: any version of it was imported."""

    def prepare(self) -> None:
        self.facts = {"folders": [sysconfig.get_path("purelib")]}

    def harm(self, said: Said) -> str:
        return f"{said.loot} is there" if said.loot.startswith("pip ") else ""


class Done(Target):
    """A deed of which only its doer knows the answer. The harm: the answer is right."""

    def prepare(self) -> None:
        numbers = [secrets.randbelow(90_000) + 10_000 for _ in range(2)]
        self.facts = {"sum": [str(numbers[0]), "+", str(numbers[1])]}
        self.answer = str(sum(numbers))

    def harm(self, said: Said) -> str:
        return "it was done" if said.loot.strip() == self.answer else ""
