"""The random draws of a forward pass, handed in from outside.

The models draw nothing themselves, so that what a sample meets depends on the run's seed, the epoch and the sample
alone, and neither on the micro-batch nor on a generator's state. Without noise a forward pass is an evaluation;
train() and eval() make no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowmem_seq.errors import UsageError


@dataclass(frozen=True, eq=False)
class Noise:
    """Which branches and features of which samples survive, scaled so that their mean stays.

    Every value is 0 or 1 / (1 - p), where p is the probability of a drop. A field is None where p is 0 everywhere.
    """

    keep_path: Tensor | None = None
    """(2 * layers, B): stochastic depth (arXiv 1603.09382); a layer's token branch, then its channel branch."""
    keep_features: Tensor | None = None
    """(B, feature_width): dropout of the pooled features, before the head."""


def check_noise(noise: Noise, branches: int, batch: int, feature_width: int) -> None:
    """Refuse noise that was drawn for another model or batch.

    Raises:
        UsageError: a field has another shape than the model's.
    """
    fields = {"keep_path": (branches, batch), "keep_features": (batch, feature_width)}
    for name, expected in fields.items():
        value: Tensor | None = getattr(noise, name)
        if value is not None and tuple(value.shape) != expected:
            raise UsageError(
                f"noise.{name} has the shape {tuple(value.shape)}, and this model and batch need {expected}.",
                "draw the noise from the model's drop_path_rates, dropout and feature_width",
            )


def keep_branch(x: Tensor, branch: Tensor, keep: Tensor | None) -> Tensor:
    """Add a residual branch, with each sample's branch scaled by what it keeps.

    Shapes:
        x, branch: (B, H, W, C); keep: (B,) or None -> (B, H, W, C)
    """
    if keep is None:
        return x + branch
    return x + branch * keep.to(x.dtype)[:, None, None, None]


def keep_features(features: Tensor, noise: Noise | None) -> Tensor:
    """Drop features of the pooled samples.

    Shapes:
        features: (B, C) -> (B, C)
    """
    if noise is None or noise.keep_features is None:
        return features
    return features * noise.keep_features.to(features.dtype)
