"""All that a training step changes, and how it is saved and taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowmem_seq.checkpoint.codec import read_tensors_into, write_tensors
from lowmem_seq.checkpoint.store import LARGEST_COUNTERS_BYTES, Checkpoint
from lowmem_seq.config import RecipeConfig
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.files import read_json
from lowmem_seq.models import ImageClassifier
from lowmem_seq.training.optimizer import AdamW, RunningAverage


@dataclass
class Counters:
    """Where a run stands after its last complete step."""

    step: int = 0
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

    def count_step(self, mean_loss: float, images: int) -> None:
        """Count a complete step of so many images, whose mean loss was `mean_loss`."""
        self.step += 1
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


class TrainingState:
    """Weights, optimizer, running average and counters of one run."""

    def __init__(self, model: ImageClassifier, recipe: RecipeConfig) -> None:
        self.model = model
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.optimizer = AdamW(self.parameters, recipe.weight_decay, recipe.beta1, recipe.beta2)
        self.average = RunningAverage(self.parameters, recipe.ema_decay) if recipe.ema_decay > 0 else None
        self.counters = Counters()

    def writers(self) -> dict[str, Callable[[Path], None]]:
        """Return, for each file of a checkpoint, what writes it."""
        tensors = {"model": self.parameters, "optimizer": self.optimizer.state()}
        if self.average is not None:
            tensors["average"] = self.average.values
        files: dict[str, Callable[[Path], None]] = {
            f"{name}.safetensors": _tensor_writer(values) for name, values in tensors.items()
        }
        files["state.json"] = self._write_counters
        return files

    @property
    def saved_bytes(self) -> int:
        """What a checkpoint takes on the disk, but for headers and counters."""
        average = self.average.values if self.average is not None else {}
        tensors = (*self.parameters.values(), *self.optimizer.state().values(), *average.values())
        return sum(tensor.nbytes for tensor in tensors)

    def _write_counters(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self.counters)), encoding="utf-8")

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up a verified checkpoint.

        Raises:
            NoCheckpointError: it belongs to another model, or its counters are none.
        """
        folder = checkpoint.path
        read_tensors_into(self.parameters, folder / "model.safetensors", "model")
        read_tensors_into(self.optimizer.state(), folder / "optimizer.safetensors", "optimizer")
        if self.average is not None:
            read_tensors_into(self.average.values, folder / "average.safetensors", "average")
        self.counters = _read_counters(checkpoint)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[ImageClassifier]:
        """Give the model with its running average as weights, if it has one; nothing is copied."""
        self._swap()
        try:
            yield self.model
        finally:
            self._swap()

    def _swap(self) -> None:
        if self.average is not None:
            for name, parameter in self.parameters.items():
                parameter.data, self.average.values[name] = self.average.values[name], parameter.data


def _read_counters(checkpoint: Checkpoint) -> Counters:
    """Return the counters that state.json holds; one that an older release didn't have is as at the start."""
    defaults = asdict(Counters())
    try:
        value = read_json(checkpoint.path / "state.json", LARGEST_COUNTERS_BYTES)
    except (OSError, ValueError):
        value = None
    if (
        not isinstance(value, dict)
        or not value.keys() <= defaults.keys()
        or not all(_is_like(one, defaults[name]) for name, one in value.items())
        or value.get("step") != checkpoint.step
    ):
        raise NoCheckpointError(f"{checkpoint.path / 'state.json'} holds no counters of step {checkpoint.step}.")
    return Counters(**value)


def _is_like(value: object, default: float | None) -> bool:
    """Whether a counter may have this value: finite, whole where it counts, None where it may be unknown."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value is default
    return math.isfinite(value) and (isinstance(value, int) or not isinstance(default, int))


def _tensor_writer(tensors: Mapping[str, Tensor]) -> Callable[[Path], None]:
    return lambda path: write_tensors(path, tensors)


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and bytes of tensors, in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def final_metadata(name: str, classes: tuple[str, ...], details: Mapping[str, Any]) -> dict[str, str]:
    """Return the header of the final weights: what is needed to use them without the run folder."""
    return {
        "format": "lowmem-seq",
        "format_version": "1",
        "name": name,
        "classes": json.dumps(classes),
        **{key: json.dumps(value) for key, value in details.items()},
    }
