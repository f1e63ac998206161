from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
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


def batches_of(size: int) -> list[tuple[Tensor, Tensor]]:
    images = LOGITS[:, None, None]  # (6, 1, 1, 3)
    return [(images[start : start + size], LABELS[start : start + size]) for start in range(0, 6, size)]


def evaluated(
    batches: Iterable[tuple[Tensor, Tensor]], stop_requested: Callable[[], bool] = lambda: False
) -> Evaluation | None:
    model = cast("ImageClassifier", model_of_pixels)
    return evaluate(model, batches, 3, make_accelerator("cpu", "fp32"), stop_requested)


def loss_of(logits: Tensor, label: int) -> float:
    values = [math.exp(value) for value in logits.tolist()]
    return -math.log(values[label] / sum(values))


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_the_figures_are_those_by_hand_however_the_images_come(size: int) -> None:
    result = evaluated(batches_of(size))
    assert result is not None
    by_hand = [loss_of(logits, int(label)) for logits, label in zip(LOGITS, LABELS, strict=True)]
    assert result.loss == pytest.approx(sum(by_hand) / 6, rel=1e-6)
    assert result.accuracy == 3 / 6
    assert result.confusion == [[2, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert result.class_accuracies == [2 / 4, 1 / 2, None]


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_stop_is_heard_before_each_batch_and_gives_no_figures(done: int) -> None:
    read = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal read
        for batch in batches_of(2):
            read += 1
            yield batch

    asked: list[bool] = []

    def stop_requested() -> bool:
        asked.append(len(asked) == done)
        return asked[-1]

    assert evaluated(batches(), stop_requested) is None
    assert (len(asked), read) == (done + 1, done + 1)


def test_a_stop_that_comes_after_the_last_batch_loses_nothing() -> None:
    asked: list[bool] = []

    def stop_requested() -> bool:
        asked.append(len(asked) == 3)
        return asked[-1]

    assert evaluated(batches_of(2), stop_requested) == evaluated(batches_of(2))
    assert asked == [False] * 3
