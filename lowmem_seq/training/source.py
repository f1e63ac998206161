"""Where a session's samples come from: the positions of the run's one order that each step is to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lowmem_seq.checkpoint.counters import Counters
from lowmem_seq.training.workers import Range


class Source(Protocol):
    """What the loop asks between its steps."""

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its end."""

    @property
    def validates(self) -> bool:
        """Whether it is this machine that looks at the validation part as the run goes on."""

    @property
    def saved_bytes(self) -> int:
        """What it adds to a checkpoint."""

    @property
    def samples_done(self) -> int:
        """Samples of the run whose work is in this machine's weights."""

    def before_step(self) -> None:
        """Take in what others did: between two steps the weights may change, and the run may come to its end."""

    def take(self, samples: int) -> list[Range]:
        """Return the next positions to train, at most so many samples.

        None where the run is over or a stop was asked for.
        """

    def trained(self, ranges: Sequence[Range], seconds: float) -> None:
        """Hear that a step on these positions is done."""

    def writers(self) -> Mapping[str, Callable[[Path], None]]:
        """Return, for each file that a checkpoint holds of this, what writes it."""

    def does(self, what: str) -> None:
        """Hear what the session is at: `training`, `evaluating` or `saving`."""

    def end(self, reached: bool) -> None:
        """Hear, before the last save, that this session trains no further, and whether the run is at its end."""


class WholeOrder:
    """All positions, one step's after the other: what a machine trains that works alone.

    Args:
        counters: returns where the run stands.
        batch: samples of a step.
        total_steps: steps of the run.
    """

    validates, saved_bytes = True, 0

    def __init__(self, counters: Callable[[], Counters], batch: int, total_steps: int) -> None:
        self._counters, self._batch, self._total_steps = counters, batch, total_steps

    @property
    def is_over(self) -> bool:
        """Whether all steps are done."""
        return self._counters().step >= self._total_steps

    @property
    def samples_done(self) -> int:
        """Those of all steps up to now."""
        return self._counters().step * self._batch

    def before_step(self) -> None:
        """Nobody else does anything."""

    def take(self, samples: int) -> list[Range]:
        """Return the positions of the next step."""
        first = self._counters().step * self._batch
        return [(first, first + samples)]

    def trained(self, ranges: Sequence[Range], seconds: float) -> None:
        """The counters say it all."""

    def writers(self) -> Mapping[str, Callable[[Path], None]]:
        """Nothing more is to be saved."""
        return {}

    def does(self, what: str) -> None:
        """Nobody is to be told."""

    def end(self, reached: bool) -> None:
        """Nobody is to be told."""
