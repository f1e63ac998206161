"""The environment that a training process is started with: what must be there before it begins.

The allocator is a choice between speed and memory. Small, bf16, micro-batch 64, one thread: huge pages 567 images/s
at 553 MiB, glibc's defaults 447 at 542, and with small thresholds, by which nearly all that is freed goes back to
the system at once, 261 at 428 (docs/log.md).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for others sleep instead of spinning. Where another program keeps a core busy, spinning made
Small train at 8 to 11 images/s instead of 277 to 327 (docs/log.md, 2026-11-22)."""
ALLOCATORS: dict[str, dict[str, str]] = {
    "huge": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "default": {},
    "lean": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
}
"""`huge`: glibc's malloc asks for transparent huge pages, which takes page faults out of every step. `lean`: blocks
of 64 KiB and more come from the system and go back to it one by one. `default`: as the system has it."""
VARIABLES = {
    "OMP_WAIT_POLICY": re.compile(r"\w{0,20}", re.ASCII),
    "OMP_NUM_THREADS": re.compile(r"\d{1,4}", re.ASCII),
    "GLIBC_TUNABLES": re.compile(r"[\w.=:,-]{0,1000}", re.ASCII),
    "MALLOC_MMAP_THRESHOLD_": re.compile(r"\d{1,12}", re.ASCII),
    "MALLOC_TRIM_THRESHOLD_": re.compile(r"\d{1,12}", re.ASCII),
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO": re.compile(r"\d{1,2}\.\d{1,4}", re.ASCII),
    "PYTORCH_MPS_LOW_WATERMARK_RATIO": re.compile(r"\d{1,2}\.\d{1,4}", re.ASCII),
}
"""What a plan may set, and how it may look: a plan can come with somebody else's run folder."""
LOW_WATERMARK = 0.9
"""Share of the bound on an Apple GPU's memory from which torch gives unused memory back."""


def usable_allocators() -> tuple[str, ...]:
    """Return the allocators that a plan may choose from, the fastest first, then the one that needs least memory.

    glibc alone has settings of this kind; where the user has set any of them, they stay, and there is no choice.
    """
    of_ours = {name for variables in ALLOCATORS.values() for name in variables}
    if sys.platform != "linux" or not _has_glibc() or any(name in os.environ for name in of_ours):
        return ("default",)
    return ("huge", "lean")


def _has_glibc() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (ValueError, OSError):  # another C library doesn't know the name
        return False


def training_environment(threads: int, allocator: str) -> dict[str, str]:
    """Return what is added to a trainer's environment: threads, allocator, and nothing that the user has set."""
    added = {**PASSIVE_WAITING, **ALLOCATORS[allocator]}
    kept = {name: os.environ.get(name, value) for name, value in added.items()}
    return {**kept, "OMP_NUM_THREADS": str(threads)}


def mps_environment(room_bytes: int, recommended_bytes: int) -> dict[str, str]:
    """Return the bounds on what an Apple GPU holds: torch alone would allow 1.7 times the recommended size.

    The low watermark is set too, because torch refuses a high one below it.
    """
    high = min(1.7, room_bytes / recommended_bytes)
    low = LOW_WATERMARK * high
    return {
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO": os.environ.get("PYTORCH_MPS_HIGH_WATERMARK_RATIO", f"{high:.4f}"),
        "PYTORCH_MPS_LOW_WATERMARK_RATIO": os.environ.get("PYTORCH_MPS_LOW_WATERMARK_RATIO", f"{low:.4f}"),
    }


def told_allocator(environment: Mapping[str, str]) -> str:
    """Return the name of the allocator that an environment sets, `default` where it sets none of ours."""
    for name, variables in ALLOCATORS.items():
        if variables and all(environment.get(key) == value for key, value in variables.items()):
            return name
    return "default"
