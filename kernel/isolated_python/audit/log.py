"""Records as JSON lines: appended, never rewritten, with our own clock."""

from __future__ import annotations

import json
import os
import time
from typing import Any

VERSION = 1
LONGEST = 400  # characters of one value


class Log:
    """One file, opened for appending by its owner alone."""

    def __init__(self, path: str, **always: Any) -> None:
        """`always`: what every record says."""
        self.always = always
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, event: str, **values: Any) -> None:
        """One record: `event`, when (RFC 3339, UTC), and what else is known. One write(2): records never interleave."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        record = {"version": VERSION, "time": stamp, "event": event, **self.always}
        record |= {name: value[:LONGEST] if isinstance(value, str) else value for name, value in values.items()}
        try:
            os.write(self.file, json.dumps(record, separators=(",", ":")).encode() + b"\n")
        except OSError:  # a full disk must not end every kernel of a server
            pass
