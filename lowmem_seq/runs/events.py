"""What happened in a run, one JSON object a line, appended and never changed.

Each line goes out in one write, so that two processes of a run may append to the same file. A kill can tear the
last line only; the next append starts on a fresh line, and readers pass over what is torn. An event is no reason to
lose a run: while the disk is full or fails, the lines wait in memory.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowmem_seq.disk import is_trouble
from lowmem_seq.files import append_line, parse_json

Event = dict[str, Any]

MOST_WAITING = 1000
"""Lines that wait for a full disk; then the oldest are dropped."""
LONGEST_LINE_BYTES = 8 * 10**6
"""A confusion matrix of 1,000 classes takes about three of them."""


class EventLog:
    """The events.jsonl of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._mutex = threading.Lock()

    def append(self, event: str, **details: Any) -> Event:
        """Add one event with the present time, and return it.

        Args:
            event: what happened, in a word.
            details: JSON values; names carry their units.
        """
        entry: Event = {"time_unix_seconds": round(time.time(), 3), "event": event, **details}
        with self._mutex:  # a cluster's thread records as well
            self._waiting.append(json.dumps(entry, allow_nan=False).encode("utf-8"))
            self._write_waiting()
        return entry

    def _write_waiting(self) -> None:
        while self._waiting:
            try:
                append_line(self.path, self._waiting[0])
            except OSError as error:
                if not is_trouble(error):
                    raise
                return
            self._waiting.popleft()

    def __iter__(self) -> Iterator[Event]:
        """Yield the events in the order they were written in; a torn line is passed over."""
        return (entry for entry in self._entries() if entry is not None)

    def count_torn(self) -> int:
        """Return how many lines are passed over."""
        return sum(entry is None for entry in self._entries())

    def _entries(self) -> Iterator[Event | None]:
        """Yield the event of each line that is not empty, or None where it holds none."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            whole = True  # whether the next piece is the beginning of a line
            while line := file.readline(LONGEST_LINE_BYTES):
                begins, whole = whole, line.endswith(b"\n")
                if not begins or line == b"\n":
                    continue
                try:
                    entry = parse_json(line)
                except ValueError:
                    entry = None
                yield entry if isinstance(entry, dict) and isinstance(entry.get("event"), str) else None
