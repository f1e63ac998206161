"""What the loop asks of those who compute a step together: engine mode's seam. Alone, all of it is at hand.

A step's samples are those of one machine, in the same order. Each rank adds up the gradients of its part, each
sample weighing one over all samples of the step, and the sum over the ranks is the gradient that one machine would
have had, but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from lowmem_seq.data.parts import Part
from lowmem_seq.training.evaluation import Tally
from lowmem_seq.training.state import TrainingState
from lowmem_seq.training.workers import Range


class Ranks(Protocol):
    """The processes that compute each step together, as one of them sees them."""

    @property
    def is_first(self) -> bool:
        """Whether this one keeps the run: checkpoints and the final weights."""

    def part_of_step(self, ranges: Sequence[Range]) -> list[Range]:
        """Return what of a step's positions this rank computes."""

    def part_to_evaluate(self, part: Part) -> Part:
        """Return the images that this rank evaluates."""

    def begin_alike(self, state: TrainingState) -> None:
        """Take up the first rank's state."""

    def agree(self, loss: float | None, weights: Mapping[str, Tensor]) -> float | None:
        """Return the sum of all ranks' losses; None where one of them asks to stop, so that all do.

        Args:
            loss: of this rank's part; None: it asks to stop.
            weights: what the step is computed on; they are compared now and then.
        """

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put the sum of all ranks' gradients in the place of this one's."""

    def first_s(self, value: float) -> float:
        """Return the first rank's value: threads and processors round sums differently."""

    def total(self, tally: Tally | None) -> Tally | None:
        """Return what all ranks counted; None where one was stopped."""


class OneProcess:
    """All of a step is computed here."""

    is_first = True

    def part_of_step(self, ranges: Sequence[Range]) -> list[Range]:
        """All of it."""
        return list(ranges)

    def part_to_evaluate(self, part: Part) -> Part:
        """All of it."""
        return part

    def begin_alike(self, state: TrainingState) -> None:
        """Nobody else has one."""

    def agree(self, loss: float | None, weights: Mapping[str, Tensor]) -> float | None:  # noqa: ARG002
        """Nobody else is asked."""
        return loss

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """They are complete."""

    def first_s(self, value: float) -> float:
        """It is this one's."""
        return value

    def total(self, tally: Tally | None) -> Tally | None:
        """It is complete."""
        return tally
