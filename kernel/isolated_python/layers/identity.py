"""Who the kernel is: the ordinary user 1000 of its own user namespace, on a machine called sandbox."""

from __future__ import annotations

import os

from isolated_python.layers.step import Descriptors, Step
from isolated_python.linux import namespaces

USER = 1000  # never 0: nothing inside is root, not even by name


class BecomeUser(Step):
    """Take the one identity that the map knows; who that is outside was decided by whoever wrote the map."""

    uid: int = USER

    def describe(self) -> str:
        return f"run as user {self.uid} of a user namespace without root"

    def execute(self, descriptors: Descriptors) -> None:
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)


class NameHost(Step):
    name: str = "sandbox"

    def describe(self) -> str:
        return f"be on a host called {self.name}"

    def execute(self, descriptors: Descriptors) -> None:
        namespaces.set_hostname(self.name)


class NoFurtherNamespaces(Step):
    """Refuse user namespaces from here on: most of what the kernel's attack surface offers begins with one."""

    def describe(self) -> str:
        return "make no further user namespace"

    def execute(self, descriptors: Descriptors) -> None:
        namespaces.write("/proc/sys/user/max_user_namespaces", "0")


class FewWatchers(Step):
    """Linux counts inotify by user, through every namespace: what one kernel takes, no other of that user has."""

    instances: int = 32  # of the 128 that a user has
    watches: int = 16384

    def describe(self) -> str:
        return f"watch files by at most {self.instances} inotify instances and {self.watches} watches"

    def execute(self, descriptors: Descriptors) -> None:
        namespaces.write("/proc/sys/user/max_inotify_instances", str(self.instances))
        namespaces.write("/proc/sys/user/max_inotify_watches", str(self.watches))
