"""How good a model is on a part: loss, accuracy, accuracy by class, confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from lowmem_seq.models import ImageClassifier


@dataclass(frozen=True)
class Evaluation:
    """The figures of one pass over a part.

    confusion[i][j] counts the images of class i that were taken for class j.
    """

    loss: float
    accuracy: float
    class_accuracies: list[float | None]
    confusion: list[list[int]]


@torch.no_grad()
def evaluate(
    model: ImageClassifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_count: int,
    accelerator: Accelerator,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Return the figures of `model` over all batches, or None if a stop was asked for on the way.

    Args:
        model: images (B, H, W, 3) -> logits (B, K).
        batches: pairs of images (B, H, W, 3) and labels (B,).
        class_count: K.
        accelerator: gives device and precision.
        stop_requested: asked before each batch.
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
        pairs = labels * class_count + logits.argmax(1)  # (B,)
        confusion += torch.bincount(pairs, minlength=class_count * class_count)
    confusion = confusion.view(class_count, class_count)  # (K, K)
    totals, right = confusion.sum(1), confusion.diagonal()
    images_total = int(totals.sum())
    return Evaluation(
        loss=loss / images_total,
        accuracy=int(right.sum()) / images_total,
        class_accuracies=[
            hits / total if total else None for hits, total in zip(right.tolist(), totals.tolist(), strict=True)
        ],
        confusion=confusion.tolist(),
    )
