"""What of a kernel's output goes on: as much as is granted to one cell, and of the mime types that are. Sans-IO."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from isolated_python.relay.messages import DELIMITER, STATUS, Cells, framed, short, signed
from isolated_python.relay.rules import Granted
from isolated_python.relay.zmtp import Walk

TEXT = "text/plain"  # what every stream may be
WIDGETS = "application/vnd.jupyter.widget-view+json"  # whoever grants it grants whatever widgets show
COMMS = ("comm_open", "comm_msg", "comm_close")
SHOWN = ("display_data", "execute_result", "update_display_data")
# Replies with bundles of mime types in them, and what is said instead of one that cannot be read.
REPLIES: dict[str, dict[str, Any]] = {
    "inspect_reply": {"status": "ok", "found": False, "data": {}, "metadata": {}},
    "execute_reply": {"status": "ok", "user_expressions": {}, "payload": []},
}
REMEMBERED = 1000  # requests for cells, the latest of them
ONCE = ("execute_input", "error")  # beyond the limit of a cell: so that one that fails says why
MiB = 1 << 20


class Turns:
    """Which cells of a kernel were asked for, and which of them has begun.

    A kernel says itself when a cell begins and when it ends, and may lie; but it has no more cells than were asked for.
    """

    def __init__(self) -> None:
        self.begun = 0  # the number of the latest that has, of all that were asked for
        self.running = ""  # its id, until it ends
        self._asked = 0
        self._numbers: dict[str, int] = {}  # by id

    def asked(self, frames: list[bytes]) -> None:
        """A client has sent a message on shell."""
        header = part_of(frames, 2)
        if header.get("msg_type") == "execute_request":
            self._asked += 1
            self._numbers[msg_id(header)] = self._asked
            if len(self._numbers) > REMEMBERED:
                del self._numbers[next(iter(self._numbers))]

    def published(self, frames: list[bytes]) -> None:
        """The kernel has sent a message on iopub. Each client is told of the same, at its own pace."""
        number, request, state = self.status(frames)
        if state == "busy" and number > self.begun:
            self.begun, self.running = number, request
        elif state == "idle" and number and request == self.running:
            self.running = ""

    def status(self, frames: list[bytes]) -> tuple[int, str, str]:
        """Number and id of the cell that this is the status of, 0 where it is of none; and the status."""
        if not is_status(frames):
            return 0, "", ""
        request, state = msg_id(part_of(frames, 3)), part_of(frames, 5).get("execution_state")
        return self._numbers.get(request, 0), request, state if isinstance(state, str) else ""


class Output:
    """The rules for one connection of a client: each has its own copy of what a kernel says, and counts it."""

    def __init__(self, granted: Granted, turns: Turns, cells: Cells, key: str, refused: Callable[[str], None]) -> None:
        """`refused` is told the profile's key, each time that something is taken out."""
        self.granted, self.turns, self.cells, self.key, self.refused = granted, turns, cells, key, refused
        self.cell = 0  # the number of the one that is counted
        self.began = 0  # bytes of this connection before it
        self.messages = 0  # of it, statuses aside
        self.dropped = self.dropped_bytes = 0  # of it
        self.once: set[str] = set()

    def edit(self, walk: Walk, whole: bool) -> bytes | None:
        """What goes on instead of the message that `walk` has seen; None: itself."""
        if walk.bounds.channel == "iopub":
            if is_status(walk.seen) and whole:
                return self._status(walk)
            if self._over(walk, whole):
                return self._drop(walk)
        if self.granted.display is None:
            return None
        return self._clean(walk.seen, msg_type(walk.seen), whole)

    # ---- how much --------------------------------------------------------------------------------------------------

    def _status(self, walk: Walk) -> bytes | None:
        """Statuses always cross. With one, a cell begins; with another it ends, and is told what it lost."""
        number, _, state = self.turns.status(walk.seen)
        if state == "busy" and number > self.cell:
            self.cell, self.began, self.messages = number, walk.bytes, 0
            self.dropped = self.dropped_bytes = 0
            self.once.clear()
        if state == "idle" and number == self.cell and self.dropped:
            lost = f"{self.dropped} messages of this cell, {self.dropped_bytes / MiB:.1f} MiB, were dropped"
            self.dropped = 0
            return self._say(walk.seen, lost) + framed(walk.seen)
        return None

    def _over(self, walk: Walk, whole: bool) -> bool:
        """Count the message. Of a message that is not whole, what is still to come counts for those after it."""
        self.messages += 1
        most = self.granted
        used = walk.bytes - self.began + walk.size
        over = (most.output is not None and used > most.output) or (
            most.messages is not None and self.messages > most.messages
        )
        if over and whole:
            kind = msg_type(walk.seen)
            if kind in ONCE and kind not in self.once:
                self.once.add(kind)
                return False
        return over

    def _drop(self, walk: Walk) -> bytes:
        """Nothing goes on; instead of the first, a sentence."""
        most = self.granted
        self.dropped += 1
        self.dropped_bytes += walk.size
        bytes_over = most.output is not None and walk.bytes - self.began + walk.size > most.output
        self.refused("cells.output" if bytes_over else "cells.messages")
        if self.dropped > 1:
            return b""
        if bytes_over:
            bound = f"{(most.output or 0) / MiB:g} MiB of output, and what comes after it is dropped (cells.output)"
        else:
            bound = f"{most.messages} messages of output, and what comes after them is dropped (cells.messages)"
        return self._say(walk.seen, f"the profile {most.profile} grants one cell {bound}")

    def _say(self, frames: list[bytes], text: str) -> bytes:
        """A sentence in the cell that the message belongs to."""
        return self.cells.notice(self.key, text, short(part_of(frames, 3)))

    # ---- of which kinds --------------------------------------------------------------------------------------------

    def _clean(self, frames: list[bytes], kind: str, whole: bool) -> bytes | None:
        """The message without the mime types that are not granted; None where there is none in it.

        What cannot be read does not cross: somebody else might read something in it.
        """
        if not kind:
            return b""
        if kind in COMMS and not self._grants(WIDGETS):
            self.refused("capabilities.display")
            return b""
        if kind not in SHOWN and kind not in REPLIES:
            return None
        content = part_of(frames, 5) if whole else {}
        taken = [mime for holder in _holders(kind, content) for mime in self._take_out(holder)]
        if content and not taken:
            return None
        self.refused("capabilities.display")
        profile = self.granted.profile
        if not content and kind in SHOWN:
            words = f"a display that cannot be looked at was dropped: the profile {profile} does not grant every kind"
            return self._say(frames, f"{words} (capabilities.display)")
        place = frames.index(DELIMITER)
        before, buffers = frames[place + 2 : place + 5], frames[place + 6 :]
        if len(before) < 3:
            return b""
        try:
            after = json.dumps(content or REPLIES[kind]).encode()
        except RecursionError:  # what can just be read cannot always be written
            return b""
        return signed(self.key, frames[:place], [*before, after], buffers)

    def _take_out(self, holder: dict[str, Any]) -> list[str]:
        """Take out of what stands at `data`, and at `metadata`, what is not granted. Returns what that was."""
        data, metadata = holder["data"], holder.get("metadata")
        if not isinstance(data, dict):
            holder["data"] = {}
            return ["data"]
        beyond = [mime for mime in data if not self._grants(mime)]
        for mime in beyond:
            del data[mime]
            if isinstance(metadata, dict):
                metadata.pop(mime, None)
        if beyond and not data:
            named = ", ".join(mime[:60] for mime in beyond[:4])
            data[TEXT] = f"[{named}: not granted by the profile {self.granted.profile} (capabilities.display)]"
        return beyond

    def _grants(self, kind: str) -> bool:
        return kind == TEXT or any(fnmatchcase(kind, pattern) for pattern in self.granted.display or ())


def part_of(frames: list[bytes], place: int) -> dict[str, Any]:
    """A part of a message by its place after the delimiter; empty where it is not JSON in UTF-8 and nothing else."""
    try:
        part = json.loads(frames[frames.index(DELIMITER) + place].decode())
    except (ValueError, IndexError, RecursionError):
        return {}
    return part if isinstance(part, dict) else {}


def msg_type(frames: list[bytes]) -> str:
    """Empty where it has none that is a text."""
    found = part_of(frames, 2).get("msg_type")
    return found if isinstance(found, str) else ""


def msg_id(header: dict[str, Any]) -> str:
    """Empty where it has none that is a text."""
    found = header.get("msg_id")
    return found if isinstance(found, str) else ""


def is_status(frames: list[bytes]) -> bool:
    return bool(frames) and frames[0].endswith(STATUS)


def _holders(kind: str, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every part of a content in which a bundle of mime types stands at `data`."""
    found: list[Any] = [content]
    if kind == "execute_reply":
        expressions, payload = content.get("user_expressions"), content.get("payload")
        found = [*expressions.values()] if isinstance(expressions, dict) else []
        found += payload if isinstance(payload, list) else []
    yield from (one for one in found if isinstance(one, dict) and "data" in one)
