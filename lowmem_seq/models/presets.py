"""Models by name. The presets in configs/ are the single source of their sizes."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import structs
from torch import nn

from lowmem_seq.config import ModelConfig, Sequencer2DConfig, load_preset, validate
from lowmem_seq.models.sequencer2d import Sequencer2D
from lowmem_seq.models.vanilla import VanillaBiLSTM

ImageClassifier: TypeAlias = Sequencer2D | VanillaBiLSTM
"""What a trainer needs: `model(images, noise)`, `drop_path_rates`, `dropout`, `feature_width`, `layer_count`,
`recomputed_layers`, `lstm_path` and what it can be, `lstm_paths`, nn.Module's own."""


def create_model(name: str, num_classes: int = 1000) -> ImageClassifier:
    """Return the model of a shipped preset, or of a YAML file, with fresh weights.

    Args:
        name: a preset such as "small" or "sequencer2d_s", or a path to a YAML file.
        num_classes: logits.

    Raises:
        UsageError: no such preset, or it isn't valid.
    """
    return build_model(validate(load_preset(name)).model, num_classes)


def build_model(model_config: ModelConfig, num_classes: int) -> ImageClassifier:
    """Return the model that a checked config describes, with fresh weights from torch's global generator."""
    sizes = structs.asdict(model_config)
    del sizes["architecture"]
    if isinstance(model_config, Sequencer2DConfig):
        return Sequencer2D(num_classes, **sizes)
    return VanillaBiLSTM(num_classes, **sizes)


def parameter_count(model: nn.Module) -> int:
    """The numbers that a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
