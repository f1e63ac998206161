"""How good a model is on a part: loss, accuracy, accuracy by class, confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from lowmem_seq.models import ImageClassifier

Observer: TypeAlias = Callable[[Tensor, Tensor], None]
"""Hears the logits (B, K) and the labels (B,) of each batch."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one pass over a part.

    confusion[i][j] counts the images of class i that were taken for class j.
    """

    loss: float
    accuracy: float
    class_accuracies: list[float | None]
    confusion: list[list[int]]


@dataclass(frozen=True)
class Tally:
    """What is counted over images; those of several parts can be added up."""

    loss: float
    """Summed over images."""
    confusion: Tensor
    """(K, K)"""

    def figures(self) -> Evaluation:
        """Return the means."""
        totals, right = self.confusion.sum(1), self.confusion.diagonal()
        images = int(totals.sum())
        return Evaluation(
            loss=self.loss / images,
            accuracy=int(right.sum()) / images,
            class_accuracies=[
                hits / total if total else None for hits, total in zip(right.tolist(), totals.tolist(), strict=True)
            ],
            confusion=self.confusion.tolist(),
        )

    def as_vector(self) -> Tensor:
        """Return it as numbers that can be summed: (1 + K * K,), float64."""
        return torch.cat([torch.tensor([self.loss], dtype=torch.float64), self.confusion.double().view(-1)])

    @classmethod
    def from_vector(cls, vector: Tensor) -> Tally:
        """Return what `as_vector` made such numbers of."""
        classes = math.isqrt(len(vector) - 1)
        return cls(float(vector[0]), vector[1:].long().view(classes, classes))


def evaluate(
    model: ImageClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_count: int,
    accelerator: Accelerator,
    stop_requested: Callable[[], bool] = lambda: False,
    observe: Observer | None = None,
) -> Evaluation | None:
    """Return the figures of `model` over all batches, or None if a stop was asked for on the way.

    Arguments as of `count`.
    """
    tally = count(model, batches, class_count, accelerator, stop_requested, observe)
    return None if tally is None else tally.figures()


@torch.no_grad()
def count(
    model: ImageClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_count: int,
    accelerator: Accelerator,
    stop_requested: Callable[[], bool] = lambda: False,
    observe: Observer | None = None,
) -> Tally | None:
    """Return what is counted over all batches, or None if a stop was asked for on the way.

    Args:
        model: images (B, H, W, 3) -> logits (B, K).
        batches: pairs of images (B, H, W, 3) and labels (B,).
        class_count: K.
        accelerator: gives device and precision.
        stop_requested: asked before each batch.
        observe: is told what the model says of each batch.
    """
    loss = 0.0
    confusion = torch.zeros(class_count * class_count, dtype=torch.int64)
    for images, labels in batches:
        if stop_requested():
            return None
        with accelerator.autocast():
            logits = model(images.to(accelerator.device), None)  # (B, K)
        logits = logits.float().cpu()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        if observe is not None:
            observe(logits, labels)
        pairs = labels * class_count + logits.argmax(1)  # (B,)
        confusion += torch.bincount(pairs, minlength=class_count * class_count)
    return Tally(loss, confusion.view(class_count, class_count))
