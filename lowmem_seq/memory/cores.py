"""How many cores a run computes on: all that it may use, without those of a slower kind.

Work is dealt out to the cores evenly and beforehand, so that a step gives the same bits each time. A slower core
(Intel's and Apple's efficiency cores, the little ones of ARM) would hold up the others in every step. On Linux
Intel's list (/sys/devices/cpu_core, see perf's intel-hybrid.txt) and ARM's capacities (the kernel's
sched-capacity.rst) tell the kinds apart, on macOS hw.perflevel0 (sysctl(3)), on Windows the EfficiencyClass of
GetLogicalProcessorInformationEx. This project's tests give each system made-up figures; no processor with two kinds
of cores was run.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from pathlib import Path
from typing import Any

import psutil

from lowmem_seq.memory.cgroups import cpu_quota, read_bytes

SAME_KIND = 0.75
"""Share of the largest capacity from which a core is one of the fast kind; Linux gives 1024 to the fastest."""
RELATION_PROCESSOR_CORE = 0
SIZE_AT, EFFICIENCY_AT, HEADER_BYTES = 4, 9, 32
"""Places in a SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX (winnt.h), and the least that one takes."""


def usable_cores(wanted: int | None, background: bool = False, platform: str = sys.platform) -> int:
    """Return how many cores to compute on: as given, or all of the fast kind that may be used, at least one.

    Args:
        wanted: as many, whatever there is; None for what there is.
        background: leave one to other programs, unless it is the only one.
        platform: as `sys.platform` has it.
    """
    if wanted is not None:
        return wanted
    return max(1, _fast_cores(platform) - background)


def _fast_cores(platform: str) -> int:
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if platform == "linux":
        return linux_cores(os.sched_getaffinity(0), cpu_quota(Path("/proc")), Path("/sys/devices")) or physical
    if platform == "darwin":
        return mac_fast_cores(ctypes.CDLL("/usr/lib/libSystem.B.dylib")) or physical
    if platform == "win32":
        return windows_fast_cores(getattr(ctypes, "WinDLL")("kernel32")) or physical  # noqa: B009
    return physical


def linux_cores(allowed: set[int], quota: float | None, devices: Path) -> int | None:
    """Return the cores of the fast kind among the processors that a process may run on; None where nothing is told.

    Args:
        allowed: the logical processors, of which two may share a core.
        quota: how many of them a control group lets it keep busy, if that is bounded.
        devices: where the system's /sys/devices lies.
    """
    fast = _listed(devices / "cpu_core" / "cpus") & allowed
    capacities = {number: _whole_number(devices / f"system/cpu/cpu{number}/cpu_capacity") for number in allowed}
    if not fast and all(capacities.values()):
        most = max(capacity or 0 for capacity in capacities.values())
        fast = {number for number, capacity in capacities.items() if (capacity or 0) >= SAME_KIND * most}
    cores = set()
    for number in fast or allowed:
        siblings = _listed(devices / f"system/cpu/cpu{number}/topology/thread_siblings_list")
        if not siblings:
            return None
        cores.add(min(siblings))
    return len(cores) if quota is None else max(1, min(len(cores), math.ceil(quota)))


def mac_fast_cores(library: Any) -> int | None:
    """Return the performance cores of an Apple processor; None where all are of one kind, or nothing is told."""
    levels, cores = (_sysctl(library, name) for name in (b"hw.nperflevels", b"hw.perflevel0.physicalcpu"))
    return cores if levels is not None and levels > 1 else None


def windows_fast_cores(kernel32: Any) -> int | None:
    """Return the cores of the highest efficiency class, which is the fastest; None where nothing is told."""
    size = ctypes.c_uint32(0)
    kernel32.GetLogicalProcessorInformationEx(RELATION_PROCESSOR_CORE, None, ctypes.byref(size))
    told = ctypes.create_string_buffer(size.value)
    if not kernel32.GetLogicalProcessorInformationEx(RELATION_PROCESSOR_CORE, told, ctypes.byref(size)):
        return None
    classes, at = [], 0
    while at + HEADER_BYTES <= size.value:
        (length,) = struct.unpack_from("<I", told, at + SIZE_AT)
        classes.append(told.raw[at + EFFICIENCY_AT])
        at += max(HEADER_BYTES, length)
    return classes.count(max(classes)) if classes else None


def _sysctl(library: Any, name: bytes) -> int | None:
    value, size = ctypes.c_int32(0), ctypes.c_size_t(4)
    failed = library.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


def _listed(path: Path) -> set[int]:
    """Return the numbers of a list of processors, such as 0-3,8."""
    found: set[int] = set()
    for part in (read_bytes(path) or b"").decode("ascii", "replace").strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found.update(range(int(first), int(last or first) + 1))
    return found


def _whole_number(path: Path) -> int | None:
    text = (read_bytes(path) or b"").strip()
    return int(text) if text.isdigit() else None
