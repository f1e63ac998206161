"""Windows: private bytes, the memory that a process has committed; job objects bound the same figure.

This project's tests give it a system that they made; they have not run on Windows.
"""

from __future__ import annotations

import ctypes
from typing import Any

import psutil

from lowmem_seq.memory.readings import MachineMemory, descendants_by_parents


class WindowsReader:
    """Windows' figures.

    Args:
        library: kernel32.
        system: psutil, which asks Windows with one call for a process's figures.
    """

    def __init__(self, library: Any = None, system: Any = psutil) -> None:
        self._kernel32 = getattr(ctypes, "WinDLL")("kernel32") if library is None else library  # noqa: B009
        self._kernel32.GetProcessHeap.restype = ctypes.c_void_p
        self._kernel32.HeapCompact.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        self._kernel32.HeapCompact.restype = ctypes.c_size_t
        self._system = system

    def held_bytes(self, pid: int) -> int:
        """Return the private bytes of a process (PagefileUsage, the name that psutil 8 has left of the two)."""
        return self._figure(pid, "vms") or 0

    def peak_bytes(self, pid: int) -> int | None:
        """Return the most that it had committed (PeakPagefileUsage)."""
        return self._figure(pid, "peak_vms", "peak_pagefile")

    def reset_peak(self) -> bool:
        """Return False: the peak is that of a process's whole life."""
        return False

    def data_bytes(self, pid: int) -> int | None:  # noqa: ARG002  the same call on every system
        """Return None: a job object counts private bytes."""
        return None

    def machine(self) -> MachineMemory:
        """Return the machine's memory; Windows counts no pages that went to its page file.

        What lies there only performance counters tell, which may be switched off: psutil then raises a RuntimeError
        (its issues 2458 and 2681).
        """
        memory = self._system.virtual_memory()
        return MachineMemory(int(memory.total), int(memory.available))

    def release(self) -> bool:
        """Join the free blocks of the process's heap, and give back those that are whole pages."""
        return bool(self._kernel32.HeapCompact(self._kernel32.GetProcessHeap(), 0))

    def descendants(self, pid: int) -> list[int]:
        """Return them from the table of all processes (milliseconds)."""
        return descendants_by_parents(pid, self._system)

    def _figure(self, pid: int, *names: str) -> int | None:
        """Return a figure by the first of its names that this psutil knows."""
        try:
            told = self._system.Process(pid).memory_info()
        except psutil.Error:
            return None
        return next(int(getattr(told, name)) for name in names if hasattr(told, name))
