"""What asks a session to stop, heard from its first moment to its last: signals, and the loss of another rank."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lowmem_seq.channel import STOP_SIGNALS
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.supervisor.child import Child

LOOK_SECONDS = 0.1
HANG_UP = getattr(signal, "SIGHUP", None)


class StopSignals:
    """Counts Ctrl-C, SIGTERM, SIGHUP (a closed terminal) and CTRL_BREAK; a handler does no more than that.

    The first one asks for an orderly stop, the second one ends the child that is running. SIGHUP is never a second
    one: a system that shuts down sends it right after SIGTERM.
    """

    def __init__(self) -> None:
        self.count = 0
        self._loss: LowmemSeqError | None = None
        self._ending: tuple[Child, int] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        heard = [number for number in STOP_SIGNALS if not _is_left_to_nohup(number)]
        self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.count and number == HANG_UP:
            return
        self.count += 1
        self._end_child()

    def end_by(self, loss: LowmemSeqError) -> None:
        """End the child that is running, for what it does is of no use any more; any thread may say so."""
        self._loss = loss
        self._end_child()

    def _end_child(self) -> None:
        ending = self._ending
        if ending is not None and (self._loss is not None or self.count >= ending[1]):
            ending[0].kill()

    @contextlib.contextmanager
    def ending(self, child: Child, at: int) -> Iterator[None]:
        """End `child` when the `at`-th signal comes, or at once if it has come already."""
        self._ending = (child, at)
        self._end_child()
        try:
            yield
        finally:
            self._ending = None

    def raise_if_any(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for, or the loss that ends the session."""
        if self.count:
            raise KeyboardInterrupt
        if self._loss is not None:
            raise self._loss

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the session is to end."""
        until = time.monotonic() + seconds
        while not self.count and self._loss is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(LOOK_SECONDS, left))


def _is_left_to_nohup(number: int) -> bool:
    """Whether it is the signal of a closed terminal, and somebody had it ignored before this program began."""
    return number == HANG_UP and signal.getsignal(number) == signal.SIG_IGN
