"""The process tree against its cap: sampled, shown and recorded. What acts is the trainer's governor."""

from __future__ import annotations

import functools
import os
import time

from lowmem_seq.memory.readings import MachineMemory, MemoryReader, peak_so_far, system_reader
from lowmem_seq.memory.tree import ProcessTree
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.child import Child
from lowmem_seq.supervisor.screen import Screen

SAMPLE_SECONDS = 0.1
SECONDS_BETWEEN_MACHINE_LOOKS = 1.0
SECONDS_A_MEMORY_EVENT = 15.0
SECONDS_BEFORE_THE_FIRST = 3.0


@functools.cache
def machine_at_start() -> MachineMemory:
    """Return the machine as this process's first trainer found it: the supervisor's life is the session."""
    return system_reader().machine()


class MemoryWatch:
    """Samples the tree and the machine, keeps the peak, writes both down.

    Args:
        run: where the events go.
        cap_bytes: what the tree may hold.
        child: the trainer; None while a run is paused.
        screen: what shows the figures.
        reader: this system's figures.
        at_start: the machine at the start of the session.
    """

    def __init__(
        self,
        run: RunFolder,
        cap_bytes: int,
        child: Child | None,
        screen: Screen,
        reader: MemoryReader | None = None,
        at_start: MachineMemory | None = None,
    ) -> None:
        self._run, self._cap_bytes, self._screen = run, cap_bytes, screen
        self._reader = reader = reader or system_reader()
        self._at_start = at_start or machine_at_start()
        self._tree = ProcessTree(os.getpid(), reader)
        if child is not None:
            self._tree.add(child.process.pid)
        self._peak_bytes = self._tree_bytes = 0
        self._sampled_at = float("-inf")
        self._recorded_at = time.monotonic() - SECONDS_A_MEMORY_EVENT + SECONDS_BEFORE_THE_FIRST
        self.machine_is_short = False
        """Whether little of its memory was left when the trainer was last seen, or a process was ended for that."""
        self._machine_at = float("-inf")
        self._oom_kills = reader.machine().oom_kills

    def sample(self, records: bool = True) -> None:
        """Look at the tree, ten times a second at the most.

        Args:
            records: write to the events what was seen, every 15 s.
        """
        now = time.monotonic()
        if now - self._sampled_at < SAMPLE_SECONDS:
            return
        self._sampled_at = now
        self._tree_bytes = self._tree.held_bytes()
        self._peak_bytes = max(self._peak_bytes, self._tree_bytes, self._tree.peak_bytes())
        if now - self._machine_at >= SECONDS_BETWEEN_MACHINE_LOOKS:
            self._machine_at = now
            self.machine_is_short = False
            self._look_at_machine()
        self._screen.show_memory(self._tree_bytes, self._peak_bytes, self._cap_bytes)
        if records and now - self._recorded_at > SECONDS_A_MEMORY_EVENT:
            self.record()

    def hear_peak(self, peak_bytes: int) -> None:
        """Take in the most that the trainer saw itself hold; it tells so before it sets its peak back, or ends."""
        own_bytes = peak_so_far(self._reader, os.getpid())
        self._peak_bytes = max(self._peak_bytes, peak_bytes + own_bytes)

    def record(self) -> None:
        """Look at the machine, and write what was seen to the events."""
        self._recorded_at = time.monotonic()
        machine = self._look_at_machine()
        self._run.events.append(
            "memory",
            tree_bytes=self._tree_bytes,
            peak_tree_bytes=self._peak_bytes,
            cap_bytes=self._cap_bytes,
            available_bytes=machine.available_bytes,
            swapped_out_bytes=_since(self._at_start.swapped_out_bytes, machine.swapped_out_bytes),
            pressure=machine.pressure,
        )

    def _look_at_machine(self) -> MachineMemory:
        """Return the machine's state, and notice where it is short.

        That it is so no more is for `sample` to say: once a trainer has ended, what it held is free again.
        """
        machine = self._reader.machine()
        killed = _since(self._oom_kills, machine.oom_kills)
        self._oom_kills = machine.oom_kills
        if killed or machine.is_short:
            self.machine_is_short = True
        return machine


def _since(before: int | None, now: int | None) -> int | None:
    """Return how much a figure that only grows has grown; None where the system doesn't count."""
    return None if before is None or now is None else now - before
