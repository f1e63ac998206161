from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowmem_seq.training.buckets import Buckets

CPU = torch.device("cpu")


class Doubling:
    """A collective by which two equal ranks sum; it is not done before it is waited for."""

    def __init__(self, value: Tensor, **_: Any) -> None:
        self.value = value

    def wait(self) -> None:
        self.value *= 2


@pytest.fixture
def two_ranks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.all_reduce", Doubling)
        yield


@given(st.lists(st.integers(0, 40), max_size=9), st.integers(1, 17))
def test_every_number_is_in_one_bucket_and_none_is_too_large(sizes: list[int], numbers: int) -> None:
    buckets = list(Buckets(None, CPU, numbers).cut(sizes))
    pieces = [piece for bucket in buckets for piece in bucket]
    together = [(which, place) for which, start, end in pieces for place in range(start, end)]
    assert together == [(which, place) for which, size in enumerate(sizes) for place in range(size)]
    counts = [sum(end - start for _, start, end in bucket) for bucket in buckets]
    assert all(count == numbers for count in counts[:-1])
    assert not counts or 0 < counts[-1] <= numbers


@pytest.mark.parametrize("numbers", [1, 3, 7, 100])
@pytest.mark.usefixtures("two_ranks")
def test_gradients_of_all_shapes_are_summed_in_their_places(numbers: int) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2), (1,))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    parameters[0].grad = torch.randn(4, 3).T  # not contiguous
    parameters[3].grad = None
    wanted = [None if one.grad is None else 2 * one.grad for one in parameters]
    Buckets(None, CPU, numbers).sum_gradients(parameters)
    for parameter, sum_ in zip(parameters, wanted, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros(1) if sum_ is None else sum_)
