"""Keys as they are pressed, without a line's end, where there is a keyboard."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

Wait = Callable[[float], str]
"""Waits so many seconds for a key, and returns it, or nothing where none was pressed."""
SECONDS_BETWEEN_LOOKS = 0.05


@contextlib.contextmanager
def keyboard(stream: IO[str] | None = None) -> Iterator[Wait | None]:
    """Have keys heard one by one until the block ends; None where no keyboard leads to this process.

    Ctrl-C stays what it is: KeyboardInterrupt.

    Args:
        stream: where keys come from; by default standard input.
    """
    stream = sys.stdin if stream is None else stream
    if not stream.isatty():
        yield None
    elif sys.platform == "win32":
        yield _windows_keys(importlib.import_module("msvcrt"))
    else:
        with _posix_keys(stream.fileno()) as wait:
            yield wait


def _windows_keys(console: Any) -> Wait:
    def wait(seconds: float) -> str:
        until = time.monotonic() + seconds
        while not console.kbhit():
            if time.monotonic() >= until:
                return ""
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return str(console.getwch())

    return wait


@contextlib.contextmanager
def _posix_keys(descriptor: int) -> Iterator[Wait | None]:
    select: Any = importlib.import_module("select")
    termios: Any = importlib.import_module("termios")
    tty: Any = importlib.import_module("tty")
    if _is_in_background(descriptor):
        yield None
        return
    before = termios.tcgetattr(descriptor)
    open_ = True

    def wait(seconds: float) -> str:
        nonlocal open_
        if not open_:
            time.sleep(seconds)
        elif select.select([descriptor], [], [], seconds)[0]:
            key = os.read(descriptor, 1)
            open_ = bool(key)  # its other end is gone, and stays so
            return key.decode("utf-8", "replace")
        return ""

    tty.setcbreak(descriptor)
    try:
        yield wait
    finally:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _is_in_background(descriptor: int) -> bool:
    """Whether another process has the terminal; one that touches it all the same is stopped by the system."""
    with contextlib.suppress(OSError):  # it is not the one that this process was started from
        return os.tcgetpgrp(descriptor) != os.getpgrp()
    return False
