"""Keeping the machine from going to sleep by itself; wakepy knows how to ask each system.

Linux: the desktop's session (GNOME, KDE and those like them, by D-Bus); macOS: caffeinate; Windows:
SetThreadExecutionState. None of them stops somebody from sending the machine to sleep, or a closed lid from it, and
all of them end with this process, however it ends.
"""

from __future__ import annotations

import os
import sys
from typing import Protocol

SESSION_BUS = "DBUS_SESSION_BUS_ADDRESS"
NO_ANSWER = {
    "linux": "there is no desktop session to ask (D-Bus)",
    "darwin": "caffeinate did not start",
    "win32": "SetThreadExecutionState refused",
}
"""Why a system did not do it, for people; wakepy's own words are a page for its developers."""


class Wakefulness(Protocol):
    """What keeps a machine awake."""

    def hold(self) -> str | None:
        """Keep the machine awake from now on; return by what means, or None where it can't be."""

    def let_go(self) -> None:
        """Let it sleep again when it likes."""


class SystemWakefulness:
    """What this system offers."""

    def __init__(self) -> None:
        self._mode: _Mode | None = None

    def hold(self) -> str | None:
        """Ask the system; the one call after the other, in one thread."""
        self.let_go()
        if sys.platform == "linux" and SESSION_BUS not in os.environ:
            return None
        from wakepy import keep  # 25 ms, and 4 MB in the supervisor

        mode = keep.running(on_fail="pass")
        mode.__enter__()
        if not mode.active:
            mode.__exit__(None, None, None)
            return None
        self._mode = mode
        return mode.method.name if mode.method is not None else "wakepy"

    def let_go(self) -> None:
        """Take the wish back, if there is one."""
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)


class _Mode(Protocol):
    def __exit__(self, kind: None, error: None, trace: None) -> object: ...


def why_not(platform: str = sys.platform) -> str:
    """Return why this machine can't be kept awake."""
    return NO_ANSWER.get(platform, "this system is not known to do it")
