"""The records as events of a Jupyter server, for whoever subscribes there. The file remains the record that counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from importlib import resources
from typing import Any

from isolated_python.audit.log import Record


def schemas() -> Iterator[dict[str, Any]]:
    """What each event is, in the form that jupyter_events registers."""
    for file in sorted(resources.files(__package__).joinpath("schemas").iterdir(), key=lambda one: one.name):
        yield json.loads(file.read_text(encoding="utf-8"))


def schema_id(event: str) -> str:
    return f"urn:isolated-python:audit:{event}:v1"


def register(logger: Any) -> None:
    """Make a jupyter_events.EventLogger know our events, unless it does already."""
    for schema in schemas():
        if schema["$id"] not in logger.schemas:
            logger.register_event_schema(schema)


def emit(logger: Any, record: Record) -> None:
    """Tell a logger that knows our events of one; nothing happens where nobody listens to it."""
    when = datetime.fromisoformat(record["time"]).replace(tzinfo=None)  # it appends the Z itself
    logger.emit(schema_id=schema_id(record["event"]), data=record, timestamp_override=when)
