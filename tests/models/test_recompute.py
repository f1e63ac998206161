from __future__ import annotations

import copy
from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lowmem_seq.models import ImageClassifier, Noise
from lowmem_seq.models.recompute import recomputed
from lowmem_seq.models.sequencer2d import Sequencer2DLayer
from lowmem_seq.models.vanilla import BiLSTMLayer

from .builders import CLASSIFIERS, SavedBytes, random_images, random_noise, tiny_sequencer

MICRO_BATCHES = (slice(0, 3), slice(3, 5), slice(5, 6))
PRECISIONS = ("fp32", "bf16")
Bits = list[Tensor]


@pytest.fixture(params=CLASSIFIERS, name="model")
def _model(request: pytest.FixtureRequest) -> ImageClassifier:
    return CLASSIFIERS[request.param]()


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def part_of(noise: Noise, part: slice) -> Noise:
    path, features = noise.keep_path, noise.keep_features
    return Noise(None if path is None else path[:, part], None if features is None else features[part])


def step(model: ImageClassifier, precision: str = "fp32", backward_inside: bool = False) -> Bits:
    """The logits of three micro-batches, and then the gradients that they add up to."""
    model.zero_grad()
    images, noise = random_images(6), random_noise(model, 6)
    bits = []
    for part in MICRO_BATCHES:
        with autocast(precision):
            logits = model(images[part], part_of(noise, part))
            loss = logits.float().square().sum()
            if backward_inside:
                torch.autograd.backward(loss)
        if not backward_inside:
            torch.autograd.backward(loss)
        bits.append(logits.detach())
    return bits + gradients(model)


def gradients(module: nn.Module) -> Bits:
    found = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def equal(left: Bits, right: Bits) -> bool:
    return len(left) == len(right) > 0 and all(map(torch.equal, left, right))


def layers_in(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, Sequencer2DLayer | BiLSTMLayer)]


def small_layer(dtype: torch.dtype = torch.float32) -> tuple[Sequencer2DLayer, Tensor, Tensor]:
    """A layer, its input (which needs no gradient yet), and what its branches keep."""
    torch.manual_seed(0)
    layer = Sequencer2DLayer(4, 2, 2.0).to(dtype)
    return layer, torch.randn(2, 3, 2, 4, dtype=dtype), torch.tensor([[1.25, 0.0], [2.0, 1.0]])


