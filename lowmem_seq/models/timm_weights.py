"""Weights between timm's sequencer2d_* models and ours.

The arithmetic is the same, so it is a matter of names, and of one layout: timm embeds and merges patches by a
convolution, whose weight is (out, channels, rows, columns), and here by a linear layer: (out, p*p*channels).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowmem_seq.config import ModelConfig, Sequencer2DConfig, load_preset, validate
from lowmem_seq.errors import UsageError
from lowmem_seq.models.patches import PatchLinear
from lowmem_seq.models.presets import ImageClassifier
from lowmem_seq.models.sequencer2d import Sequencer2D

_TIMM_NAMES = (
    (r"^stages\.0\.patches\.0\.linear\.", "stem.proj."),
    (r"^stages\.0\.patches\.1\.", "stem.norm."),
    (r"^stages\.(\d+)\.patches\.0\.linear\.", r"stages.\1.downsample.down."),
    (r"^stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.token_norm\.", ".norm1."),
    (r"\.bilstm2d\.vertical\.", ".rnn_tokens.rnn_v."),
    (r"\.bilstm2d\.horizontal\.", ".rnn_tokens.rnn_h."),
    (r"\.bilstm2d\.fc\.", ".rnn_tokens.fc."),
    (r"\.channel_norm\.", ".norm2."),
    (r"\.mlp\.expand\.", ".mlp_channels.fc1."),
    (r"\.mlp\.contract\.", ".mlp_channels.fc2."),
    (r"^head\.", "head.fc."),
)
_NAMES_SHOWN = 8
TIMM_ARCHITECTURES = ("sequencer2d_s", "sequencer2d_m", "sequencer2d_l")
"""They are presets of ours as well. Only the first lets its sizes be changed (timm 1.0)."""


def load_timm_state_dict(model: ImageClassifier, state_dict: Mapping[str, Tensor]) -> None:
    """Copy the weights of timm's Sequencer2d of the same sizes into `model`, all of them or none.

    Args:
        model: built with the same sizes and number of classes.
        state_dict: of timm's model, under timm's names.

    Raises:
        UsageError: a weight is missing, unexpected or of another shape, or timm has no such model.
    """
    _refuse_foreign(model)
    expected = to_timm_state_dict(model)
    problems = [f"missing: {name}" for name in expected if name not in state_dict]
    problems += [f"unexpected: {name}" for name in state_dict if name not in expected]
    problems += [
        f"{name}: {tuple(state_dict[name].shape)}, and the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state_dict and state_dict[name].shape != value.shape
    ]
    if problems:
        more = len(problems) - _NAMES_SHOWN
        shown = "\n".join(problems[:_NAMES_SHOWN]) + (f"\nand {more} more" if more > 0 else "")
        raise UsageError(
            f"these are not this model's weights.\n{shown}",
            "build the model with timm's sizes and classes: create_model('sequencer2d_s', num_classes=1000)",
        )
    ours = model.state_dict()
    with torch.no_grad():
        for name, value in from_timm_state_dict(model, state_dict).items():
            ours[name].copy_(value)


def is_timm_state_dict(names: Container[str]) -> bool:
    """Whether weights have timm's names and not ours."""
    return "stem.proj.weight" in names


def from_timm_state_dict(model: ImageClassifier, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return timm's weights under our names and in our shapes; a name that `model` has no counterpart of stays.

    Raises:
        UsageError: timm has no such model.
    """
    _refuse_foreign(model)
    sides, ours = _patch_sides(model), {_timm_name(name): name for name in model.state_dict()}
    named = ((ours.get(name, name), value) for name, value in state_dict.items())
    return {name: _linear_weight(value, sides.get(name) if value.ndim == 4 else None) for name, value in named}


def to_timm_state_dict(model: ImageClassifier) -> dict[str, Tensor]:
    """Return the weights under timm's names and in its shapes; most share memory with the model's.

    Raises:
        UsageError: timm has no such model.
    """
    _refuse_foreign(model)
    sides = _patch_sides(model)
    return {
        _timm_name(name): _convolution_weight(value, sides.get(name)) for name, value in model.state_dict().items()
    }


@dataclass(frozen=True)
class TimmModel:
    """How timm builds a model: `timm.create_model(architecture, **model_args)`."""

    architecture: str
    model_args: dict[str, Any]


def timm_model(settings: ModelConfig) -> TimmModel | None:
    """Return how timm builds the model of a config; None where it has none of its kind.

    Its names stand for the paper's sizes; other sizes are laid over the first of them, as it alone allows.
    """
    if not isinstance(settings, Sequencer2DConfig) or settings.final_pointwise:
        return None
    for name in TIMM_ARCHITECTURES:
        if _sizes(validate(load_preset(name)).model) == _sizes(settings):
            return TimmModel(name, {})
    return TimmModel(TIMM_ARCHITECTURES[0], _sizes(settings))


def _sizes(settings: ModelConfig) -> dict[str, Any]:
    """A model's sizes in the words of timm."""
    assert isinstance(settings, Sequencer2DConfig)
    return {
        "layers": list(settings.layers),
        "patch_sizes": list(settings.patch_sizes),
        "embed_dims": list(settings.widths),
        "hidden_sizes": list(settings.lstm_widths),
        "mlp_ratios": [float(settings.mlp_ratio)] * len(settings.layers),
        "stem_norm": settings.embed_norm,
    }


def _refuse_foreign(model: ImageClassifier) -> None:
    if not isinstance(model, Sequencer2D):
        raise UsageError("timm has no vanilla BiLSTM to exchange weights with.", "use a sequencer2d_* preset")
    if model.pointwise is not None:
        raise UsageError(
            "timm's Sequencer2d has no pointwise linear layer before the pooling.",
            "build the model with final_pointwise: false, as the sequencer2d_* presets are",
        )


def _timm_name(name: str) -> str:
    for pattern, replacement in _TIMM_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _patch_sides(model: ImageClassifier) -> dict[str, int]:
    """The patch size by the name of each weight that is a convolution in timm."""
    return {
        f"{name}.linear.weight": module.patch_size
        for name, module in model.named_modules()
        if isinstance(module, PatchLinear)
    }


def _convolution_weight(weight: Tensor, side: int | None) -> Tensor:
    """(out, p*p*C) -> (out, C, p, p); without a side, as it is."""
    if side is None:
        return weight
    return weight.reshape(len(weight), side, side, -1).permute(0, 3, 1, 2)  # (out, C, p, p)


def _linear_weight(weight: Tensor, side: int | None) -> Tensor:
    """(out, C, p, p) -> (out, p*p*C); without a side, as it is."""
    if side is None:
        return weight
    return weight.permute(0, 2, 3, 1).flatten(1)  # (out, p*p*C)
