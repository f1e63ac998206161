"""Two clocks that every system has under other names: time awake, and time asleep.

A laptop that sleeps trains nothing, so a run's times and rates are counted in time awake. Python's monotonic clock
stops in sleep on Linux (CLOCK_MONOTONIC) and macOS (mach_absolute_time), and doesn't on Windows (GetTickCount64,
from Python 3.13 on QueryPerformanceCounter). What never stops is CLOCK_BOOTTIME on Linux and CLOCK_MONOTONIC on
macOS; what does on Windows is QueryUnbiasedInterruptTime. None of them jumps when the clock on the wall is set. The
tests give each system made-up clocks; on macOS and Windows they were not run.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

UNITS_A_SECOND = 10**7
"""QueryUnbiasedInterruptTime counts in steps of 100 ns."""


@dataclass(frozen=True)
class Clocks:
    """The clocks of one system; only differences between two readings mean anything."""

    awake: Callable[[], float]
    """Seconds that stop while the machine sleeps."""
    through_sleep: Callable[[], float]
    """Seconds that never stop."""


def clocks_of(platform: str, system: Any = time, kernel32: Any = None) -> Clocks:
    """Return a system's clocks.

    Args:
        platform: as `sys.platform` has it.
        system: Python's time; a test gives another one.
        kernel32: Windows' library.
    """
    if platform == "win32":
        return Clocks(lambda: _unbiased_seconds(kernel32), system.monotonic)
    never_stops = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC"}.get(platform)
    if never_stops is None or not hasattr(system, never_stops):  # no way to tell sleep from work
        return Clocks(system.monotonic, system.monotonic)
    return Clocks(system.monotonic, lambda: float(system.clock_gettime(getattr(system, never_stops))))


def _unbiased_seconds(kernel32: Any) -> float:
    units = ctypes.c_uint64()
    kernel32.QueryUnbiasedInterruptTime(ctypes.byref(units))
    return units.value / UNITS_A_SECOND


@functools.cache
def _own_clocks() -> Clocks:
    kernel32 = getattr(ctypes, "WinDLL")("kernel32") if sys.platform == "win32" else None  # noqa: B009
    return clocks_of(sys.platform, kernel32=kernel32)


def awake_seconds() -> float:
    """Return seconds that only grow, and only while this machine is awake."""
    return _own_clocks().awake()


def slept_seconds() -> float:
    """Return seconds that only grow while this machine sleeps, give or take the instant between two readings."""
    clocks = _own_clocks()
    return clocks.through_sleep() - clocks.awake()
