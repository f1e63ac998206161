"""What happened in a run, one JSON object a line, appended and never changed.

Each line goes out in one write, so that two processes of a run may append to the same file. A kill can tear the
last line only; the next append starts on a fresh line, and readers pass over what is torn.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class EventLog:
    """The events.jsonl of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **details: Any) -> Event:
        """Add one event with the present time, and return it.

        Args:
            event: what happened, in a word.
            details: JSON values; names carry their units.
        """
        entry: Event = {"time_unix_seconds": round(time.time(), 3), "event": event, **details}
        line = json.dumps(entry, allow_nan=False) + "\n"
        with self.path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode("utf-8"))
        return entry

    def __iter__(self) -> Iterator[Event]:
        """Yield the events in the order they were written in; a torn line is passed over."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("event"), str):
                    yield entry
