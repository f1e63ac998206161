"""Whether the machine has an NVIDIA card, as the system tells it: torch's CPU build could not say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NVIDIA = "0x10de"
DISPLAY_CLASS = "0x03"
"""How the class of a PCI device begins that draws or computes for a screen."""


def has_nvidia_card(platform: str = sys.platform, root: Path | None = None) -> bool:
    """Return whether there is one.

    On Linux the PCI devices say so, under WSL Windows' driver does; on Windows its driver; no Mac has one.

    Args:
        platform: as sys.platform says it.
        root: where the system's files lie; a test gives another place.
    """
    if platform == "linux":
        top = root or Path("/")
        devices = top.glob("sys/bus/pci/devices/*")
        return (top / "usr/lib/wsl/lib/libcuda.so.1").exists() or any(map(_is_nvidia_display, devices))
    if platform == "win32":
        system = root or Path(os.environ.get("SYSTEMROOT", r"C:\Windows"))
        return (system / "System32" / "nvcuda.dll").exists()
    return False


def _is_nvidia_display(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == NVIDIA and kind.startswith(DISPLAY_CLASS)