class Listener(nn.Module):
    """Tells the state that it is computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.heard: list[tuple[bool, torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.heard.append(autocast_state())
        return x @ self.weight


def autocast_state() -> tuple[bool, torch.dtype, bool]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("backward_inside", [False, True], ids=["after", "inside"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_count_gives_the_same_bits(model: ImageClassifier, precision: str, backward_inside: bool) -> None:
    """The micro-batch of one makes oneDNN's LSTM show whether forward knows that a backward comes.

    Backward inside of the autocast region meets the casts of weights that autocast remembers.
    """
    expected = step(model, precision, backward_inside)
    for count in range(model.layer_count + 1):
        model.recomputed_layers = count
        assert equal(step(model, precision, backward_inside), expected), count


def test_the_first_layers_are_computed_twice_in_training_and_once_in_evaluation(model: ImageClassifier) -> None:
    layers, calls = layers_in(model), Counter[int]()
    assert len(layers) == model.layer_count
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: calls.update([index]))
    for count in range(model.layer_count + 1):
        model.recomputed_layers = count
        calls.clear()
        model(random_images(2)).sum().backward()
        assert [calls[index] for index in range(len(layers))] == [2] * count + [1] * (len(layers) - count)
        calls.clear()
        with torch.no_grad():
            model(random_images(2))
        assert set(calls.values()) == {1}


def test_the_setting_is_no_part_of_the_weights_and_goes_with_a_copy(model: ImageClassifier) -> None:
    before = list(model.state_dict())
    assert model.recomputed_layers == 0
    model.recomputed_layers = 1
    assert list(model.state_dict()) == before
    assert copy.deepcopy(model).recomputed_layers == 1


def test_gradients_of_input_and_weights_are_right() -> None:
    layer, x, keep = small_layer(torch.float64)
    inputs = (x.requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_weights: recomputed(layer, x, keep), inputs)


@pytest.mark.parametrize("frozen", [False, True], ids=["weights", "frozen weights"])
@pytest.mark.parametrize("needs", [False, True], ids=["input without gradient", "input"])
def test_gradients_arrive_where_they_are_wanted_and_nowhere_else(needs: bool, frozen: bool) -> None:
    layer, x, keep = small_layer()
    keep.requires_grad_()
    layer.mlp.requires_grad_(not frozen)
    results = []
    for compute in (layer, lambda *arguments: recomputed(layer, *arguments)):
        layer.zero_grad()
        given = x.clone().requires_grad_(needs)
        compute(given, keep).square().sum().backward()
        results.append([given.grad, *(weight.grad for weight in layer.parameters())])
    for expected, found in zip(*results, strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or torch.equal(found, expected)


def test_a_device_without_autocast_works() -> None:
    layer = nn.Linear(3, 2, device="meta")
    y = recomputed(layer, torch.ones(4, 3, device="meta"))
    torch.autograd.backward(y.sum())
    assert [gradient.shape for gradient in gradients(layer)] == [(2, 3), (2,)]


def test_without_gradients_the_layer_is_just_called() -> None:
    layer, x, keep = small_layer()
    expected = layer(x, keep)
    listener = Listener()
    with torch.no_grad():
        found = recomputed(layer, x.requires_grad_(), keep)
        recomputed(listener, torch.ones(2, 3))
    with torch.inference_mode():
        assert recomputed(layer, x, keep).is_inference()
    frozen = recomputed(layer.requires_grad_(False), x.detach(), keep)
    recomputed(listener.requires_grad_(False), torch.ones(2, 3))
    for one in (found, frozen):
        assert not one.requires_grad
        assert torch.equal(one, expected)
    assert listener.heard == [autocast_state()] * 2  # else without the cache


def test_a_layer_keeps_its_input_and_nothing_else() -> None:
    layer, x, keep = small_layer()
    saved = SavedBytes(layer)
    with saved.counting():
        y = recomputed(layer, x.requires_grad_(), keep)
    assert saved.now == saved.peak == x.nbytes + keep.nbytes
    torch.autograd.backward(y.sum())
    assert saved.now == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_recomputed_layer_saves_memory_and_one_exists_at_a_time(precision: str) -> None:
    model = tiny_sequencer(layers=(4, 2), drop_path=0.2)
    images, noise = random_images(6), random_noise(model, 6)
    held, peaks = [], []
    for count in range(model.layer_count + 1):
        model.recomputed_layers = count
        saved = SavedBytes(model)
        with saved.counting():
            with autocast(precision):
                loss = model(images, noise).float().square().sum()
            held.append(saved.now)
            torch.autograd.backward(loss)
        peaks.append(saved.peak)
        assert saved.now == 0
    shares = [before - after for before, after in pairwise(held)]  # of each layer
    assert min(shares) > 0
    assert held[-1] < held[0] / 5
    assert peaks[0] == held[0]
    assert peaks[-1] < held[-1] + 1.3 * max(shares)  # a share is what a layer holds less its input
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("enabled", [False, True])
def test_the_second_time_is_under_the_autocast_of_the_first(
    enabled: bool, dtype: torch.dtype, cached: bool
) -> None:
    layer, before = Listener(), autocast_state()
    with torch.autocast("cpu", dtype, enabled, cached):
        y = recomputed(layer, torch.ones(2, 3))
        assert autocast_state() == (enabled, dtype, cached)
    with torch.autocast("cpu", torch.bfloat16, not enabled, not cached):
        inside = autocast_state()
        torch.autograd.backward(y.float().sum())
        assert autocast_state() == inside
    assert layer.heard == [(enabled, dtype, False), (enabled, dtype, cached)]  # no cast outlasts the first time
    assert autocast_state() == before


def test_an_error_the_second_time_passes_through_and_leaves_nothing_behind(model: ImageClassifier) -> None:
    expected = step(model, "bf16")
    model.recomputed_layers = model.layer_count
    calls = Counter[str]()

    def fail_the_second_time(*_: object) -> None:
        calls.update(["forward"])
        if calls["forward"] == 2:
            raise MemoryError("of the second time")

    hook = layers_in(model)[0].register_forward_hook(fail_the_second_time)
    before = autocast_state()
    with pytest.raises(MemoryError, match="of the second time"):
        step(model, "bf16")
    assert autocast_state() == before
    assert torch.is_grad_enabled()
    hook.remove()
    assert equal(step(model, "bf16"), expected)


def test_weights_that_change_before_backward_are_an_error() -> None:
    layer, x, _ = small_layer()
    y = recomputed(layer, x)
    with torch.no_grad():
        layer.mlp.contract.bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(y.sum())


def test_weights_that_are_exchanged_before_backward_are_an_error() -> None:
    layer, x, _ = small_layer()
    y = recomputed(layer, x)
    layer.mlp.contract.bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.backward(y.sum())


def test_second_derivatives_are_refused() -> None:
    layer, x, _ = small_layer()
    (first,) = torch.autograd.grad(recomputed(layer, x.requires_grad_()).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(first.sum())
