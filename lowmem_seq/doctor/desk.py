"""The clock, and the terminal: small things that spoil downloads and screens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import lowmem_seq
from lowmem_seq.doctor.finding import Finding, fault, note, well

DAY_SECONDS = 86400.0
LATEST_UNIX_SECONDS = 2**32
"""The year 2106."""
LETTERS = "é─█▁…"
"""Of names as people write them, and of what the screens draw."""


def check_clock(now: float, installed_at: float) -> Iterator[Finding]:
    """Say whether the clock can be right.

    Args:
        now: seconds since 1970.
        installed_at: when the newest file of this program was written.
    """
    text = time.strftime("%Y-%m-%d %H:%M", time.gmtime(min(max(now, 0.0), LATEST_UNIX_SECONDS)))
    if now < installed_at - DAY_SECONDS or now > LATEST_UNIX_SECONDS:
        yield fault(
            "clock",
            f"it says {text} (UTC), which can't be: downloads fail, and runs get wrong times",
            "have the system set it: Windows: w32tm /resync, Linux: timedatectl set-ntp true, "
            "macOS: System Settings, Date & Time",
            unix_seconds=now,
        )
    else:
        yield well("clock", f"{text} (UTC)", unix_seconds=now)


def installation_time() -> float:
    """Return when the newest file of this program was written."""
    return max(path.stat().st_mtime for path in Path(lowmem_seq.__file__).parent.glob("*.py"))


def check_terminal(stream: TextIO, platform: str = sys.platform) -> Iterator[Finding]:
    """Say whether what is printed arrives as it is meant."""
    encoding = stream.encoding or "ascii"
    lacking = [letter for letter in LETTERS if not _has(encoding, letter)]
    if lacking:
        fix = "chcp 65001, or: setx PYTHONUTF8 1" if platform == "win32" else "export LANG=C.UTF-8"
        told = f"{encoding} lacks letters that names and screens have: question marks take their places"
        yield note("terminal", told, fix, encoding=encoding)
    else:
        where = "" if stream.isatty() else ", and no terminal: what is printed goes to a file or a program"
        yield well("terminal", f"{encoding}{where}", encoding=encoding)


def _has(encoding: str, letter: str) -> bool:
    try:
        letter.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
