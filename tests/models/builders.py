"""Small models and inputs that the tests of this folder share."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowmem_seq.compiled import library
from lowmem_seq.models import ImageClassifier, Noise, Sequencer2D, VanillaBiLSTM
from lowmem_seq.models.bilstm2d import LstmPath
from lowmem_seq.models.sequencer2d import Sequencer2DLayer, Stage

TINY: dict[str, Any] = {"layers": (1, 2), "widths": (8, 12), "lstm_widths": (2, 3), "patch_sizes": (4, 2)}
CLASSES = 5


def tiny_sequencer(**changes: Any) -> Sequencer2D:
    torch.manual_seed(0)
    return Sequencer2D(CLASSES, **{**TINY, **changes})


def tiny_vanilla(**changes: Any) -> VanillaBiLSTM:
    torch.manual_seed(0)
    sizes = {"layers": 2, "width": 8, "lstm_width": 6, "patch_size": 4}
    return VanillaBiLSTM(CLASSES, **{**sizes, **changes})


def tiny_sequencer_by(path: LstmPath) -> Sequencer2D:
    model = tiny_sequencer(embed_norm=True, final_pointwise=True, drop_path=0.2, dropout=0.3)
    model.lstm_path = path
    return model


CLASSIFIERS: dict[str, Callable[[], ImageClassifier]] = {
    "sequencer2d": lambda: tiny_sequencer(embed_norm=True, final_pointwise=True, drop_path=0.2, dropout=0.3),
    "sequencer2d by function": lambda: tiny_sequencer_by("function"),
    "vanilla": lambda: tiny_vanilla(dropout=0.3),
}
if library() is not None:
    CLASSIFIERS["sequencer2d natively"] = lambda: tiny_sequencer_by("native")


def stages_of(model: Sequencer2D) -> list[Stage]:
    return [stage for stage in model.stages if isinstance(stage, Stage)]


def layers_of(model: Sequencer2D) -> list[Sequencer2DLayer]:
    return [layer for layer in model.modules() if isinstance(layer, Sequencer2DLayer)]


def random_images(batch: int = 6, height: int = 16, width: int = 24) -> Tensor:
    return torch.randn(batch, height, width, 3, generator=torch.Generator().manual_seed(1))


def random_noise(model: ImageClassifier, batch: int) -> Noise:
    generator = torch.Generator().manual_seed(2)
    rates = torch.tensor(model.drop_path_rates)[:, None]
    path = (torch.rand(len(rates), batch, generator=generator) >= rates) / (1 - rates)
    kept = torch.rand(batch, model.feature_width, generator=generator) >= model.dropout
    return Noise(path if model.drop_path_rates else None, kept / (1 - model.dropout))


class Saved:
    """A tensor that autograd keeps for backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """What autograd keeps for backward, beside a module's weights: each piece of memory once."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
        self._holders: Counter[int] = Counter()
        self.now = self.peak = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda saved: saved.tensor):
            yield

    def _keep(self, tensor: Tensor) -> Saved:
        saved, memory = Saved(tensor), tensor.untyped_storage()
        if memory.data_ptr() not in self._weights:
            self._hold(memory.data_ptr(), memory.nbytes(), 1)
            weakref.finalize(saved, self._hold, memory.data_ptr(), memory.nbytes(), -1).atexit = False
        return saved

    def _hold(self, place: int, size: int, change: int) -> None:
        before = self._holders[place] > 0
        self._holders[place] += change
        self.now += size * (int(self._holders[place] > 0) - int(before))
        self.peak = max(self.peak, self.now)
