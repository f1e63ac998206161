"""The compiled part of the package, a library that is called by ctypes: whether it is there, and is the right one.

It is made where the package is installed or its wheel is built, if there is a C compiler (hatch_build.py). Nothing
depends on it: where it is missing, or older or newer than the package, the same is computed in other ways.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

VERSION = 1
"""Of what it exports; models/native/cells.c says the same."""
LIBRARY = Path(__file__).parent / "models" / "native" / ("cells.dll" if sys.platform == "win32" else "cells.so")


@cache
def library() -> ctypes.CDLL | None:
    """Load it, once; None where it is missing or can't be used."""
    try:
        found = ctypes.CDLL(str(LIBRARY))
        return found if found.version_of_baseline() == VERSION else None
    except (OSError, AttributeError):
        return None
