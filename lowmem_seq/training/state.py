"""All that a training step changes, and how it is saved and taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowmem_seq.checkpoint.codec import copy_into, read_tensors, write_tensors
from lowmem_seq.checkpoint.store import Checkpoint
from lowmem_seq.config import RecipeConfig
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

    @property
    def mean_loss(self) -> float:
        """Mean training loss of an image since the last `train` event."""
        return self.loss_sum / max(1, self.loss_images)

    def count_step(self, mean_loss: float, images: int) -> None:
        """Count a complete step of so many images, whose mean loss was `mean_loss`."""
        self.step += 1
        self.loss_sum += mean_loss * images
        self.loss_images += images


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

    def _write_counters(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self.counters)), encoding="utf-8")

    def load(self, checkpoint: Checkpoint) -> None:
        """Take up a verified checkpoint.

        Raises:
            NoCheckpointError: it belongs to another model.
        """
        folder = checkpoint.path
        copy_into(self.parameters, read_tensors(folder / "model.safetensors"), "model")
        copy_into(self.optimizer.state(), read_tensors(folder / "optimizer.safetensors"), "optimizer")
        if self.average is not None:
            copy_into(self.average.values, read_tensors(folder / "average.safetensors"), "average")
        self.counters = Counters(**read_json(folder / "state.json"))

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
        "name": name,
        "classes": json.dumps(classes),
        **{key: json.dumps(value) for key, value in details.items()},
    }
