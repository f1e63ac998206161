"""The masks of drop path and dropout, drawn by (seed, epoch, sample)."""

from __future__ import annotations

import torch
from torch import Tensor

from lowmem_seq.data.batches import Positions
from lowmem_seq.data.draws import Purpose, uniforms
from lowmem_seq.models import ImageClassifier, Noise


def _survivors(draws: Tensor, rates: Tensor) -> Tensor:
    """Return 0 where a draw falls under its rate, and 1 / (1 - rate) elsewhere."""
    return (draws >= rates).float() / (1 - rates)


def draw_noise(
    model: ImageClassifier, seed: int, epochs: Positions, samples: Positions, device: torch.device
) -> Noise:
    """Return the masks of one micro-batch.

    Args:
        model: tells the rates and widths.
        seed: the run's.
        epochs: (B,), the epoch of each sample.
        samples: (B,), the sample's number in the training part.
        device: where the masks are needed.
    """
    keep_path = keep_features = None
    rates = torch.tensor(model.drop_path_rates)  # (2 * layers,)
    if rates.any():
        draws = uniforms(seed, epochs, samples, Purpose.DROP_PATH, len(rates))  # (B, 2 * layers)
        keep_path = _survivors(torch.from_numpy(draws), rates).T.contiguous().to(device)  # (2 * layers, B)
    if model.dropout > 0:
        draws = uniforms(seed, epochs, samples, Purpose.DROPOUT, model.feature_width)  # (B, C)
        keep_features = _survivors(torch.from_numpy(draws), torch.tensor(model.dropout)).to(device)
    return Noise(keep_path=keep_path, keep_features=keep_features)
