from __future__ import annotations

import copy
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from lowmem_seq.errors import UsageError
from lowmem_seq.models import products
from lowmem_seq.models.lstm_function import read_grid

from .builders import random_images, tiny_sequencer, tiny_vanilla
from .lstms import C, D, Ours, distance, grid, layer, our_paths, step, tokens


@pytest.fixture(autouse=True, scope="module", params=["function", "native"])
def _path(request: pytest.FixtureRequest) -> None:
    our_paths(request)


def test_no_images_give_gradients_of_zero() -> None:
    module = layer()
    for shape in ((0, 3, 3, C), (0, 2, 4, C)):
        expected = step(module, tokens(*shape), "torch")
        for found, one in zip(step(module, tokens(*shape), Ours.path), expected, strict=True):
            assert found.shape == one.shape
            assert torch.equal(found, one)
    for weight in module.parameters():
        weight.requires_grad_(False)
    x = tokens(0, 3, 3, C).requires_grad_()
    assert torch.autograd.grad(grid(module, x).sum(), x)[0].shape == x.shape


def test_frozen_weights_and_inputs_get_no_gradient_and_change_no_other() -> None:
    module, x = layer(), tokens(4, 3, 3, C)
    weights = [*module.vertical.parameters(), *module.horizontal.parameters()]
    loss_of = tokens(4, 3, 3, 4 * D)
    expected = torch.autograd.grad(grid(module, x.requires_grad_()), [x, *weights], loss_of)
    for frozen in (weights, weights[:1], weights[5:9], weights[1:]):
        module.requires_grad_(True).zero_grad()
        for weight in frozen:
            weight.requires_grad_(False)
        for x_needs in (True, False):
            x = x.detach().requires_grad_(x_needs)
            y = grid(module, x)
            if not y.requires_grad:
                assert not x_needs
                continue
            module.zero_grad()
            torch.autograd.backward(y, loss_of)
            for one, gradient in zip([x, *weights], expected, strict=True):
                assert (one.grad is not None) == one.requires_grad
                assert one.grad is None or torch.equal(one.grad, gradient)


def test_memory_may_lie_in_any_order() -> None:
    module = layer()
    x = tokens(3, 2, 4, C)
    strange = torch.empty(C, 4, 3, 2).permute(2, 3, 1, 0).copy_(x).requires_grad_()
    found, expected = grid(module, strange), grid(module, x.requires_grad_())
    assert torch.equal(found, expected)
    weights = tokens(1, 1, 1, 4 * D).expand(3, 2, 4, 4 * D)
    both = [torch.autograd.grad(y, one, weights)[0] for y, one in ((found, strange), (expected, x))]
    assert torch.equal(both[0], both[1])


def test_gradients_can_be_taken_twice_where_the_graph_is_kept() -> None:
    module, x = layer(), tokens(2, 3, 3, C).requires_grad_()
    loss = grid(module, x).square().sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_may_be_inside_of_autocast(dtype: torch.dtype, inside: bool) -> None:
    module, x = layer(), tokens(2, 3, 3, C).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = grid(module, x)
    assert y.dtype == dtype
    with torch.autocast("cpu", dtype, enabled=inside):
        (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
    (expected,) = torch.autograd.grad(grid(module, x), x, torch.ones(2, 3, 3, 4 * D))
    assert found.dtype == torch.float32
    assert distance(found, expected) < 0.02


def test_numbers_of_64_bits_stay_so_under_autocast() -> None:
    module, x = layer(torch.float64), tokens(2, 3, 3, C, dtype=torch.float64)
    expected = grid(module, x)
    assert expected.dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        found = grid(module, x)
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_16_bits_lose_of_a_bias_is_read_too(dtype: torch.dtype) -> None:
    """Where the weights take away what 16 bits can hold of the biases, only the rest of them is left to be read."""
    module, x = layer(), torch.ones(1, 1, 1, C)
    with torch.no_grad():
        for lstm in (module.vertical, module.horizontal):
            for end in ("", "_reverse"):
                w, b, b_too = (getattr(lstm, name + end) for name in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"))
                b.uniform_(-3, 3)
                b_too.zero_()
                w.zero_()[:, 0] = -b.to(dtype)
        truth = grid(copy.deepcopy(module).double(), x.double())
        with torch.autocast("cpu", dtype):
            found = grid(module, x)
    assert truth.abs().min() > 0
    assert distance(found, truth) < 0.01


def test_a_device_that_autocast_does_not_know_serves() -> None:
    module, x = layer().to("meta"), torch.empty(2, 3, 4, C, device="meta", requires_grad=True)
    y = grid(module, x)
    assert (y.shape, y.dtype, y.device) == ((2, 3, 4, 4 * D), torch.float32, x.device)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    with torch.no_grad():
        assert grid(module, x).shape == y.shape


def test_threads_share_the_weights_and_get_the_same_bits() -> None:
    module, x = layer(width=48, lstm_width=12), tokens(8, 4, 4, 48)
    module.lstm_path = Ours.path  # type: ignore[assignment]
    expected = step(copy.deepcopy(module), x, Ours.path, "bf16")[:2]
    found: list[list[Tensor]] = []

    def work() -> None:
        torch.set_num_threads(1)
        for _ in range(5):
            given = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                y = module(given)
            found.append([y.detach(), *torch.autograd.grad(y, given, tokens(*y.shape, dtype=y.dtype))])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, expected, strict=True))


