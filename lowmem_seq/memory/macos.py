"""macOS: phys_footprint, the figure that Activity Monitor shows and that the system itself judges by.

It counts compressed and swapped pages, which RSS leaves out, and leaves out clean pages of files. Apple's manual
footprint(1) says that the kernel's ledger behind it includes the graphics memory that a process owns, also what
lies outside of its mappings: Metal's buffers, so what torch's MPS driver has allocated, are counted once, here, and
must not be added again. Written from Apple's headers and manuals (sys/resource.h, libproc.h, malloc/malloc.h); this
project's tests give it a library that they made, and have not run on macOS.
"""

from __future__ import annotations

import ctypes
from typing import Any

import psutil

from lowmem_seq.memory.readings import MachineMemory, descendants_by_parents

RUSAGE_INFO_V4 = 4
UUID_WORDS, WORDS = 2, 64
"""The structure begins with a UUID of 16 bytes, then come 64-bit figures: 35 in version 4, with room for a kernel
that writes more."""
FOOTPRINT, LIFETIME_MAX_FOOTPRINT = UUID_WORDS + 7, UUID_WORDS + 28
"""Places of ri_phys_footprint and ri_lifetime_max_phys_footprint."""


class MacReader:
    """macOS's figures.

    Args:
        library: the system's C library.
        system: psutil, for the machine and for the tree of processes.
    """

    def __init__(self, library: Any = None, system: Any = psutil) -> None:
        self._library = ctypes.CDLL("/usr/lib/libSystem.B.dylib") if library is None else library
        self._library.proc_pid_rusage.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
        self._library.proc_pid_rusage.restype = ctypes.c_int
        self._library.malloc_zone_pressure_relief.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._library.malloc_zone_pressure_relief.restype = ctypes.c_size_t
        self._system = system

    def held_bytes(self, pid: int) -> int:
        """Return the phys_footprint of a process."""
        return self._figure(pid, FOOTPRINT) or 0

    def peak_bytes(self, pid: int) -> int | None:
        """Return the largest phys_footprint of its life."""
        return self._figure(pid, LIFETIME_MAX_FOOTPRINT)

    def reset_peak(self) -> bool:
        """Return False: the peak is that of a process's whole life."""
        return False

    def data_bytes(self, pid: int) -> int | None:  # noqa: ARG002  the same call on every system
        """Return None: no limit here counts such a thing."""
        return None

    def machine(self) -> MachineMemory:
        """Return the machine's memory; what psutil calls swapped out are all pages written, those of files too."""
        memory = self._system.virtual_memory()
        return MachineMemory(int(memory.total), int(memory.available))

    def release(self) -> bool:
        """Have every malloc zone give back what it can."""
        self._library.malloc_zone_pressure_relief(None, 0)
        return True

    def descendants(self, pid: int) -> list[int]:
        """Return them from the table of all processes (milliseconds)."""
        return descendants_by_parents(pid, self._system)

    def _figure(self, pid: int, place: int) -> int | None:
        words = (ctypes.c_uint64 * WORDS)()
        if self._library.proc_pid_rusage(pid, RUSAGE_INFO_V4, words) != 0:
            return None
        return int(words[place])
