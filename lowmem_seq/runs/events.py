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
LAST_SECOND = 2**35
"""Times from here on, in the year 3058, are no times."""


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
        return self.follow().events()

    def count_torn(self) -> int:
        """Return how many lines are passed over."""
        return sum(entry is None for entry in self.follow().entries())

    def follow(self) -> EventReader:
        """Return a reader that stands before the first event, and goes on from where it was each time."""
        return EventReader(self.path)


class EventReader:
    """Reads an events.jsonl as it grows: each event once, and no line twice.

    Args:
        path: of the file, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._whole = True
        """Whether what comes next is the beginning of a line."""

    def events(self) -> Iterator[Event]:
        """Yield the events that were not read yet; a torn line is passed over."""
        return (entry for entry in self.entries() if entry is not None)

    def entries(self) -> Iterator[Event | None]:
        """Yield the event of each line that was not read yet and is not empty, or None where it holds none.

        The last line may be on its way: one that is no event yet, and has no end, is looked at again the next time.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while line := file.readline(LONGEST_LINE_BYTES):
                begins, ends = self._whole, line.endswith(b"\n")
                entry = _event_in(line) if begins and line != b"\n" else None
                if begins and entry is None and not ends and len(line) < LONGEST_LINE_BYTES:
                    yield None
                    return
                self._whole = ends
                self._offset += len(line)
                if begins and line != b"\n":
                    yield entry


def time_of(event: Event, key: str = "time_unix_seconds") -> float | None:
    """Return when an event was written, or another time that it tells, if it is one that a calendar knows."""
    at = event.get(key)
    return float(at) if isinstance(at, int | float) and 0 <= at < LAST_SECOND else None


def _event_in(line: bytes) -> Event | None:
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("event"), str) else None
