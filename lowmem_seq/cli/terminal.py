"""What is written to a terminal: it may go away, lack letters, and must not be led astray."""

from __future__ import annotations

import codecs
import json
import os
import sys
from typing import IO, Any, cast

from rich.cells import cell_len
from rich.console import Console

from lowmem_seq.text import harmless

__all__ = ["LastingStream", "can_redraw", "harmless", "make_console", "print_data", "print_json"]


AS_WIDE = "lowmem-seq-as-wide"


def _as_wide(error: UnicodeError) -> tuple[str, int]:
    """Stand in for letters that an encoding lacks, and leave frames and columns where they are."""
    assert isinstance(error, UnicodeEncodeError)
    return "?" * cell_len(error.object[error.start : error.end]), error.end


codecs.register_error(AS_WIDE, _as_wide)


class LastingStream:
    """Writes to another stream for as long as it takes what is written, and to nothing afterwards.

    A closed terminal, or a pipe whose other end is gone, is no reason to end a run. Neither is a name whose letters
    the stream's encoding lacks: question marks take their places, two for a letter that is two columns wide.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, or drop it if nobody can read it any more."""
        try:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:
                return self._stream.write(text.encode(error.encoding, AS_WIDE).decode(error.encoding))
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


def make_console(stream: IO[str], soft_wrap: bool = False) -> Console:
    """Return the console through which a command prints on a stream; text from elsewhere goes through `harmless`.

    Args:
        stream: stdout or stderr.
        soft_wrap: leave it to the terminal to break long lines, so that they can be copied as one.
    """
    return Console(file=cast(IO[str], LastingStream(stream)), highlight=False, soft_wrap=soft_wrap)


def can_redraw(console: Console) -> bool:
    """Return whether what was written can be written over; else each state of things is a line of its own."""
    return console.is_terminal and not console.is_dumb_terminal


def print_data(text: str) -> None:
    """Print text for programs on stdout, without breaking its lines."""
    stream = LastingStream(sys.stdout)
    stream.write(text)
    stream.flush()


def print_json(value: object) -> None:
    """Print JSON on stdout, in letters that every terminal has and that none takes for commands."""
    print_data(json.dumps(value, indent=2) + "\n")
