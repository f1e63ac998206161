"""What is read from the system about memory: one process's share of it, and the machine's.

Each system has a module of its own behind the `MemoryReader` seen here. A reading costs some microseconds (ten on
Linux), so that it may be taken many times a second while a model trains.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

SHORT = 0.06
LARGEST_SHORT_BYTES = 512 * 2**20
"""With less of the machine's memory left than this share of it (or so much), it is short: a run gives some back."""


@dataclass(frozen=True)
class MachineMemory:
    """The memory of the machine, or of the control group that this process may not leave."""

    total_bytes: int
    available_bytes: int
    """What can be taken without swapping."""
    swapped_out_bytes: int | None = None
    """What was written to its swap space since it started; None where the system counts something else (macOS: file
    pages too) or nothing."""
    pressure: float | None = None
    """Share of the last ten seconds in which some task waited for memory, 0 to 1; None where it isn't measured."""
    oom_kills: int | None = None
    """Processes that the system ended for want of memory since it started; None where it doesn't count them."""

    @property
    def short_bytes(self) -> int:
        """What must stay free, so that the machine doesn't begin to swap."""
        return min(int(SHORT * self.total_bytes), LARGEST_SHORT_BYTES)

    @property
    def is_short(self) -> bool:
        """Whether less than that can still be taken."""
        return self.available_bytes < self.short_bytes


class MemoryReader(Protocol):
    """What one system tells; a process that is gone, or that may not be looked at, holds 0 and has no peak."""

    def held_bytes(self, pid: int) -> int:
        """Return what the cap counts now: RSS (Linux), phys_footprint (macOS), private bytes (Windows)."""

    def peak_bytes(self, pid: int) -> int | None:
        """Return the most that a process held since it started, or since it called `reset_peak`."""

    def reset_peak(self) -> bool:
        """Set this process's own peak back to what it holds now; return whether the system can."""

    def data_bytes(self, pid: int) -> int | None:
        """Return a process's private writable virtual memory, as RLIMIT_DATA counts it; None but on Linux."""

    def machine(self) -> MachineMemory:
        """Return the state of the machine's memory."""

    def release(self) -> bool:
        """Have this process's allocator give back what it keeps for later; return whether it could be asked to."""

    def descendants(self, pid: int) -> list[int]:
        """Return the processes that a process started, and those that they did; in no order."""


def peak_so_far(reader: MemoryReader, pid: int) -> int:
    """Return the most that a process is known to have held, since its peak was last set back."""
    return max(reader.held_bytes(pid), reader.peak_bytes(pid) or 0)


def descendants_by_parents(pid: int, system: Any = psutil) -> list[int]:
    """Return a process's descendants from the table of all processes (milliseconds).

    Args:
        pid: the process at the top.
        system: psutil; a test gives another one.
    """
    try:
        return [process.pid for process in system.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


@functools.cache
def system_reader(platform: str = sys.platform) -> MemoryReader:
    """Return the reader of this system; one for the whole process."""
    if platform == "darwin":
        from lowmem_seq.memory.macos import MacReader

        return MacReader()
    if platform == "win32":
        from lowmem_seq.memory.windows import WindowsReader

        return WindowsReader()
    from lowmem_seq.memory.linux import LinuxReader

    return LinuxReader()
