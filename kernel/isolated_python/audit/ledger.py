"""What kernels cause to be written: counted for each, told once in a while, and never at another's expense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

RECORDS = 200  # of one event, for one kernel; what comes after is counted
KINDS = 500  # of things that are counted apart, for one kernel; the rest is counted together
OTHERS = "others"


class Account:
    """Of one kernel, through all its restarts."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.written: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.owner = ""


class Ledger:
    def __init__(self, write: Callable[..., None]) -> None:
        """`write(event, **values)`: to the log."""
        self._write = write
        self._accounts: dict[str, Account] = {}

    def count(self, event: str, kernel: str, key: str, times: int = 1, **values: Any) -> None:
        """`key` happened to a kernel `times` more: told when the first, second, fourth, eighth … is among them."""
        counts = self._account(kernel).counts
        if (event, key) not in counts and len(counts) >= KINDS:
            key = OTHERS
        before = counts[event, key]
        now = counts[event, key] = before + max(1, times)
        if now.bit_length() > before.bit_length():
            self.tell(event, kernel, count=now, **values)

    def tell(self, event: str, kernel: str, *, account_of: str | None = None, **values: Any) -> None:
        """Write a record of what a kernel did, if it has not had its share of them.

        `account_of`: whose share it is, where `kernel` is a name that anybody could have chosen.
        """
        account = self._account(kernel if account_of is None else account_of)
        account.owner = values.get("owner", account.owner)
        if account.written[event] < RECORDS:
            account.written[event] += 1
            self._write(event, kernel=kernel, **values)
            return
        account.dropped[event] += 1
        if account.dropped[event].bit_count() == 1:
            self._tell_dropped(kernel if account_of is None else account_of, event)

    def end(self, kernel: str) -> None:
        """The kernel is forgotten; say what was not written of it."""
        account = self._accounts.get(kernel, Account())
        for event, count in account.dropped.items():
            if count.bit_count() > 1:  # else it was told when it happened
                self._tell_dropped(kernel, event)
        self._accounts.pop(kernel, None)

    def _account(self, kernel: str) -> Account:
        return self._accounts.setdefault(kernel, Account())

    def _tell_dropped(self, kernel: str, event: str) -> None:
        account = self._accounts[kernel]
        self._write("records-dropped", kernel=kernel, owner=account.owner, of=event, count=account.dropped[event])
