"""What a process and those it started hold together: the figure that the cap is about, read many times a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from lowmem_seq.memory.readings import MemoryReader

SECONDS_BETWEEN_SEARCHES = 3.0
"""For processes that nobody told of; it is the dear part, above all where the whole process table is read."""


class ProcessTree:
    """A process and its descendants, known by their numbers; one that has ended is forgotten.

    Args:
        root_pid: the process at the top.
        reader: this system's figures.
        clock: seconds; a test gives another one.
        seconds_between_searches: how often it is searched for new ones.
    """

    def __init__(
        self,
        root_pid: int,
        reader: MemoryReader,
        clock: Callable[[], float] = time.monotonic,
        seconds_between_searches: float = SECONDS_BETWEEN_SEARCHES,
    ) -> None:
        self._root_pid, self._reader, self._clock = root_pid, reader, clock
        self._seconds_between_searches = seconds_between_searches
        self._others: set[int] = set()
        self._searched_at = float("-inf")

    def add(self, pid: int) -> None:
        """Count a process from now on, without waiting for the next search."""
        self._others.add(pid)

    def held_bytes(self) -> int:
        """Return what all of them hold now."""
        self._search()
        held = {pid: self._reader.held_bytes(pid) for pid in self._others}
        self._others -= {pid for pid, size in held.items() if size == 0}
        return self._reader.held_bytes(self._root_pid) + sum(held.values())

    def peak_bytes(self) -> int:
        """Return the sum of the peaks of those that live: the tree together never held more than that.

        They need not have had their peaks at the same time. Where the system tells no peak, 0 is counted.
        """
        self._search()
        return sum(self._reader.peak_bytes(pid) or 0 for pid in (self._root_pid, *self._others))

    def _search(self) -> None:
        now = self._clock()
        if now - self._searched_at >= self._seconds_between_searches:
            self._searched_at = now
            self._others.update(self._reader.descendants(self._root_pid))
