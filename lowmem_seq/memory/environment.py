"""The environment that a training process is started with: what must be there before it begins.

The allocator is a choice between speed and memory: glibc's malloc gives large blocks back to the system, and each
that is taken again faults in page by page. Small, bf16, micro-batch 64, two workers: 1,120 to 1,190 images/s at 564
MB where blocks are kept, 1,080 to 1,100 at 551 by glibc's defaults, and 534 at 519 where nearly all goes back at
once (docs/log.md, 2026-11-23).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping

from lowmem_seq.errors import UsageError

PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for others sleep instead of spinning. Where another program keeps a core busy, spinning made
Small train at 8 to 11 images/s instead of 277 to 327 (docs/log.md, 2026-11-22)."""
ALLOCATORS: dict[str, dict[str, str]] = {
    "keep": {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "67108864"},
    "default": {},
    "lean": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    "huge": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}
"""`keep`: blocks of up to 32 MiB, the most that glibc can be told, come from the heap and stay in it, from the
first step on. `lean`: blocks of 64 KiB and more come from the system and go back to it one by one. `default`: as
the system has it. `huge`: transparent huge pages, for runs that were planned with them; at 224x224 they cost up to
40 % of the speed."""
HIGH_WATERMARK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO"
LOW_WATERMARK = "PYTORCH_MPS_LOW_WATERMARK_RATIO"
VARIABLES = {
    "OMP_WAIT_POLICY": re.compile(r"\w{0,20}", re.ASCII),
    "OMP_NUM_THREADS": re.compile(r"\d{1,4}", re.ASCII),
    "GLIBC_TUNABLES": re.compile(r"[\w.=:,-]{0,1000}", re.ASCII),
    "MALLOC_MMAP_THRESHOLD_": re.compile(r"\d{1,12}", re.ASCII),
    "MALLOC_TRIM_THRESHOLD_": re.compile(r"\d{1,12}", re.ASCII),
    HIGH_WATERMARK: re.compile(r"\d{1,2}(\.\d{1,4})?", re.ASCII),
    LOW_WATERMARK: re.compile(r"\d{1,2}(\.\d{1,4})?", re.ASCII),
}
"""What a plan may set, and how it may look: a plan can come with somebody else's run folder."""
MOST_WATERMARK = 2.0
USUAL_HIGH_WATERMARK = 1.7
USUAL_LOW_WATERMARK = 1.4
"""What torch takes at the most, and what it takes by itself (MPSAllocator.h)."""
SHARE_OF_HIGH = 0.9
"""Share of the bound on an Apple GPU's memory from which torch gives unused memory back."""


def usable_allocators() -> tuple[str, ...]:
    """Return the allocators that a plan may choose from, the fastest first, then the one that needs least memory.

    glibc alone has settings of this kind; where the user has set any of them, they stay, and there is no choice.
    """
    of_ours = {name for variables in ALLOCATORS.values() for name in variables}
    if sys.platform != "linux" or not _has_glibc() or any(name in os.environ for name in of_ours):
        return ("default",)
    return ("keep", "lean")


def _has_glibc() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (ValueError, OSError):  # another C library doesn't know the name
        return False


def training_environment(threads: int, allocator: str) -> dict[str, str]:
    """Return what is added to a trainer's environment: threads, allocator, and nothing that the user has set.

    What the user has set is told too, so that the run is resumed with it, but for what a plan may not hold.
    """
    added = {**PASSIVE_WAITING, **ALLOCATORS[allocator]}
    kept = {name: os.environ.get(name, value) for name, value in added.items()}
    kept = {name: text for name, text in kept.items() if VARIABLES[name].fullmatch(text)}
    return {**kept, "OMP_NUM_THREADS": str(threads)}


def mps_environment(room_bytes: int, recommended_bytes: int) -> dict[str, str]:
    """Return the bounds on what an Apple GPU holds: torch alone would allow 1.7 times the recommended size.

    Args:
        room_bytes: what the cap leaves for it: the processor's part of the same memory, libraries above all, apart.
        recommended_bytes: by the system.

    Raises:
        UsageError: what the user set for one of them is not what torch takes.
    """
    return _watermarks(max(1, room_bytes) / recommended_bytes)


def mps_environment_as_usual() -> dict[str, str]:
    """Return torch's own bounds, and the user's, where it is not known yet what the device has.

    Raises:
        UsageError: see `mps_environment`.
    """
    return _watermarks(USUAL_HIGH_WATERMARK)


def _watermarks(high: float) -> dict[str, str]:
    """Return both watermarks, as shares of the recommended size: the user's, and `high` where there is none.

    torch refuses to start with a low one above the high one, or above 2 where the high one is 0, which stands for
    no bound at all; with a low one of 0 it never gives unused memory back (setLowWatermarkRatio in ATen's
    MPSAllocator.mm). So the low one follows the high one. The user's own is brought down to it, too, which changes
    nothing: it says from where on memory is given back, and more than the high one is never held. Where the user
    took the bound away, or set it above `high`, memory is still given back below `high`.
    """
    high = min(USUAL_HIGH_WATERMARK, high)
    user_high, user_low = _user_ratio(HIGH_WATERMARK), _user_ratio(LOW_WATERMARK)
    bound = high if user_high is None else user_high
    most_low = bound or MOST_WATERMARK
    low = min(USUAL_LOW_WATERMARK, SHARE_OF_HIGH * min(high, most_low)) if user_low is None else user_low
    return {HIGH_WATERMARK: _ratio_text(bound), LOW_WATERMARK: _ratio_text(min(low, most_low))}


def _user_ratio(name: str) -> float | None:
    text = os.environ.get(name)
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if 0.0 <= (ratio := float(text)) <= MOST_WATERMARK:
            return ratio
    raise UsageError(
        f"the environment's {name} is {text!r}, and torch takes a number from 0 to 2 there.",
        f"unset {name}   and the cap decides",
    )


def _ratio_text(ratio: float) -> str:
    """Return a ratio as a plan holds it; one that is tiny must not become 0, which means that there is none."""
    return f"{max(ratio, 0.0001) if ratio else 0.0:.4f}"


def told_allocator(environment: Mapping[str, str]) -> str:
    """Return the name of the allocator that an environment sets, `default` where it sets none of ours."""
    for name, variables in ALLOCATORS.items():
        if variables and all(environment.get(key) == value for key, value in variables.items()):
            return name
    return "default"
