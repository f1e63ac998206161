"""What is written to a terminal: it may go away, and it must not be led astray."""

from __future__ import annotations

import os
from typing import IO, Any

LONGEST_TEXT = 4000


class LastingStream:
    """Writes to another stream for as long as it takes what is written, and to nothing afterwards.

    A closed terminal, or a pipe whose other end is gone, is no reason to end a run.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or drop it if nobody can read it any more."""
        try:
            return self._stream.write(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Hand over what is written so far."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        """Lead the stream's descriptor to nowhere, so that Python's own flush at the end has no error either."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        """Everything else is as the stream has it."""
        return getattr(self._stream, name)


def harmless(text: str) -> str:
    """Return text, parts of which may come from somebody else's run folder, as it can be shown.

    What a terminal would take for commands becomes a space, and what is too long is cut.
    """
    cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."
    return "".join(mark if mark.isprintable() or mark == "\n" else " " for mark in cut)
