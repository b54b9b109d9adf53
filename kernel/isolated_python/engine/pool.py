"""Kernels that stand before anybody asks: empty of anybody's data, each of them handed to one person, once."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from isolated_python.engine import ADAPTIVE
from isolated_python.engine.loop import Loop
from isolated_python.engine.sandbox import Sandbox
from isolated_python.engine.usage import machine_memory

MEMORY = 60.0  # seconds
MOST = 16  # where nobody has said how many
MOST_KINDS = 32
IDLE = 900.0  # seconds without a request, after which no kernel is kept waiting
PAUSE = 0.1  # seconds after a start, before another is made ahead: people come first
SCARCE = 0.1  # of the machine's memory: below, nobody waits in it

# What of a request is decided when a kernel is made; all the rest is told to it at hand-over.
FIXED = ("profile", "view", "trees", "interpreter", "argv", "arguments")
BORN_WITH = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/home/user", "USER": "user"}

Request = dict[str, Any]


class Kind:
    """Kernels that differ in nothing but whose they are."""

    def __init__(self, size: int) -> None:
        self.template: Request = {}
        self.size = size
        self.waiting: list[Sandbox] = []
        self.coming = 0  # made, and not standing yet
        self.asked: deque[float] = deque(maxlen=MOST)  # when; the last of them
        self.broken = False  # one ended before it stood; wait for the next person before trying again

    def wanted(self, now: float) -> int:
        if self.broken or not self.asked or now - self.asked[-1] > IDLE:
            return 0
        if self.size != ADAPTIVE:
            return self.size
        return max(1, sum(then > now - MEMORY for then in self.asked))


class Pool:
    def __init__(
        self, loop: Loop, make: Callable[[Request, Callable[[Sandbox], None]], Sandbox],
        bound: Callable[[], float] = lambda: math.inf,
    ) -> None:  # fmt: skip
        """`make(request, stands)` begins a sandbox that belongs to nobody, and calls `stands` with it, once.

        `bound`: how many of all kinds together may be there now.
        """
        self._loop, self._make, self._bound = loop, make, bound
        self._kinds: dict[str, Kind] = {}
        self._numbers = itertools.count(1)
        self._due = math.inf  # when it is looked at next

    def take(self, request: Request) -> Sandbox | None:
        """A kernel that stands, for this request and no other; None where there is none. Makes more, if wanted."""
        size = int(request["pool"])
        files = request["profile"]["files"]
        later = not files["mounts"] and files["workspace"] != "copy-on-write" and not any(request["streams"].values())
        if not size or not later or request["argv"] is not None:
            return None
        key = json.dumps([request[name] for name in FIXED])
        kind = self._kinds.pop(key, None) or Kind(size)
        self._kinds[key] = kind  # the latest is the last
        if len(self._kinds) > MOST_KINDS:
            for other in self._kinds.pop(next(iter(self._kinds))).waiting:
                other.kill()
        kind.template, kind.size, kind.broken = self._template(request), size, False
        kind.asked.append(time.monotonic())
        self._tick_in(PAUSE)
        return kind.waiting.pop(0) if kind.waiting else None

    def gone(self, sandbox: Sandbox) -> None:
        """It has ended while it waited."""
        for kind in self._kinds.values():
            if sandbox in kind.waiting:
                kind.waiting.remove(sandbox)

    def _template(self, request: Request) -> Request:
        path, text = request["connection"]
        nobodys = {**json.loads(text), "key": os.urandom(16).hex()}
        return {
            **{name: request[name] for name in (*FIXED, "streams", "ports")},
            "connection": (path.rpartition("/")[0] + "/kernel-waiting.json", json.dumps(nobodys)),
            "environment": BORN_WITH,
            "cwd": "/",
        }

    def _tick_in(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        if due < self._due:
            self._due = due
            self._loop.later(seconds, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        """Make one more, or let one go, and look again."""
        if due != self._due:
            return  # a sooner look has taken the place of this one
        self._due = math.inf
        now, scarce = time.monotonic(), available() < SCARCE
        for kind in self._kinds.values():
            wanted, room = 0 if scarce else kind.wanted(now), self._room()
            if len(kind.waiting) > wanted or (kind.waiting and room < 0):
                kind.waiting.pop().kill()
            elif len(kind.waiting) + kind.coming < wanted and room > 0:
                self._begin(kind)
        if any(kind.waiting or kind.coming or kind.wanted(now) for kind in self._kinds.values()):
            short = any(len(kind.waiting) < kind.wanted(now) for kind in self._kinds.values())
            self._tick_in(PAUSE if short and not scarce else 5.0)

    def _room(self) -> float:
        """How many more may be made; below zero, how many must go."""
        return self._bound() - sum(len(kind.waiting) + kind.coming for kind in self._kinds.values())

    def _begin(self, kind: Kind) -> None:
        def stands(sandbox: Sandbox) -> None:
            kind.coming -= 1
            if sandbox.state == "waiting":
                kind.waiting.append(sandbox)
            else:
                kind.broken = True

        kind.coming += 1
        self._make({**kind.template, "kernel": f"waiting.{next(self._numbers)}"}, stands)


def available() -> float:
    """The part of the machine's memory that is free or could be."""
    total, free = machine_memory()
    return free / total
