"""Linux: resident pages from /proc, the machine's memory from there and from the control groups around us."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from lowmem_seq.memory.cgroups import ControlGroups, GroupMemory, figure_after, read_bytes, read_pressure
from lowmem_seq.memory.readings import MachineMemory, descendants_by_parents

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
RESIDENT, SHARED = 1, 2
"""Places in /proc/PID/statm, in pages. Its data pages (5) include the stack, which RLIMIT_DATA doesn't count."""
RESET_PEAK = b"5"


class LinuxReader:
    """Linux's figures. The kernel may sum up its counters with a delay of some pages a processor.

    Args:
        proc: where the system's /proc lies.
        library: the C library; only glibc's can be asked to give memory back.
    """

    def __init__(self, proc: Path = Path("/proc"), library: Any = None) -> None:
        self._proc = str(proc)
        self._groups = ControlGroups(proc)
        self._library = ctypes.CDLL(None) if library is None else library

    def held_bytes(self, pid: int) -> int:
        """Return the resident bytes of a process."""
        return self._pages(pid, RESIDENT) or 0

    def peak_bytes(self, pid: int) -> int | None:
        """Return the most resident bytes (VmHWM)."""
        return self._status(pid, b"VmHWM:")

    def reset_peak(self) -> bool:
        """Set VmHWM and ru_maxrss of this process back; some sandboxes don't allow it."""
        try:
            descriptor = os.open(f"{self._proc}/self/clear_refs", os.O_WRONLY)
        except OSError:
            return False
        try:
            return os.write(descriptor, RESET_PEAK) == len(RESET_PEAK)
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def data_bytes(self, pid: int) -> int | None:
        """Return VmData: the pages that RLIMIT_DATA bounds, resident or not."""
        return self._status(pid, b"VmData:")

    def machine(self) -> MachineMemory:
        """Return the least of what the machine and each group around this process leave.

        The pressure is that of whichever leaves the least, or the machine's where a group's isn't measured.
        """
        memory = read_bytes(f"{self._proc}/meminfo") or b""
        counted = read_bytes(f"{self._proc}/vmstat") or b""
        pages_out = figure_after(b"pswpout ", counted)
        whole = GroupMemory(
            limit_bytes=_kilobytes(b"MemTotal:", memory),
            available_bytes=_kilobytes(b"MemAvailable:", memory),
            pressure=read_pressure(Path(self._proc, "pressure", "memory")),
        )
        groups = [whole, *self._groups.read()]
        tightest = min(groups, key=lambda group: group.available_bytes)
        return MachineMemory(
            total_bytes=min(group.limit_bytes for group in groups),
            available_bytes=tightest.available_bytes,
            swapped_out_bytes=None if pages_out is None else pages_out * PAGE_BYTES,
            pressure=whole.pressure if tightest.pressure is None else tightest.pressure,
            oom_kills=figure_after(b"oom_kill ", counted),
        )

    def release(self) -> bool:
        """Give free pages of the heap back."""
        trim = getattr(self._library, "malloc_trim", None)
        if trim is None:
            return False
        trim(0)
        return True

    def descendants(self, pid: int) -> list[int]:
        """Return them from each thread's list of children (9 us a process; psutil reads all of /proc: 800).

        The kernel may leave one out while another of the same parent ends; a later look finds it.
        """
        if read_bytes(f"{self._proc}/{pid}/task/{pid}/children") is None:
            return descendants_by_parents(pid)
        found: list[int] = []
        waiting = [pid]
        while waiting:
            children = self._children(waiting.pop())
            found += children
            waiting += children
        return found

    def _children(self, pid: int) -> list[int]:
        try:
            threads = [thread.name for thread in Path(self._proc, str(pid), "task").iterdir()]
        except OSError:
            return []
        lists = (read_bytes(f"{self._proc}/{pid}/task/{thread}/children") or b"" for thread in threads)
        return [int(child) for children in lists for child in children.split()]

    def _pages(self, pid: int, place: int) -> int | None:
        fields = (read_bytes(f"{self._proc}/{pid}/statm") or b"").split()
        return int(fields[place]) * PAGE_BYTES if fields else None

    def _status(self, pid: int, label: bytes) -> int | None:
        kilobytes = figure_after(label, read_bytes(f"{self._proc}/{pid}/status") or b"")
        return None if kilobytes is None else kilobytes * 1024


def _kilobytes(label: bytes, text: bytes) -> int:
    return (figure_after(label, text) or 0) * 1024
