"""Text that may come from somebody else's run folder, as a terminal can show it."""

from __future__ import annotations

LONGEST_TEXT = 4000


def harmless(text: str, one_line: bool = False) -> str:
    """Return text without what a terminal would take for commands: a space takes the place of each such mark.

    Args:
        text: what is to be shown; what is too long is cut.
        one_line: make spaces of line ends, too.
    """
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."
    kept = "" if one_line else "\n"
    return "".join(mark if mark.isprintable() or mark == kept else " " for mark in cut)
