"""The compiled part of the package, a library that is called by ctypes: whether it is there, and is the right one.

It is made where the package is installed or its wheel is built, if there is a C compiler (hatch_build.py). Nothing
depends on it: where it is missing, or made from other sources than those that lie here, all is computed otherwise.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "models" / "native"
SOURCES = ("cells.c", "steps.h")
LIBRARY = FOLDER / ("cells.dll" if sys.platform == "win32" else "cells.so")


def fingerprint() -> int:
    """Return 64 bits of a hash over the sources, however a checkout ends their lines."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((FOLDER / name).read_bytes().replace(b"\r\n", b"\n"))
    return int.from_bytes(digest.digest()[:8], "big")


@cache
def library() -> ctypes.CDLL | None:
    """Load it, once; None where it is missing or can't be used."""
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.fingerprint_of_baseline.restype = ctypes.c_uint64
        return found if found.fingerprint_of_baseline() == fingerprint() else None
    except (OSError, AttributeError):
        return None


def description() -> str | None:
    """Return what it was made from and with, which decides about last bits; None where there is none."""
    found = library()
    if found is None:
        return None
    found.compiler_of_baseline.restype = ctypes.c_char_p
    return f"{fingerprint():016x}, {found.compiler_of_baseline().decode('ascii', 'replace')}"
