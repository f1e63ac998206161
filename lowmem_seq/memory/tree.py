"""What a process and its children hold in memory, now and at their peak."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import psutil

SHORT = 0.08
"""Share of the machine's memory that must stay available."""


def tree_bytes(root: psutil.Process) -> int:
    """Return the resident bytes of a process and all its descendants; those that ended count nothing."""
    total = 0
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def peak_process_bytes(pid: int | None = None) -> int | None:
    """Return the highest resident bytes of a process since it started, or since `reset_peak`.

    None where the system keeps no such figure (macOS), or the process is gone.
    """
    if psutil.LINUX:
        try:
            status = Path(f"/proc/{pid or os.getpid()}/status").read_text(encoding="ascii")
        except OSError:
            return None
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return None
    peak = getattr(info, "peak_wset", None)  # Windows
    return int(peak) if peak is not None else None


def reset_peak() -> bool:
    """Set this process's peak back to what it holds now; return whether the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def release_memory() -> bool:
    """Have the allocator give back what it keeps for later; return whether it can be asked to (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if psutil.LINUX else None
    return trim is not None and bool(trim(0))


def is_short_of_memory() -> bool:
    """Whether little of the machine's memory can still be taken without swapping."""
    return available_bytes() < SHORT * psutil.virtual_memory().total


def available_bytes() -> int:
    """Return the memory that can be taken without swapping: of the machine, or of its cgroup if that is less."""
    available = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text(encoding="ascii").strip()
        if text != "max":
            available = min(available, max(0, int(text) - int(used.read_text(encoding="ascii"))))
    except (OSError, ValueError):
        pass
    return available
