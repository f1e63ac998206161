from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowmem_seq.training.optimizer import AdamW, RunningAverage

SHAPES = {"embed.weight": (4, 3, 2), "norm.weight": (5,), "head.weight": (3, 5), "head.bias": (3,), "scale": ()}
STEPS = 20


def parameters(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def set_gradients(values: Mapping[str, Tensor], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for value in values.values():
        value.grad = torch.randn(value.shape, generator=generator) * scale


def rate_of(step: int) -> float:
    return 0.01 * (1 + step % 5)


def assert_equal(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(got[name], value), name


def test_it_steps_as_torch_s_own_adamw_with_no_decay_of_vectors() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours, weight_decay=0.3, beta1=0.8, beta2=0.95)
    matrices = [value for value in theirs.values() if value.ndim > 1]
    vectors = [value for value in theirs.values() if value.ndim <= 1]
    oracle = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.8, 0.95),
        eps=1e-8,
        fused=False,
        foreach=False,
    )
    for step in range(STEPS):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for group in oracle.param_groups:
            group["lr"] = rate_of(step)
        optimizer.step(rate_of(step))
        oracle.step()
        for name in SHAPES:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-6)
    state = optimizer.state()
    for name, value in theirs.items():
        torch.testing.assert_close(state[f"mean.{name}"], oracle.state[value]["exp_avg"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(state[f"square.{name}"], oracle.state[value]["exp_avg_sq"], atol=1e-6, rtol=1e-6)
        assert state[f"steps.{name}"] == STEPS


def test_only_matrices_decay() -> None:
    values = parameters()
    before = {name: value.detach().clone() for name, value in values.items()}
    for value in values.values():
        value.grad = torch.zeros_like(value)
    AdamW(values, weight_decay=0.5, beta1=0.9, beta2=0.999).step(0.1)
    for name, value in values.items():
        factor = 0.95 if value.ndim > 1 else 1.0
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_its_state_is_there_from_the_start_and_stays_in_its_place() -> None:
    values = parameters()
    optimizer = AdamW(values, 0.1, 0.9, 0.999)
    state = optimizer.state()
    assert state.keys() == {f"{kind}.{name}" for kind in ("mean", "square", "steps") for name in SHAPES}
    assert not any(value.any() for value in state.values())
    places = {name: value.data_ptr() for name, value in state.items()}
    set_gradients(values, 0)
    optimizer.step(0.1)
    assert {name: value.data_ptr() for name, value in optimizer.state().items()} == places
    assert all(state[f"mean.{name}"].any() for name in SHAPES)


def test_what_follows_depends_only_on_weights_and_state() -> None:
    whole = parameters()
    optimizer = AdamW(whole, 0.1, 0.9, 0.99)
    for step in range(STEPS):
        if step == 7:
            again = {name: torch.nn.Parameter(value.detach().clone()) for name, value in whole.items()}
            second = AdamW(again, 0.1, 0.9, 0.99)
            for name, value in second.state().items():
                value.copy_(optimizer.state()[name])
        set_gradients(whole, step)
        optimizer.step(rate_of(step))
        if step >= 7:
            set_gradients(again, step)
            second.step(rate_of(step))
    assert_equal(again, whole)
    assert_equal(second.state(), optimizer.state())


@given(st.floats(0.01, 100), st.floats(0, 10))
def test_gradients_are_clipped_as_torch_clips_them(largest: float, scale: float) -> None:
    ours, theirs = parameters(), parameters()
    set_gradients(ours, 0, scale)
    set_gradients(theirs, 0, scale)
    norm = AdamW(ours, 0.1, 0.9, 0.99).clip_gradients(largest)
    expected = torch.nn.utils.clip_grad_norm_(theirs.values(), largest)
    assert norm == pytest.approx(float(expected), rel=1e-5)
    for name in SHAPES:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, atol=1e-7, rtol=1e-5)


def test_gradients_are_listed_in_order_and_cleared() -> None:
    values = parameters()
    optimizer = AdamW(values, 0.1, 0.9, 0.99)
    assert optimizer.gradients() == []
    set_gradients(values, 0)
    assert [gradient.data_ptr() for gradient in optimizer.gradients()] == [
        value.grad.data_ptr() for value in values.values() if value.grad is not None
    ]
    optimizer.clear_gradients()
    assert all(value.grad is None for value in values.values())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_follows_the_weights_faster_at_first(decay: float) -> None:
    values = parameters()
    average = RunningAverage(values, decay)
    expected = {name: value.detach().double() for name, value in values.items()}
    assert_equal(average.values, {name: value.detach() for name, value in values.items()})
    for step in range(STEPS):
        with torch.no_grad():
            for value in values.values():
                value.add_(0.1)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = {
            name: kept * old + (1 - kept) * values[name].detach().double() for name, old in expected.items()
        }
    for name, wanted in expected.items():
        torch.testing.assert_close(average.values[name].double(), wanted, atol=1e-5, rtol=1e-5)
        assert not average.values[name].requires_grad


def test_the_average_shares_no_memory_with_the_weights() -> None:
    values = parameters()
    average = RunningAverage(values, 0.9)
    assert all(average.values[name].data_ptr() != value.data_ptr() for name, value in values.items())
