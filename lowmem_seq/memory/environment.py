"""The environment that a training process is started with: what must be there before it begins."""

from __future__ import annotations

import os
import re
import sys

PASSIVE_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for others sleep instead of spinning. Where another program keeps a core busy, spinning made
Small train at 8 to 11 images/s instead of 277 to 327 (docs/log.md, 2026-11-22)."""
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""glibc's malloc asks for transparent huge pages, which takes page faults out of every step."""


def training_environment(threads: int) -> dict[str, str]:
    """Return what is added to a trainer's environment: the threads, and what the user has not set already."""
    added = {**PASSIVE_WAITING, **(HUGE_PAGES if sys.platform == "linux" else {})}
    kept = {name: os.environ.get(name, value) for name, value in added.items()}
    return {**kept, "OMP_NUM_THREADS": str(threads)}


VARIABLES = {
    "OMP_WAIT_POLICY": re.compile(r"\w{0,20}", re.ASCII),
    "OMP_NUM_THREADS": re.compile(r"\d{1,4}", re.ASCII),
    "GLIBC_TUNABLES": re.compile(r"[\w.=:,-]{0,1000}", re.ASCII),
}
"""What a plan may set, and how it may look: a plan can come with somebody else's run folder."""
