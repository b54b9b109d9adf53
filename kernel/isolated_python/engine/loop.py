"""One loop over descriptors, deadlines and the ends of children: all that a supervisor waits for."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

Do = Callable[[], None]
LONGEST = 3600.0  # seconds of one wait: poll(2) takes no number that is larger than an int of milliseconds


class Loop:
    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Do]] = []
        self._numbers = itertools.count()
        self._known: set[int] = set()  # children whose end somebody waits for
        self._strangers: Callable[[], bool] | None = None
        self._deaths = False  # of children, since we looked last
        self._over = False

    def end_at(self, *numbers: int) -> None:
        """From here on these signals end `run`: between two things that it does, never in the midst of one."""
        for number in numbers:
            signal.signal(number, self._told_to_end)

    def _told_to_end(self, *_: object) -> None:
        self._over = True

    def listen(self, descriptor: Any, do: Do) -> None:
        """Call `do` whenever there is something to read."""
        self._selector.register(descriptor, selectors.EVENT_READ, do)

    def ignore(self, descriptor: Any) -> None:
        """Listen no more; nothing where nobody listened."""
        try:
            self._selector.unregister(descriptor)
        except (KeyError, ValueError):
            pass

    def later(self, seconds: float, do: Do) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), do))

    def at_end(self, pid: int, do: Do) -> int:
        """Call `do` when the child `pid` has ended. Returns its pidfd, which is closed afterwards, and it reaped."""

        def ended(reap: Do) -> None:
            try:
                do()
            finally:
                reap()

        return self.at_end_unreaped(pid, ended)

    def at_end_unreaped(self, pid: int, do: Callable[[Do], None]) -> int:
        """As `at_end`, for a child whom others know by its pid: `do` is given what reaps it, to call when they do not.

        Linux gives its pid to nobody else before that.
        """
        pidfd = os.pidfd_open(pid)
        self._known.add(pid)

        def reap() -> None:
            self._known.discard(pid)
            try:
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass
            os.close(pidfd)

        def ended() -> None:
            self.ignore(pidfd)
            do(reap)

        self.listen(pidfd, ended)
        return pidfd

    def when_done(self, pid: int, do: Callable[[bool], None]) -> None:
        """Call `do` when the child `pid` has ended, with whether it exited with 0."""

        def ended() -> None:
            found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            do(found is not None and (found.si_code, found.si_status) == (os.CLD_EXITED, 0))

        pidfd = self.at_end(pid, ended)

    def reap_strangers(self, may: Callable[[], bool]) -> None:
        """Reap also children that `at_end` was never told of, whenever `may()` says that none can be told of still.

        They are what a zygote's child was that died before its first word, and orphans, whom a subreaper adopts.
        """
        self._strangers, self._deaths = may, True
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _reap(self) -> None:
        """One whom somebody waits for hides the others until it is reaped, and that is the end of another child."""
        while self._strangers is not None and self._strangers():
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                found = None
            if found is None:
                self._deaths = False
                return
            if found.si_pid in self._known:
                return
            os.waitid(os.P_PID, found.si_pid, os.WEXITED)

    def run(self) -> None:
        """Until a signal of `end_at` comes; what is called may raise SystemExit.

        Python runs no handler in a system call that waits: a signal that came just before it is noticed by the pipe.
        """
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

        def signalled() -> None:
            self._deaths = signal.SIGCHLD in os.read(wake_read, 4096) or self._deaths

        self.listen(wake_read, signalled)
        try:
            self._serve()
        finally:
            signal.set_wakeup_fd(before)
            self.ignore(wake_read)
            os.close(wake_read)
            os.close(wake_write)

    def _serve(self) -> None:
        while not self._over:
            wait = min(max(0.0, self._timers[0][0] - time.monotonic()), LONGEST) if self._timers else None
            for key, _ in self._selector.select(wait):
                if self._selector.get_map().get(key.fd) is key:  # not ignored by one that came before it
                    key.data()
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
            if self._deaths:
                self._reap()
