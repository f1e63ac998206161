"""All that a training step changes, and how it is saved and taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowmem_seq.checkpoint.codec import read_tensors_into, write_tensors
from lowmem_seq.checkpoint.counters import COUNTERS, read_counters
from lowmem_seq.checkpoint.counters import Counters as Counters
from lowmem_seq.checkpoint.manifest import Checkpoint
from lowmem_seq.config import RecipeConfig
from lowmem_seq.models import ImageClassifier
from lowmem_seq.training.optimizer import AdamW, RunningAverage


class TrainingState:
    """Weights, optimizer, running average and counters of one run."""

    def __init__(self, model: ImageClassifier, recipe: RecipeConfig) -> None:
        self.model = model
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.optimizer = AdamW(self.parameters, recipe.weight_decay, recipe.beta1, recipe.beta2)
        self.average = RunningAverage(self.parameters, recipe.ema_decay) if recipe.ema_decay > 0 else None
        self.counters = Counters()
        self.is_whole = True
        """Whether weights, optimizer, average and counters are all of the same step."""

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Change them together; a block that fails leaves a state that is not to be saved."""
        self.is_whole = False
        yield
        self.is_whole = True

    def writers(self) -> dict[str, Callable[[Path], None]]:
        """Return, for each file of a checkpoint, what writes it."""
        tensors = {"model": self.parameters, "optimizer": self.optimizer.state()}
        if self.average is not None:
            tensors["average"] = self.average.values
        files: dict[str, Callable[[Path], None]] = {
            f"{name}.safetensors": _tensor_writer(values) for name, values in tensors.items()
        }
        files[COUNTERS] = self._write_counters
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
        self.counters = read_counters(checkpoint)

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
        "format_version": "1",
        "name": name,
        "classes": json.dumps(classes),
        **{key: json.dumps(value) for key, value in details.items()},
    }
