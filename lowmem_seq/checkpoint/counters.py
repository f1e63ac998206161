"""Where a run stands after a step, as state.json holds it; read without torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.files import read_json

COUNTERS = "state.json"
LARGEST_COUNT = 2**63
LARGEST_COUNTERS_BYTES = 10**4
"""JSON takes up to 25 times its length in memory when it is read."""


@dataclass
class Counters:
    """Where a run stands after its last complete step."""

    step: int = 0
    """How far the run is, in steps of its effective batch: those of all machines, where several work on it."""
    images: int = 0
    """That this machine trained on, since releases that count them."""
    loss_sum: float = 0.0
    """Sum over images of the training loss since the last `train` event."""
    loss_images: int = 0
    wall_seconds: float = 0.0
    """Time in the trainer over all sessions."""
    validated_step: int = 0
    """The step whose weights were last evaluated on the validation part; 0 before the first time."""
    val_loss: float | None = None
    val_accuracy: float | None = None
    best_val_accuracy: float | None = None

    @property
    def mean_loss(self) -> float:
        """Mean training loss of an image since the last `train` event."""
        return self.loss_sum / max(1, self.loss_images)

    def count_step(self, mean_loss: float, images: int, reached: int | None = None) -> None:
        """Count a complete step.

        Args:
            mean_loss: of its images.
            images: how many it had.
            reached: how far the run is now, where that is not just a step further.
        """
        self.step = self.step + 1 if reached is None else max(self.step, reached)
        self.images += images
        self.loss_sum += mean_loss * images
        self.loss_images += images

    def count_validation(self, loss: float, accuracy: float) -> bool:
        """Note an evaluation after the present step; return whether it is the best so far."""
        self.validated_step, self.val_loss, self.val_accuracy = self.step, loss, accuracy
        if self.best_val_accuracy is not None and accuracy <= self.best_val_accuracy:
            return False
        self.best_val_accuracy = accuracy
        return True

    @property
    def metrics(self) -> dict[str, float | int | None]:
        """What was measured of the present weights; None where it wasn't."""
        measured = self.validated_step == self.step
        return {
            "val_loss": self.val_loss if measured else None,
            "val_accuracy": self.val_accuracy if measured else None,
        }


def read_counters(checkpoint: Checkpoint) -> Counters:
    """Return the counters that state.json holds; one that an older release didn't have is as at the start.

    Raises:
        NoCheckpointError: it holds none, or those of another step.
    """
    defaults = asdict(Counters())
    try:
        value = read_json(checkpoint.path / COUNTERS, LARGEST_COUNTERS_BYTES)
    except (OSError, ValueError):
        value = None
    if (
        not isinstance(value, dict)
        or not value.keys() <= defaults.keys()
        or not all(_is_like(one, defaults[name]) for name, one in value.items())
        or value.get("step") != checkpoint.step
    ):
        raise NoCheckpointError(
            f"{checkpoint.path / COUNTERS} holds no counters of step {checkpoint.step}.",
            "lowmem-seq verify RUN_DIR   says which checkpoints are good",
        )
    return Counters(**value)


def _is_like(value: object, default: float | None) -> bool:
    """Whether a counter may have this value: finite, whole where it counts, None where it may be unknown."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value is default
    if isinstance(value, int):
        return abs(value) < LARGEST_COUNT
    return math.isfinite(value) and not isinstance(default, int)
