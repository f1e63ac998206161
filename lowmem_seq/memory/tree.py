"""What a process and those it started hold together: the figure that the cap is about, read many times a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

from lowmem_seq.memory.readings import MemoryReader, system_reader

SHORT = 0.08
"""Share of the machine's memory that must stay available."""
SECONDS_BETWEEN_SEARCHES = 3.0
"""For processes that nobody told of; it is the dear part, above all where the whole process table is read."""


class ProcessTree:
    """A process and its descendants, known by their numbers; one that has ended is forgotten.

    Args:
        root_pid: the process at the top.
        reader: this system's figures.
        clock: seconds; a test gives another one.
    """

    def __init__(self, root_pid: int, reader: MemoryReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._root_pid, self._reader, self._clock = root_pid, reader, clock
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
        if now - self._searched_at >= SECONDS_BETWEEN_SEARCHES:
            self._searched_at = now
            self._others.update(self._reader.descendants(self._root_pid))


def tree_bytes(root: psutil.Process) -> int:
    """Return what a process and all its descendants hold now; those that ended count nothing."""
    return ProcessTree(root.pid, system_reader()).held_bytes()


def peak_process_bytes(pid: int | None = None) -> int | None:
    """Return the most that a process held since it started, or since `reset_peak`; None if it is gone."""
    return system_reader().peak_bytes(os.getpid() if pid is None else pid)


def reset_peak() -> bool:
    """Set this process's peak back to what it holds now; return whether the system can (Linux)."""
    return system_reader().reset_peak()


def release_memory() -> bool:
    """Have the allocator give back what it keeps for later; return whether it can be asked to."""
    return system_reader().release()


def is_short_of_memory() -> bool:
    """Whether little of the machine's memory can still be taken without swapping."""
    machine = system_reader().machine()
    return machine.available_bytes < SHORT * machine.total_bytes


def available_bytes() -> int:
    """Return what can be taken without swapping: of the machine, or of its control group if that is less."""
    return system_reader().machine().available_bytes
