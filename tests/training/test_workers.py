from __future__ import annotations

import threading
import time
from functools import partial

import pytest
import torch
from torch import Tensor

from lowmem_seq.models import ImageClassifier, create_model
from lowmem_seq.training.workers import Range, Worker, Workers

IMAGES = torch.linspace(-2, 2, 12 * 32 * 32 * 3).view(12, 32, 32, 3)
RANGES = [(0, 3), (3, 6), (6, 9), (9, 12), (10, 12)]


def tiny() -> ImageClassifier:
    torch.manual_seed(0)
    return create_model("tiny", num_classes=3)


def compute(worker: Worker, positions: Range, precision: str = "fp32") -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = worker.model(IMAGES[slice(*positions)], None)
    loss: Tensor = logits.float().square().sum()
    torch.autograd.backward(loss)
    return loss.detach()


def workers_of(model: ImageClassifier, count: int) -> Workers:
    return Workers(model, lambda: None, count)  # type: ignore[arg-type,return-value]  # nothing is read


def gradients(model: ImageClassifier) -> list[Tensor]:
    found = [parameter.grad for parameter in model.parameters()]
    return [gradient.clone() for gradient in found if gradient is not None]


def run(count: int, recomputed_layers: int = 0, precision: str = "fp32") -> tuple[list[Tensor], list[Tensor]]:
    model = tiny()
    workers = workers_of(model, count)
    workers.set_recomputed_layers(recomputed_layers)
    losses = workers.run(RANGES, partial(compute, precision=precision))
    assert losses is not None
    return losses, gradients(model)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_several_workers_give_the_gradients_of_one(count: int) -> None:
    _, expected = run(1)
    _, got = run(count)
    assert len(got) == len(expected) > 0
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_several_workers_give_the_same_bits_every_time() -> None:
    _, expected = run(3)
    for _ in range(5):
        _, got = run(3)
        assert all(torch.equal(left, right) for left, right in zip(got, expected, strict=True))


def test_the_losses_of_all_ranges_come_back() -> None:
    one, three = run(1)[0], run(3)[0]
    assert len(one) == len(three) == len(RANGES)
    assert torch.stack(one).sum().item() == pytest.approx(torch.stack(three).sum().item(), rel=1e-5)


def test_all_workers_compute_on_the_same_weights() -> None:
    model = tiny()
    workers = workers_of(model, 2)
    before = workers.run(RANGES, compute)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    after = workers.run(RANGES, compute)
    assert before is not None
    assert after is not None
    assert all(float(loss) > 0 for loss in before)
    assert all(float(loss) == 0 for loss in after)


def test_micro_batches_are_computed_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=30)

    def meet(worker: Worker, positions: Range) -> Tensor:
        meeting.wait()  # ends only when both workers are here at once
        return compute(worker, positions)

    assert workers_of(tiny(), 2).run(RANGES[:2], meet) is not None


def test_a_worker_that_stops_stops_the_step() -> None:
    def stop_at_the_third(worker: Worker, positions: Range) -> Tensor | None:
        return None if positions == RANGES[2] else compute(worker, positions)

    assert workers_of(tiny(), 2).run(RANGES, stop_at_the_third) is None


def test_an_error_of_a_worker_reaches_the_caller() -> None:
    def fail(worker: Worker, positions: Range) -> Tensor:
        raise MemoryError(str(positions))

    with pytest.raises(MemoryError):
        workers_of(tiny(), 2).run(RANGES, fail)


def test_where_one_worker_fails_the_others_begin_nothing_more() -> None:
    failed, begun = threading.Event(), []

    def fail_first(worker: Worker, positions: Range) -> Tensor:
        begun.append(positions)
        if positions == RANGES[0]:
            failed.set()
            raise MemoryError
        assert failed.wait(10)
        time.sleep(0.2)
        return compute(worker, positions)

    with pytest.raises(MemoryError):
        workers_of(tiny(), 2).run(RANGES, fail_first)
    assert len(RANGES) > 3
    assert sorted(begun) == sorted(RANGES[: len(begun)])
    assert len(begun) <= 2


def test_gradients_start_anew_with_each_run_and_after_a_change_of_count() -> None:
    model = tiny()
    workers = workers_of(model, 3)
    workers.run(RANGES, compute)
    expected = gradients(model)
    workers.set_count(1)
    workers.run(RANGES, compute)
    workers.set_count(3)
    assert workers.count == 3
    workers.run(RANGES, compute)
    assert all(torch.equal(left, right) for left, right in zip(gradients(model), expected, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [1, 3])
def test_recomputed_layers_change_no_bit(count: int, precision: str) -> None:
    expected = run(count, 0, precision)
    for recomputed_layers in range(1, tiny().layer_count + 1):
        for _ in range(3):
            got = run(count, recomputed_layers, precision)
            for left, right in zip(got, expected, strict=True):
                assert len(left) == len(right) > 0
                assert all(map(torch.equal, left, right))


def test_all_workers_recompute_also_those_made_later() -> None:
    workers = workers_of(tiny(), 2)
    workers.set_recomputed_layers(1)
    workers.set_count(3)
    counts: list[int] = []

    def tell(worker: Worker, positions: Range) -> Tensor:
        counts.append(worker.model.recomputed_layers)
        return compute(worker, positions)

    workers.run(RANGES[:3], tell)
    workers.set_recomputed_layers(0)
    workers.run(RANGES[:3], tell)
    assert counts == [1, 1, 1, 0, 0, 0]
