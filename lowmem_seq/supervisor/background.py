"""Letting other programs go first: a lower priority for this process and all that it starts.

On macOS that is niceness alone: `taskpolicy -b` would put the whole run on the efficiency cores and slow its disk
down as well, which makes a night's training one of days. Linux with autogroups (sched(7)) compares niceness within
a session only, and the trainer has one of its own, so that the whole session is lowered as well.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import psutil

NICENESS = 10
BELOW_NORMAL = 0x4000
"""BELOW_NORMAL_PRIORITY_CLASS of Windows, which children inherit."""


def lower_priority(process: Any = None, platform: str = sys.platform) -> bool:
    """Lower a process's priority, and that of what it starts from now on; return whether that could be done.

    Args:
        process: psutil's; by default this one.
        platform: as `sys.platform` has it.
    """
    process = process or psutil.Process()
    try:
        if platform == "win32":
            process.nice(BELOW_NORMAL)
        elif process.nice() < NICENESS:  # it may have been started with a lower one yet
            process.nice(NICENESS)
    except psutil.Error:
        return False
    return True


def lower_session(pid: int, proc: Path = Path("/proc")) -> None:
    """Lower the session that a child leads, where the system has such a thing (Linux)."""
    with contextlib.suppress(OSError):
        (proc / str(pid) / "autogroup").write_text(str(NICENESS), encoding="ascii")
