"""The bound that the system itself sets on a process's memory, so that the cap holds also where polling is late.

Linux: RLIMIT_DATA, on the private writable pages that a process may have. Windows: a job object of one process, on
what it may commit. macOS has nothing of the kind for the CPU: its setrlimit takes the values and does nothing, so
there the cap is kept by polling alone. On a GPU the bound on the device's memory is the framework's (see
environment.py for MPS).

A process that met its bound trains no further, since libraries are not whole then; it raises the bound by a
reserve, saves, and ends.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from typing import Any, Protocol

MOST_RESERVE_BYTES = 16 * 10**6
MOST_RESERVE = 0.015
"""Share of what the process may hold."""


class Limit(Protocol):
    """One process's bound on its own memory."""

    @property
    def name(self) -> str | None:
        """What enforces it, for people; None: nothing does."""

    def set(self, size_bytes: int, /) -> bool:
        """Bound this process to so many bytes; return whether the system does."""

    def raise_by(self, reserve_bytes: int, /) -> None:
        """Allow so much more, for the last save."""


class DataLimit:
    """RLIMIT_DATA of Linux. Only the soft bound is set, so it can be raised again without privileges."""

    name: str | None = "RLIMIT_DATA"

    def __init__(self, resource: Any) -> None:
        self._resource = resource

    def set(self, size_bytes: int) -> bool:
        """See Limit. A hard bound that is lower stays in force."""
        _, hard = self._resource.getrlimit(self._resource.RLIMIT_DATA)
        wanted = size_bytes if hard == self._resource.RLIM_INFINITY else min(size_bytes, hard)
        self._resource.setrlimit(self._resource.RLIMIT_DATA, (wanted, hard))
        return True

    def raise_by(self, reserve_bytes: int) -> None:
        """See Limit."""
        soft, _ = self._resource.getrlimit(self._resource.RLIMIT_DATA)
        if soft != self._resource.RLIM_INFINITY:
            self.set(soft + reserve_bytes)


class JobLimit:
    """A job object of Windows that holds this process alone; jobs nest since Windows 8.

    Args:
        kernel32: the system's library, or a fake of it.
    """

    name: str | None = "job object"
    PROCESS_MEMORY = 0x100
    EXTENDED_LIMITS = 9

    def __init__(self, kernel32: Any) -> None:
        self._kernel32 = kernel32
        self._job: int | None = None
        self._size_bytes = 0

    def set(self, size_bytes: int) -> bool:
        """See Limit."""
        if self._job is None:
            job = self._kernel32.CreateJobObjectW(None, None)
            if not job or not self._kernel32.AssignProcessToJobObject(job, self._kernel32.GetCurrentProcess()):
                return False
            self._job = job
        limits = ExtendedLimits()
        limits.basic.flags = self.PROCESS_MEMORY
        limits.process_memory = size_bytes
        self._size_bytes = size_bytes
        done = self._kernel32.SetInformationJobObject(
            self._job, self.EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        return bool(done)

    def raise_by(self, reserve_bytes: int) -> None:
        """See Limit."""
        if self._job is not None:
            self.set(self._size_bytes + reserve_bytes)


class BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("process_time", ctypes.c_int64),
        ("job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("smallest_working_set", ctypes.c_size_t),
        ("largest_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority", ctypes.c_uint32),
        ("scheduling", ctypes.c_uint32),
    )


class ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("basic", BasicLimits),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("peak_process_memory", ctypes.c_size_t),
        ("peak_job_memory", ctypes.c_size_t),
    )


class NoLimit:
    """A system that bounds nothing."""

    name: str | None = None

    def set(self, _size_bytes: int) -> bool:
        """See Limit."""
        return False

    def raise_by(self, _reserve_bytes: int) -> None:
        """See Limit."""


def data_limit_bytes(data_bytes: int, held_bytes: int, room_bytes: int) -> int:
    """Return the bound on a data segment: what it has, and what the cap still allows beyond what is resident.

    A reserve of half that room is kept back, of 16 MB or 1.5 % of what may be held at the most: file pages that are
    first touched later (the test, the final weights) count as resident and not as data.

    Args:
        data_bytes: the data segment, as RLIMIT_DATA counts it.
        held_bytes: what is resident at the same time, or at the highest.
        room_bytes: what the process may hold.
    """
    room_left = max(0, room_bytes - held_bytes)
    return data_bytes + room_left - min(MOST_RESERVE_BYTES, int(MOST_RESERVE * room_bytes), room_left // 2)


@functools.cache
def system_limit(platform: str = sys.platform) -> Limit:
    """Return this system's bound for the process that calls: one for the whole process.

    Windows takes the least of the jobs that a process is in; a second one could never raise what the first allows.
    """
    if platform == "linux":
        return DataLimit(importlib.import_module("resource"))
    if platform == "win32":
        return JobLimit(_kernel32())
    return NoLimit()


def _kernel32() -> Any:
    library: Any = importlib.import_module("ctypes").WinDLL("kernel32", use_last_error=True)
    library.CreateJobObjectW.restype = ctypes.c_void_p
    library.CreateJobObjectW.argtypes = (ctypes.c_void_p, ctypes.c_wchar_p)
    library.GetCurrentProcess.restype = ctypes.c_void_p
    library.AssignProcessToJobObject.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.SetInformationJobObject.argtypes = (
        *(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p),
        ctypes.c_uint32,
    )
    return library
