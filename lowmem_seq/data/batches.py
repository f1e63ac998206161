"""Batches of a part: read by position, augmented by the draws of their samples, ready for a model.

A sample's partner for mixup and cutmix is its neighbour in the global order (position XOR 1), so that an even
micro-batch holds both, and no cut of the batch changes who is mixed with whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lowmem_seq.config import AugmentationConfig
from lowmem_seq.data.augmentation import AUGMENTATION_DRAWS, MIXING_DRAWS, augment, mix, normalise
from lowmem_seq.data.draws import Purpose, uniforms
from lowmem_seq.data.order import SampleOrder
from lowmem_seq.data.parts import Part

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """What a model trains on.

    images: (B, H, W, 3), float32, normalised and augmented.
    targets: (B, K), probabilities.
    epochs, samples: (B,), what the draws of each sample are keyed by.
    """

    images: Tensor
    targets: Tensor
    epochs: Positions
    samples: Positions


class TrainingBatches:
    """Any range of the global order of a part, augmented."""

    def __init__(
        self,
        part: Part,
        class_count: int,
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
        seed: int,
        augmentation: AugmentationConfig,
        label_smoothing: float,
    ) -> None:
        self._part = part
        self._order = SampleOrder(part.size, seed)
        self._seed = seed
        self._augmentation = augmentation
        self._mean, self._deviation = torch.tensor(mean), torch.tensor(deviation)
        smooth = torch.eye(class_count) * (1 - label_smoothing) + label_smoothing / class_count
        self._target_rows = smooth  # (K, K)
        self._buffer: npt.NDArray[np.uint8] | None = None

    def read(self, start: int, stop: int, mixing: bool) -> Batch:
        """Return the samples at the global positions `start` to `stop` - 1.

        Args:
            start: first position.
            stop: the position after the last one.
            mixing: whether mixup and cutmix are on.
        """
        mixing = mixing and self._augmentation.mixup + self._augmentation.cutmix > 0
        first, last = (start & ~1, stop + (stop & 1)) if mixing else (start, stop)
        epochs, samples = self._order.at(np.arange(first, last, dtype=np.int64))
        images = normalise(self._read_bytes(samples), self._mean, self._deviation)
        draws = self._draws(epochs, samples, Purpose.AUGMENTATION, AUGMENTATION_DRAWS)
        images = augment(images, draws, self._augmentation)
        targets = self._target_rows[torch.from_numpy(self._part.labels[samples].astype(np.int64))]  # (B, K)
        if mixing:
            partners = torch.arange(len(samples)) ^ 1
            mixing_draws = self._draws(epochs, samples, Purpose.MIXING, MIXING_DRAWS)
            images, targets = mix(images, targets, partners, mixing_draws, self._augmentation)
        asked = slice(start - first, stop - first)
        return Batch(images[asked], targets[asked], epochs[asked], samples[asked])

    def _draws(self, epochs: Positions, samples: Positions, purpose: Purpose, count: int) -> Tensor:
        return torch.from_numpy(uniforms(self._seed, epochs, samples, purpose, count))

    def _read_bytes(self, samples: Positions) -> Tensor:
        if self._buffer is None or len(self._buffer) < len(samples):
            self._buffer = self._part.read(samples)
            return torch.from_numpy(self._buffer)
        return torch.from_numpy(self._part.read(samples, out=self._buffer[: len(samples)]))


def evaluation_batches(
    part: Part, mean: tuple[float, ...], deviation: tuple[float, ...], sizes: Iterable[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images of a part, (B, H, W, 3) normalised, with their labels (B,).

    Args:
        part: the images.
        mean: of each channel.
        deviation: of each channel.
        sizes: how many come at a time; asked for before each batch, and never at its end.
    """
    centre, spread = torch.tensor(mean), torch.tensor(deviation)
    start, coming = 0, iter(sizes)
    while start < part.size:
        stop = min(start + next(coming), part.size)
        images = normalise(torch.from_numpy(part.read(np.arange(start, stop))), centre, spread)
        yield images, torch.from_numpy(part.labels[start:stop].astype(np.int64))
        start = stop
