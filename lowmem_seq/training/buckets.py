"""The sum of all ranks' gradients, by way of two small buffers: one is filled while the other one travels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowmem_seq.cluster.room import BUCKET_BYTES, FP32

Piece = tuple[int, int, int]
"""Which parameter, and its first number and the one after the last, as it lies in memory."""


class Buckets:
    """Sums gradients over a group.

    Args:
        group: None: the one of all ranks.
        device: where the sum is made.
        numbers: of one buffer.
    """

    def __init__(self, group: Any, device: torch.device, numbers: int = BUCKET_BYTES // FP32) -> None:
        self._group = group
        self._buffers = [torch.empty(numbers, device=device) for _ in range(2)]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Put the sum over all ranks in the place of each gradient; one that is missing counts as 0."""
        flat = [self._flat_gradient(parameter) for parameter in parameters]
        under_way: tuple[Any, list[Tensor], list[Tensor]] | None = None
        for number, pieces in enumerate(self.cut([len(one) for one in flat])):
            buffer = self._buffers[number % 2]
            own = [flat[which][start:end] for which, start, end in pieces]
            used = buffer[: sum(len(one) for one in own)]
            places = list(torch.split(used, [len(one) for one in own]))
            torch._foreach_copy_(places, own)
            work = dist.all_reduce(used, group=self._group, async_op=True)
            self._take_back(under_way)
            under_way = (work, own, places)
        self._take_back(under_way)
        if self._buffers[0].is_cuda:
            torch.cuda.synchronize()  # what is not done by then is noticed by whoever watches

    def _take_back(self, under_way: tuple[Any, list[Tensor], list[Tensor]] | None) -> None:
        if under_way is not None:
            work, own, places = under_way
            work.wait()
            torch._foreach_copy_(own, places)

    @staticmethod
    def _flat_gradient(parameter: Tensor) -> Tensor:
        """Return a view of a parameter's gradient, (N,)."""
        if parameter.grad is None:  # of a rank whose part of the step is empty
            parameter.grad = torch.zeros_like(parameter)
        elif not parameter.grad.is_contiguous():
            parameter.grad = parameter.grad.contiguous()
        return parameter.grad.view(-1)

    def cut(self, sizes: Sequence[int]) -> Iterator[list[Piece]]:
        """Yield what goes into one buffer after the other."""
        pieces: list[Piece] = []
        room = len(self._buffers[0])
        for which, size in enumerate(sizes):
            start = 0
            while start < size:
                end = min(size, start + room)
                pieces.append((which, start, end))
                room -= end - start
                start = end
                if room == 0:
                    yield pieces
                    pieces, room = [], len(self._buffers[0])
        if pieces:
            yield pieces
