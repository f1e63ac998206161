from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowmem_seq.models import linear
from lowmem_seq.models.linear import Linear
from lowmem_seq.models.products import onednn_linear

needs_onednn = pytest.mark.skipif(onednn_linear() is None, reason="this torch has no oneDNN")


@pytest.fixture(name="calls", autouse=True)
def _calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A machine whose processor is AMD's, and the shapes of what oneDNN was asked to multiply."""
    made: list[tuple[int, ...]] = []
    multiplied = linear._multiplied

    def counted(x: Tensor, *others: Tensor) -> Tensor:
        made.append(tuple(x.shape))
        return multiplied(x, *others)

    monkeypatch.setattr(linear, "_multiplied", counted)
    monkeypatch.setattr(linear, "_is_of_amd", lambda: True)
    return made


def layer(dtype: torch.dtype = torch.float32) -> Linear:
    torch.manual_seed(0)
    return Linear(24, 40).to(dtype)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def step(module: nn.Linear, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = module(x)
    loss_of = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], loss_of)]


@needs_onednn
@pytest.mark.parametrize("shape", [(128, 24), (9, 5, 3, 24), (700, 24), (8, 16, 24)], ids=str)
def test_results_and_gradients_are_those_of_torch(calls: list[tuple[int, ...]], shape: tuple[int, ...]) -> None:
    module, x = layer(), tokens(*shape)
    truth = step(layer(torch.float64), x.double())
    assert calls == []
    for found, expected in zip(step(module, x), truth, strict=True):
        assert found.dtype == torch.float32
        assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert calls == [shape, (*shape[:-1], 40)]


@needs_onednn
def test_memory_may_lie_in_any_order(calls: list[tuple[int, ...]]) -> None:
    module, x = layer(), tokens(16, 10, 24)
    strange = torch.empty(24, 10, 16).permute(2, 1, 0).copy_(x)
    for found, expected in zip(step(module, strange), step(module, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    x.requires_grad_()
    (spread,) = torch.autograd.grad(module(x).sum(), x)
    torch.testing.assert_close(spread, module.weight.sum(0).expand_as(x), rtol=1e-5, atol=1e-5)
    assert len(calls) == 6


@needs_onednn
@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias")])
def test_what_is_frozen_gets_no_gradient(frozen: tuple[str, ...]) -> None:
    module, x = layer(), tokens(200, 24).requires_grad_()
    for name in frozen:
        getattr(module, name).requires_grad_(False)
    torch.autograd.backward(module(x).sum())
    assert x.grad is not None
    for name, weight in module.named_parameters():
        assert (weight.grad is None) == (name in frozen)


@needs_onednn
def test_evaluation_gives_the_bits_of_training() -> None:
    module, x = layer(), tokens(200, 24)
    expected = step(module, x)[0]
    with torch.no_grad():
        assert torch.equal(module(x), expected)
    with torch.inference_mode():
        assert torch.equal(module(x), expected)


def under_autocast(module: Linear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y: Tensor = module(x)
    return y


def without_onednn(module: Linear, x: Tensor) -> Tensor:
    enabled, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False  # type: ignore[assignment]
    try:
        y: Tensor = module(x)
    finally:
        torch.backends.mkldnn.enabled = enabled
    return y


def as_fake(module: Linear, _x: Tensor) -> Tensor:
    with FakeTensorMode():
        y: Tensor = Linear(24, 40)(torch.empty(200, 24))
    assert module is not None
    return y


@pytest.mark.parametrize(
    "compute",
    [
        lambda module, x: module(x[:127]),
        lambda module, x: module.double()(x.double()),
        lambda module, x: module.bfloat16()(x.bfloat16()),
        lambda module, x: module.to("meta")(x.to("meta")),
        under_autocast,
        without_onednn,
        as_fake,
    ],
    ids=["few rows", "64 bits", "16 bits", "another device", "autocast", "without oneDNN", "no numbers"],
)
def test_all_else_is_torchs(calls: list[tuple[int, ...]], compute: Callable[[Linear, Tensor], Tensor]) -> None:
    assert compute(layer(), tokens(200, 24)).shape[-1] == 40
    assert calls == []


def test_on_other_processors_it_is_torchs(calls: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_is_of_amd", lambda: False)
    module, x = layer(), tokens(200, 24)
    assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))
    assert calls == []


@pytest.mark.parametrize(
    ("name", "is_of_amd"),
    [
        ("AMD EPYC", True),
        ("AMD Ryzen 5 5500U with Radeon Graphics", True),
        ("AMD64 Family 23 Model 104 Stepping 1, AuthenticAMD", True),
        ("Intel64 Family 6 Model 140 Stepping 1, GenuineIntel", False),
        ("11th Gen Intel(R) Core(TM) i5-1135G7 @ 2.40GHz", False),
        ("arm", False),
        ("", False),
    ],
)
def test_who_made_the_processor_is_known(monkeypatch: pytest.MonkeyPatch, name: str, is_of_amd: bool) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(linear, "processor_name", lambda: name)
    linear._is_of_amd.cache_clear()
    assert linear._is_of_amd() == is_of_amd
    linear._is_of_amd.cache_clear()


@needs_onednn
def test_second_derivatives_are_refused() -> None:
    module, x = layer(), tokens(200, 24).requires_grad_()
    (first,) = torch.autograd.grad(module(x).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(first.sum())
