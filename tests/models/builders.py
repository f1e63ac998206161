"""Small models and inputs that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lowmem_seq.models import ImageClassifier, Noise, Sequencer2D, VanillaBiLSTM
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


CLASSIFIERS: dict[str, Callable[[], ImageClassifier]] = {
    "sequencer2d": lambda: tiny_sequencer(embed_norm=True, final_pointwise=True, drop_path=0.2, dropout=0.3),
    "vanilla": lambda: tiny_vanilla(dropout=0.3),
}


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
