"""Jupyter's messages, as far as the relay must know them: which cell runs, and what it is told when its kernel dies."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from typing import Any

from isolated_python.relay import zmtp

DELIMITER = b"<IDS|MSG>"
STATUS = b".status"  # what the topic of one ends with; no other message of iopub says which cell runs
LONGEST_ID = 64  # characters of a message's id that we repeat to others
# Of a request's header, what is repeated as the parent of a kernel's last word: texts, up to this length each.
HEADER = ("msg_id", "msg_type", "session", "username", "date", "version", "subshell_id")
LONGEST = 1000  # characters
MOST = 1000  # cells that wait in one kernel, before the oldest is forgotten


class Cells:
    """Follows the cells of one kernel: asked on shell, busy until iopub says idle."""

    def __init__(self) -> None:
        self.open: dict[str, dict[str, str]] = {}  # msg_id → header of each request that has not ended, oldest first
        self.topic, self.session = b"kernel", ""
        self.forbidden: bool | None = None  # prompts: every cell so far was asked for without; None: no cell so far

    @property
    def running(self) -> dict[str, str] | None:
        """The header of the oldest request: those that were asked after it wait."""
        return next(iter(self.open.values()), None)

    @property
    def turn(self) -> str:
        """The id of the oldest request, as far as it can be printed."""
        return printable((self.running or {}).get("msg_id", ""))

    def asked(self, frames: list[bytes]) -> str:
        """A message of a client on shell. Returns its id if it is a cell, else an empty string."""
        header = _part(frames, 2)
        if header.get("msg_type") != "execute_request":
            return ""
        kept = short(header)
        self.open[kept.get("msg_id", "")] = kept
        if len(self.open) > MOST:
            del self.open[next(iter(self.open))]
        # What was allowed once a cell may use later, from a thread. The content of a large request is not seen, and
        # changes nothing: else whoever writes a long cell could allow it themselves.
        allowed = _part(frames, 5).get("allow_stdin")
        if self.forbidden is not False and isinstance(allowed, bool):
            self.forbidden = not allowed
        return printable(kept.get("msg_id", ""))

    def published(self, frames: list[bytes]) -> bool:
        """A message of the kernel on iopub. True: a cell has ended, and no other is running or waits."""
        if not frames or not frames[0].endswith(STATUS):
            return False
        self.topic = frames[0][: -len(STATUS)][:200]
        session = _part(frames, 2).get("session")
        self.session = session[:100] if isinstance(session, str) else ""
        parent, content = _part(frames, 3), _part(frames, 5)
        if content.get("execution_state") != "idle" or parent.get("msg_type") != "execute_request":
            return False
        ended = parent.get("msg_id")
        if isinstance(ended, str) and ended in self.open:
            line = _line(self.open[ended])
            for name in [*self.open]:
                # Messages of iopub can be lost: what one client asked before in the same subshell has ended, too.
                if _line(self.open[name]) == line:
                    del self.open[name]
                if name == ended:
                    break
        return not self.open

    def epitaph(self, key: str, ename: str, evalue: str, traceback: list[str]) -> bytes:
        """What the running cell is told, as frames: an error, then that it is idle."""
        parent = self.running or {}
        self.open.clear()
        error = {"ename": ename, "evalue": evalue, "traceback": traceback}
        return self._message(key, parent, "error", error) + self._message(
            key, parent, "status", {"execution_state": "idle"}
        )

    def notice(self, key: str, text: str, parent: dict[str, str] | None = None) -> bytes:
        """What the running cell, or that of `parent`, is told on its standard error, as frames."""
        content = {"name": "stderr", "text": f"Isolated Python: {text}\n"}
        return self._message(key, parent or self.running or {}, "stream", content)

    def usage(self, key: str, request: list[bytes], content: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
        """The answer to a usage_request, as frames; and what iopub says before and after it."""
        parent = short(_part(request, 2))
        before, after = (self._message(key, parent, "status", {"execution_state": state}) for state in ("busy", "idle"))
        route = request[: request.index(DELIMITER)]  # of a client that is no DEALER
        return before, self._message(key, parent, "usage_reply", content, route), after

    def _message(
        self, key: str, parent: dict[str, Any], kind: str, content: dict[str, Any], route: list[bytes] | None = None
    ) -> bytes:
        """The frames of a message. `route`: what stands before it, on other channels than iopub."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        header = {
            "msg_id": os.urandom(16).hex(),
            "session": self.session,
            "username": "user",
            "date": now,
            "msg_type": kind,
            "version": "5.3",
        }
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        return signed(key, [self.topic + b"." + kind.encode()] if route is None else route, parts)


def signed(key: str, route: list[bytes], parts: list[bytes], buffers: list[bytes] | tuple[()] = ()) -> bytes:
    """A message as frames: what stands before it, then header, parent, metadata and content, then buffers."""
    sign = hmac.new(key.encode(), digestmod=hashlib.sha256)
    for part in parts:
        sign.update(part)
    return framed([*route, DELIMITER, sign.hexdigest().encode() if key else b"", *parts, *buffers])


def framed(frames: list[bytes]) -> bytes:
    return b"".join(zmtp.frame(body, more=number < len(frames)) for number, body in enumerate(frames, 1))


def asks_for_usage(frames: list[bytes]) -> bool:
    return DELIMITER in frames and _part(frames, 2).get("msg_type") == "usage_request"


def _part(frames: list[bytes], place: int) -> dict[str, Any]:
    """A part of a message by its place after the delimiter (1 signature, 2 header, 3 parent, 4 metadata, 5 content)."""
    try:
        part = json.loads(frames[frames.index(DELIMITER) + place])
    except (ValueError, IndexError, RecursionError):
        return {}
    return part if isinstance(part, dict) else {}


def _line(header: dict[str, str]) -> tuple[str | None, str | None]:
    """Cells of one line end in the order in which they were asked."""
    return header.get("session"), header.get("subshell_id")


def short(header: dict[str, Any]) -> dict[str, str]:
    """What of a header is repeated."""
    return {name: header[name] for name in HEADER if _is_text(header.get(name))}


def _is_text(value: object) -> bool:
    """Anything else may be nested deeper than Python can write it down again."""
    return isinstance(value, str) and len(value) <= LONGEST


def printable(text: str) -> str:
    start = text[:LONGEST_ID]
    return start if start.isprintable() else "".join(letter for letter in start if letter.isprintable())
