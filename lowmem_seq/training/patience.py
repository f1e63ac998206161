"""Waiting for a disk that is full or fails, instead of losing what was computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lowmem_seq.disk import free_bytes, is_trouble
from lowmem_seq.errors import DiskError
from lowmem_seq.runs.clocks import awake_seconds
from lowmem_seq.training.journal import Journal
from lowmem_seq.units import format_bytes, format_seconds

Result = TypeVar("Result")

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.5


class DiskPatience:
    """Repeats what the disk refuses, at growing intervals, until it goes through or the limit is reached.

    Args:
        folder: lies on the disk in question.
        journal: hears of each pause and of its end.
        limit_seconds: the longest that one write is waited for.
        next_command: what goes on from what was saved before.
        stop_requested: whether somebody asks the run to stop; then nothing is waited for.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        limit_seconds: float,
        next_command: str,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder, self._journal, self._limit_seconds = folder, journal, limit_seconds
        self._stop_requested, self._next_command = stop_requested, next_command

    def run(self, what: str, write: Callable[[], Result], needed_bytes: int = 0) -> Result:
        """Return what `write` returns, as soon as the disk lets it; other errors pass through.

        Args:
            what: what is written, for the message.
            write: leaves everything as it was when it raises OSError, and can be called again.
            needed_bytes: as soon as so much is free, and wasn't before, it is tried again.

        Raises:
            DiskError: the disk refused for longer than the limit, or until a stop was asked for.
        """
        began = awake_seconds()
        results: list[Result] = []
        refused = _attempt(write, results)
        if refused is None:
            return results[0]
        wait_seconds = FIRST_WAIT_SECONDS
        while refused is not None:
            waited = awake_seconds() - began
            cause = refused.strerror or str(refused)
            if waited >= self._limit_seconds or self._stop_requested():
                raise DiskError(
                    f"{what} could not be written for {format_seconds(waited)}: {cause} "
                    f"({format_bytes(self._free())} are free). What was saved before stands.",
                    f"make room on the disk, then {self._next_command}",
                ) from refused
            self._journal.record(
                "paused",
                what=what,
                cause=cause,
                free_bytes=self._free(),
                next_try_seconds=wait_seconds,
                limit_seconds=self._limit_seconds,
            )
            self._wait(min(wait_seconds, self._limit_seconds - waited), needed_bytes)
            wait_seconds = min(2 * wait_seconds, LONGEST_WAIT_SECONDS)
            refused = _attempt(write, results)
        self._journal.record("unpaused", what=what, seconds=awake_seconds() - began)
        return results[0]

    def _wait(self, seconds: float, needed_bytes: int) -> None:
        """Wait so long, or until there is room that wasn't there before, or a stop is asked for."""
        lacked_room = self._free() < needed_bytes
        until = awake_seconds() + seconds
        while (left := until - awake_seconds()) > 0:
            time.sleep(min(LOOK_SECONDS, left))
            if self._stop_requested() or (lacked_room and self._free() >= needed_bytes):
                return

    def _free(self) -> int:
        try:
            return free_bytes(self._folder)
        except OSError:  # a disk that was pulled out
            return 0


def _attempt(write: Callable[[], Result], results: list[Result]) -> OSError | None:
    """Add what `write` returns to `results`, or return the disk's refusal."""
    try:
        results.append(write())
    except OSError as error:
        if not is_trouble(error):
            raise
        return error
    return None