BITS = """
import hashlib, sys, torch
from lowmem_seq.models import BiLSTM2D
torch.set_num_threads(1)
torch.manual_seed(0)
module, x = BiLSTM2D(48, 12), torch.randn(8, 4, 4, 48, requires_grad=True)
module.lstm_path = sys.argv[1]
digest = hashlib.sha256()
for precision in (False, True):
    with torch.autocast("cpu", torch.bfloat16, enabled=precision):
        y = module(x)
    torch.autograd.backward(y.float().square().sum())
    for one in (y, x.grad, *(weight.grad for weight in module.parameters())):
        digest.update(one.detach().float().numpy().tobytes())
print(digest.hexdigest())
"""


def test_fresh_processes_find_the_same_bits() -> None:
    told = {subprocess.check_output([sys.executable, "-c", BITS, Ours.path], encoding="utf-8") for _ in range(2)}
    assert len(told) == 1


@pytest.fixture(name="onednn", params=["with oneDNN", "without oneDNN", "without its private name"])
def _onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", request.param != "without oneDNN")
    if request.param == "without its private name":
        monkeypatch.setattr(products, "onednn_linear", lambda: None)
    found = products.products_for(torch.float32, torch.device("cpu"))
    assert isinstance(found, products._OneDNN) == (request.param == "with oneDNN")


@pytest.mark.usefixtures("onednn")
def test_every_library_of_products_serves() -> None:
    module, x = layer(width=48, lstm_width=12), tokens(40, 4, 4, 48)  # of 160 rows a step
    truth = step(copy.deepcopy(module).double(), x.double(), "torch")
    assert max(distance(a, b) for a, b in zip(step(module, x, Ours.path), truth, strict=True)) < 1e-6


def test_second_derivatives_are_refused() -> None:
    module, x = layer(), tokens(2, 3, 3, C).requires_grad_()
    (first,) = torch.autograd.grad(grid(module, x).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(first.sum())


def test_weights_that_change_before_backward_are_an_error() -> None:
    module = layer()
    y = grid(module, tokens(2, 3, 3, C))
    with torch.no_grad():
        next(module.vertical.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(y.sum())


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((2, 3, 3, 1), torch.float32, "tokens of 1 channels"),
        ((2, 3, 3, C), torch.float64, "tokens are torch.float64"),
        ((2, 0, 3, C), torch.float32, "grids of 0 by 3 tokens"),
        ((2, 3, 0, C), torch.float32, "grids of 3 by 0 tokens"),
        ((0, 0, 0, C), torch.float32, "grids of 0 by 0 tokens"),
    ],
)
def test_tokens_that_do_not_fit_the_weights_are_refused(
    shape: tuple[int, ...], dtype: torch.dtype, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        grid(layer(), tokens(*shape, dtype=dtype))


def test_the_path_can_change_at_any_time_and_is_no_part_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = tiny_sequencer(), random_images(2)
    calls: list[bool] = []

    def counted(vertical: nn.LSTM, horizontal: nn.LSTM, x: Tensor, native: bool) -> Tensor:
        calls.append(native)
        return read_grid(vertical, horizontal, x, native)

    monkeypatch.setattr("lowmem_seq.models.bilstm2d.read_grid", counted)
    assert model.lstm_path == "torch"
    expected, names = model(images), list(model.state_dict())
    assert calls == []
    model.lstm_path = Ours.path  # type: ignore[assignment]
    found = model(images)
    assert calls == [Ours.path == "native"] * model.layer_count
    assert copy.deepcopy(model).lstm_path == Ours.path
    assert list(model.state_dict()) == names
    model.lstm_path = "torch"
    assert torch.equal(model(images), expected)
    assert len(calls) == model.layer_count
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_path_that_a_model_does_not_have_is_refused() -> None:
    sequencer, vanilla = tiny_sequencer(), tiny_vanilla()
    with pytest.raises(UsageError, match="no LSTM path 'fast'"):
        sequencer.lstm_path = "fast"  # type: ignore[assignment]
    vanilla.lstm_path = "torch"
    with pytest.raises(UsageError, match=f"no LSTM path '{Ours.path}'"):
        vanilla.lstm_path = Ours.path  # type: ignore[assignment]
    assert (sequencer.lstm_path, vanilla.lstm_path) == ("torch", "torch")
