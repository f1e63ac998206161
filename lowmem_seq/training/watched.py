"""Exchanges with other ranks that can't hang: done by one thread, while another looks whether all are there.

A collective of gloo or NCCL returns when every rank takes part, however long that takes. One that a lost rank will
never join is left behind with its thread; the process then ends without waiting for it (training/__main__.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lowmem_seq.cluster.pulse import START_AGAIN, Pulse, RankLost
from lowmem_seq.memory.out_of_memory import is_out_of_memory

Result = TypeVar("Result")

EXCHANGE = "exchange"
"""The name of the thread that does them; it ends when all part, and not before."""
LOOK_SECONDS = 0.5
SECONDS_FOR_A_CAUSE = 3.0
"""How long to look for the reason of a broken connection: a rank that leaves has written it down, and one that was
killed has missed beats by then."""


class Watched:
    """Does one exchange after the other.

    Args:
        pulse: tells whether all ranks are there; it is started here.
    """

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=EXCHANGE, daemon=True)
        self._thread.start()
        pulse.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            self._ends.put(_outcome(call))

    def do(self, exchange: Callable[[], Result], within_seconds: float | None = None) -> Result:
        """Return what an exchange gives.

        Args:
            exchange: what is done together.
            within_seconds: how long it may take although all are there; None: as long as it takes.

        Raises:
            RankLost: another rank has ended or is silent.
            TimeoutError: it took too long.
            RuntimeError: there was no memory for it.
        """
        self._calls.put(exchange)
        began = time.monotonic()
        while True:
            try:
                result, error = self._ends.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                self._pulse.require_all()
                if within_seconds is not None and time.monotonic() - began > within_seconds:
                    raise TimeoutError from None
                continue
            if error is None:
                return result  # type: ignore[no-any-return]
            if not isinstance(error, RuntimeError) or is_out_of_memory(error, limited=True):
                raise error
            self._raise_cause(error)

    def _raise_cause(self, error: RuntimeError) -> None:
        until = time.monotonic() + SECONDS_FOR_A_CAUSE
        while time.monotonic() < until:
            self._pulse.require_all()
            time.sleep(LOOK_SECONDS / 5)
        words = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise RankLost(f"{self._pulse.quietest()} is gone ({words}).", START_AGAIN) from error

    def stop(self) -> None:
        """End both threads."""
        self._pulse.stop()
        self._calls.put(None)
        self._thread.join()


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what a call gives, or what it raised, for the thread that waits for it."""
    try:
        return call(), None
    except BaseException as error:
        return None, error
