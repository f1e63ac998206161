"""Which NVIDIA cards the machine has, as the system tells it: torch's CPU build could not say."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from lowmem_seq.cluster.rank import VISIBLE_GPUS
from lowmem_seq.doctor.software import cuda_of

NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"
"""How the class of a PCI device begins that draws or computes for a screen."""


def has_nvidia_card(platform: str = sys.platform, root: Path | None = None) -> bool:
    """Return whether there is one; see `nvidia_cards`."""
    return nvidia_cards(platform, root) > 0


def nvidia_cards(platform: str = sys.platform, root: Path | None = None) -> int:
    """Return how many there are; 1 where the system only says that there are some.

    On Linux the PCI devices say so, under WSL Windows' driver does; on Windows its driver; no Mac has one.

    Args:
        platform: as sys.platform says it.
        root: where the system's files lie; a test gives another place.
    """
    if platform == "linux":
        top = root or Path("/")
        devices = top.glob("sys/bus/pci/devices/*")
        return sum(map(_is_nvidia_display, devices)) or (top / "usr/lib/wsl/lib/libcuda.so.1").exists()
    if platform == "win32":
        system = root or Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
        return int((system / "System32" / "nvcuda.dll").exists())
    return 0


def usable_cards(environment: Mapping[str, str]) -> int:
    """Return how many cards the torch that is installed can use, of those that CUDA shows to this environment."""
    cards = nvidia_cards()
    if cards == 0 or cuda_of("torch") is None:
        return 0
    return shown_cards(environment, cards)


def shown_cards(environment: Mapping[str, str], cards: int) -> int:
    """Return how many of a machine's cards CUDA shows: those that are named, up to the first that is none."""
    shown = environment.get(VISIBLE_GPUS)
    if shown is None:
        return cards
    names = [name.strip() for name in shown.split(",")]
    return len(list(takewhile(lambda name: name not in ("", "-1"), names)))


def _is_nvidia_display(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == NVIDIA and kind.startswith(DISPLAY_CLASS)
