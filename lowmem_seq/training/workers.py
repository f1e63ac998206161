"""Micro-batches of one step computed side by side, each on a core of its own.

The operations of these models are small, and two threads within one operation bring little: 1.2 times for Small on
two cores, and far less than once where another program keeps a core busy (docs/log.md, 2026-11-22). A micro-batch a
core brings nearly the number of cores. Each worker has its own gradients, on weights that all share; they are added
up in the order of the workers, so that the same plan gives the same bits.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from lowmem_seq.data.batches import TrainingBatches
from lowmem_seq.models import ImageClassifier

if TYPE_CHECKING:
    from lowmem_seq.models.bilstm2d import LstmPath

Range = tuple[int, int]
"""Global positions: the first, and the one after the last."""


class Worker:
    """What one core computes with: the shared weights with gradients of its own, and its own buffers."""

    def __init__(self, model: ImageClassifier, batches: TrainingBatches) -> None:
        self.model, self.batches = model, batches

    @property
    def gradients(self) -> list[Tensor | None]:
        """The gradients that this worker has added up, in the order of the parameters."""
        return [parameter.grad for parameter in self.model.parameters()]


class Workers:
    """The workers of a session; the first one computes on the model itself."""

    def __init__(self, model: ImageClassifier, make_batches: Callable[[], TrainingBatches], count: int) -> None:
        self._model = model
        self._make_batches = make_batches
        self._workers = [Worker(model, make_batches())]
        self._pool: ThreadPoolExecutor | None = None
        self.set_count(count)

    @property
    def all(self) -> list[Worker]:
        """The workers, the one with the model itself first."""
        return list(self._workers)

    @property
    def count(self) -> int:
        """How many micro-batches are computed at once."""
        return len(self._workers)

    def set_count(self, count: int) -> None:
        """Change how many there are."""
        del self._workers[count:]
        while len(self._workers) < count:
            self._workers.append(Worker(_sharing_weights(self._model), self._make_batches()))
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="worker") if count > 1 else None

    def set_recomputed_layers(self, count: int) -> None:
        """Change how many layers, from the first, every worker computes a second time in backward."""
        for worker in self._workers:  # later ones copy the first
            worker.model.recomputed_layers = count

    def set_lstm_path(self, path: str) -> None:
        """Change how every worker computes LSTMs."""
        for worker in self._workers:
            worker.model.lstm_path = cast("LstmPath", path)  # which sees that it is one

    def run(
        self, ranges: Sequence[Range], compute: Callable[[Worker, Range], Tensor | None]
    ) -> list[Tensor] | None:
        """Compute all ranges, and leave the sum of their gradients on the model.

        Args:
            ranges: a worker takes every count-th of them, one after the other.
            compute: adds a range's gradients to its worker, and returns the loss (), or None to stop.

        Returns:
            The losses, worker by worker, or None if a worker stopped.
        """
        self.clear_gradients()

        failed = threading.Event()

        def compute_share(index: int) -> list[Tensor | None]:
            losses: list[Tensor | None] = []
            for one in ranges[index :: self.count]:
                if failed.is_set():  # where one ran out of memory the others must not go on
                    break
                try:
                    losses.append(compute(self._workers[index], one))
                except BaseException:
                    failed.set()
                    raise
                if losses[-1] is None:
                    break
            return losses

        if self._pool is None:
            shares = [compute_share(0)]
        else:
            futures = [self._pool.submit(compute_share, index) for index in range(self.count)]
            wait(futures)  # for all of them, also where one failed: who catches that finds nobody at work
            shares = [future.result() for future in futures]
        losses = [loss for share in shares for loss in share if loss is not None]
        if len(losses) < len(ranges):
            return None
        self._add_up()
        return losses

    def clear_gradients(self) -> None:
        """Drop every worker's gradients."""
        for worker in self._workers:
            for parameter in worker.model.parameters():
                parameter.grad = None

    def _add_up(self) -> None:
        """Add the other workers' gradients to the first one's, in their order."""
        total = self._workers[0].gradients
        for worker in self._workers[1:]:
            pairs = zip(total, worker.gradients, strict=True)
            both = [(left, right) for left, right in pairs if left is not None and right is not None]
            if both:  # a worker may have had nothing to do
                torch._foreach_add_(*map(list, zip(*both, strict=True)))
            for parameter in worker.model.parameters():
                parameter.grad = None


def _sharing_weights(model: ImageClassifier) -> ImageClassifier:
    """Return a copy of the model whose parameters lie in the same memory, with gradients of their own."""
    shared = {id(value): value for value in model.parameters()}
    memo: dict[int, object] = {key: torch.nn.Parameter(value.detach()) for key, value in shared.items()}
    return copy.deepcopy(model, memo)
