"""The process tree against its cap: sampled, recorded, and the trainer told when it comes near."""

from __future__ import annotations

import time

import psutil

from lowmem_seq.memory.tree import is_short_of_memory, peak_process_bytes, tree_bytes
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child
from lowmem_seq.supervisor.screen import Screen

SAMPLE_SECONDS = 0.1
SECONDS_A_MEMORY_EVENT = 15.0
SECONDS_BEFORE_THE_FIRST = 3.0
NEAR_CAP = 0.97
GROWTH = 1.01
SECONDS_BETWEEN_SHRINKS = 5.0


class MemoryWatch:
    """Samples the tree, keeps the peak, asks the trainer to shrink near the cap."""

    def __init__(self, run: RunFolder, cap_bytes: int, child: Child, screen: Screen) -> None:
        self._run, self._cap_bytes, self._child, self._screen = run, cap_bytes, child, screen
        self._self = psutil.Process()
        self._peak_bytes = self._tree_bytes = self._shrunk_bytes = 0
        self._sampled_at = self._shrunk_at = float("-inf")
        self._recorded_at = time.monotonic() - SECONDS_A_MEMORY_EVENT + SECONDS_BEFORE_THE_FIRST
        self.machine_is_short = False
        """Whether little of the machine's memory was left at the last look."""

    def sample(self) -> None:
        """Look at the tree, ten times a second at the most."""
        now = time.monotonic()
        if now - self._sampled_at < SAMPLE_SECONDS:
            return
        self._sampled_at = now
        self._tree_bytes = tree_bytes(self._self)
        self.machine_is_short = is_short_of_memory()
        peaks = [peak_process_bytes(process.pid) or 0 for process in (self._self, self._child.process)]
        self._peak_bytes = max(self._peak_bytes, self._tree_bytes, sum(peaks))
        self._screen.show_memory(self._tree_bytes, self._peak_bytes, self._cap_bytes)
        # memory that was given back may stay with the allocator: only what grows on counts after a shrink
        near = self._tree_bytes > max(NEAR_CAP * self._cap_bytes, GROWTH * self._shrunk_bytes)
        if near and now - self._shrunk_at > SECONDS_BETWEEN_SHRINKS:
            self._shrunk_at, self._shrunk_bytes = now, self._tree_bytes
            self._child.tell("shrink")
        if now - self._recorded_at > SECONDS_A_MEMORY_EVENT:
            self.record()

    def record(self) -> None:
        """Write what was seen to the events."""
        self._recorded_at = time.monotonic()
        self._run.events.append(
            "memory",
            tree_bytes=self._tree_bytes,
            peak_tree_bytes=self._peak_bytes,
            cap_bytes=self._cap_bytes,
        )
