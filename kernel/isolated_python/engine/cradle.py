"""
The cradle of a zygote: the cgroup in which its next child is born.

A child is born in the cgroup of its parent. So the zygote stands in the group of the next kernel before anybody asks
for one, and goes on to another after each birth: nothing has to be moved while a person waits, and a kernel is in its
group from its first instruction. What the zygote imported before it came is charged to nobody. cgroups(7)
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial

from isolated_python.engine.mover import Mover
from isolated_python.errors import HostError
from isolated_python.layers.cgroup import Group

# Asks for a fork, and takes the group in which the child will be born, or hears why there is none. False: not taken.
Want = Callable[[Group | HostError], bool]


class Cradle:
    def __init__(self, mover: Mover, make: Callable[[], Group], zygote: int, nursery: Group | None = None) -> None:
        """`make` raises HostError where the host has no cgroup for us: then children are born where the zygote is.

        `nursery`: where the zygote was born. What it has started there ends as it leaves.
        """
        self._mover, self._make, self._zygote = mover, make, zygote
        self._inside = nursery  # where the zygote is
        self._next: Group | HostError | None = None  # in which a child may be born now
        self._waiting: deque[Want] = deque()
        self._deaths: list[Callable[[], None]] = []  # of the group where the zygote is
        self._moving = False  # the mover has been told the zygote's pid, and has not answered
        self._forget: Callable[[], None] | None = None  # the zygote's pid; since it has ended
        self._owed = True  # a group: for the first birth, and again for each fork that was asked for
        if nursery is not None:
            self.when_left(nursery, partial(_remove, nursery))

    def ask(self, want: Want) -> None:
        """Call `want` when a child may be born. One follows another: each birth is followed by `go_on`."""
        self._waiting.append(want)
        if isinstance(self._next, HostError):  # what was wrong then need not be wrong now
            self._next, self._owed = None, True
            self.go_on()
        else:
            self._serve()

    def go_on(self) -> None:
        """The zygote is ready, or has given birth: make the next group, and have the zygote moved there.

        What it says may be a lie, so there is never more than one group ahead.
        """
        if not self._owed or self._forget is not None:
            return
        self._owed = False
        try:
            group = self._make()
        except HostError as error:
            self._next = error
            self._serve()
        else:
            self._moving = True
            self._mover.move(self._zygote, group.entrances(), lambda error: self._arrived(group, error))

    def renew(self) -> None:
        """The zygote has grown where it is: no kernel is born there, to be charged with that."""
        if isinstance(self._next, Group):
            grown, self._next, self._owed = self._next, None, True
            self.when_left(grown, partial(_remove, grown))
            self.go_on()

    def _arrived(self, group: Group, error: str) -> None:
        self._moving = False
        if self._forget is not None:
            _remove(group)
            self._forget()
        elif error:  # it may stand in some of the hierarchies; the end of the supervisor removes them all
            self._next = HostError(f"the zygote cannot be moved into a cgroup: {error}", remedy="try again")
        else:
            self._inside = self._next = group
            self._bury()
        self._serve()

    def _serve(self) -> None:
        while self._next is not None and self._waiting:
            if self._waiting.popleft()(self._next):
                self._next, self._owed = None, True

    def when_left(self, group: Group, do: Callable[[], None]) -> None:
        """Kill and remove a group, by `do`: at once, or when the zygote has left it."""
        if group is self._inside:
            self._deaths.append(do)
        else:
            do()

    def end(self, forget: Callable[[], None]) -> None:
        """The zygote has ended. `forget` lets its pid be used again: called when the mover does not hold it any more,
        since who has the pid then would be moved in its place.
        """
        self._forget = forget
        self._inside, unused = None, self._next
        self._next = None
        self._waiting.clear()
        self._bury()
        if isinstance(unused, Group):
            _remove(unused)
        if not self._moving:
            forget()

    def _bury(self) -> None:
        deaths, self._deaths = self._deaths, []
        for do in deaths:
            do()


def _remove(unused: Group) -> None:
    with contextlib.suppress(OSError):  # what is left goes with the supervisor, whose own group is above it
        unused.kill()  # of a zygote that is somebody's own program there may be children
        unused.remove()
