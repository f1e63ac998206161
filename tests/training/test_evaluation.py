from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from torch import Tensor

from lowmem_seq.models import ImageClassifier
from lowmem_seq.training.device import make_accelerator
from lowmem_seq.training.evaluation import Evaluation, evaluate

# One image is one pixel, and its three channels are the logits of three classes.
LOGITS = torch.tensor(
    [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [5.0, 0.0, 1.0], [0.0, 0.0, 2.0]]
)
LABELS = torch.tensor([0, 1, 0, 1, 0, 0])


def model_of_pixels(images: Tensor, noise: object) -> Tensor:
    assert noise is None
    assert not torch.is_grad_enabled()
    return images[:, 0, 0]  # (B, 3)


def evaluated(size: int) -> Evaluation:
    images = LOGITS[:, None, None]  # (6, 1, 1, 3)
    batches = [(images[start : start + size], LABELS[start : start + size]) for start in range(0, 6, size)]
    return evaluate(cast("ImageClassifier", model_of_pixels), batches, 3, make_accelerator("cpu", "fp32"))


def loss_of(logits: Tensor, label: int) -> float:
    values = [math.exp(value) for value in logits.tolist()]
    return -math.log(values[label] / sum(values))


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_the_figures_are_those_by_hand_however_the_images_come(size: int) -> None:
    result = evaluated(size)
    by_hand = [loss_of(logits, int(label)) for logits, label in zip(LOGITS, LABELS, strict=True)]
    assert result.loss == pytest.approx(sum(by_hand) / 6, rel=1e-6)
    assert result.accuracy == 3 / 6
    assert result.confusion == [[2, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert result.class_accuracies == [2 / 4, 1 / 2, None]
