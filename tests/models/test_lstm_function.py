from __future__ import annotations

import copy
import math
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lowmem_seq.errors import UsageError
from lowmem_seq.models import BiLSTM2D, lstm_forward, products
from lowmem_seq.models.lstm_forward import Axes
from lowmem_seq.models.lstm_function import read_grid

from .builders import SavedBytes, random_images, tiny_sequencer, tiny_vanilla

C, D = 5, 3
SIZES = st.integers(1, 4)


def layer(dtype: torch.dtype = torch.float32, width: int = C, lstm_width: int = D) -> BiLSTM2D:
    torch.manual_seed(0)
    return BiLSTM2D(width, lstm_width).to(dtype)


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def step(module: BiLSTM2D, x: Tensor, path: str, precision: str = "fp32") -> list[Tensor]:
    """The result, and the gradients in the input and the weights, of a loss that tells all tokens apart."""
    module.lstm_path = path  # type: ignore[assignment]
    module.zero_grad()
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y = module(x)
    torch.autograd.backward(y, tokens(*y.shape, dtype=y.dtype))
    assert x.grad is not None
    return [y.detach(), x.grad, *(weight.grad.clone() for weight in module.parameters() if weight.grad is not None)]


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def grid(module: BiLSTM2D, x: Tensor) -> Tensor:
    return read_grid(module.vertical, module.horizontal, x)


@pytest.fixture(name="small_pieces")
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of two sequences a piece."""
    monkeypatch.setattr(lstm_forward, "CELLS_AT_ONCE", 4 * D)


@settings(max_examples=40, deadline=None)
@given(batch=SIZES, height=SIZES, width=SIZES, channels=SIZES, lstm_width=SIZES)
def test_results_and_gradients_are_those_of_lstms(
    batch: int, height: int, width: int, channels: int, lstm_width: int
) -> None:
    for dtype, most in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        module, x = layer(dtype, channels, lstm_width), tokens(batch, height, width, channels, dtype=dtype)
        for found, expected in zip(step(module, x, "function"), step(module, x, "torch"), strict=True):
            torch.testing.assert_close(found, expected, rtol=most, atol=most)


@pytest.mark.parametrize("shape", [(5, 2, 2), (3, 2, 4), (3, 4, 2), (2, 1, 3), (1, 1, 1)], ids=str)
@pytest.mark.usefixtures("small_pieces")
def test_gradients_are_right_in_pieces_of_a_batch_too(shape: tuple[int, int, int]) -> None:
    module, x = layer(torch.float64), tokens(*shape, C, dtype=torch.float64).requires_grad_()
    inputs = (x, *module.vertical.parameters(), *module.horizontal.parameters())
    assert torch.autograd.gradcheck(lambda x, *_weights: grid(module, x), inputs)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 8])
@pytest.mark.usefixtures("small_pieces")
def test_every_image_is_in_one_piece(images: int) -> None:
    (axes,) = Axes.of(2, 2)
    pieces = axes.pieces(images, D)
    assert [index for piece in pieces for index in range(images)[piece]] == list(range(images))
    lengths = [piece.stop - piece.start for piece in pieces]
    assert max(lengths) <= 2
    assert len(set(lengths)) <= 2
    assert len(Axes.of(2, 100 * D)[0].pieces(images, D)) == images  # never less than an image


@pytest.mark.parametrize("sizes", [(16, 4, 4, 48, 12), (2, 16, 16, 48, 12), (4, 6, 3, 96, 24)], ids=str)
def test_16_bit_products_are_no_further_from_the_truth_than_those_of_lstms(sizes: tuple[int, ...]) -> None:
    batch, height, width, channels, lstm_width = sizes
    module, x = layer(width=channels, lstm_width=lstm_width), tokens(batch, height, width, channels)
    truth = step(copy.deepcopy(module).double(), x.double(), "torch")
    found, reference = step(module, x, "function", "bf16"), step(module, x, "torch", "bf16")
    assert [one.dtype for one in found] == [one.dtype for one in reference]
    ratios = [distance(a, c) / distance(b, c) for a, b, c in zip(found, reference, truth, strict=True)]
    result, gradient, *weights = ratios
    matrices = [ratio for ratio, one in zip(weights, module.parameters(), strict=True) if one.dim() > 1]
    assert result < 1.02
    assert max(gradient, *matrices[:-1]) < 1
    assert sum(weights) / len(weights) < 1  # the biases' are few numbers, some 0.7 and some 1.2


@pytest.mark.parametrize("size", [1, 1e-2, 1e-4])
def test_gradients_of_each_gate_are_as_near_to_the_truth_where_all_numbers_are_small(size: float) -> None:
    module, x = layer(width=48, lstm_width=12), size * tokens(8, 8, 8, 48)
    weights = dict(module.named_parameters())
    for name, weight in weights.items():
        if "bias" in name:
            nn.init.zeros_(weight)
    truth = step(copy.deepcopy(module).double(), x.double(), "torch")[2:]
    found, reference = (step(module, x, path, "bf16")[2:] for path in ("function", "torch"))
    for name, ours, theirs, right in zip(weights, found, reference, truth, strict=True):
        if "weight_ih" in name:
            for gate, *three in zip("ifgo", ours.chunk(4), theirs.chunk(4), right.chunk(4), strict=True):
                assert distance(three[0], three[2]) < 1.2 * distance(three[1], three[2]), f"{name}, gate {gate}"


@pytest.mark.parametrize(("precision", "expected"), [("bf16", 48 * 12 + 2 * 48), ("fp32", 96 * 12 + 4 * 48)])
@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 4, 8)], ids=str)
def test_it_keeps_few_bytes_a_token(shape: tuple[int, int, int], precision: str, expected: int) -> None:
    module, x = layer(width=48, lstm_width=12), tokens(*shape, 48).requires_grad_()
    counted = {}
    for path in module_paths():
        module.lstm_path = path  # type: ignore[assignment]
        saved = SavedBytes(module)
        with saved.counting(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = (grid if path == "function" else BiLSTM2D.forward)(module, x)
        counted[path] = saved.now / (y.numel() / y.shape[-1])
    assert counted["function"] == expected
    assert counted["torch"] > 1.3 * expected  # by 1.7 to 10: oneDNN keeps the most


def module_paths() -> tuple[str, ...]:
    return tiny_sequencer().lstm_paths


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (9, 4, 4), (3, 2, 5)], ids=str)
@pytest.mark.usefixtures("small_pieces")
def test_evaluation_gives_the_bits_of_training(shape: tuple[int, int, int], precision: str) -> None:
    module, x = layer(), tokens(*shape, C)
    expected = step(module, x, "function", precision)[0]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = grid(module, x.requires_grad_())
            assert torch.equal(module(x), expected)
        assert not y.requires_grad


class MadeBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the memory that is asked for by `new_empty`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.new_empty.default:
            self.total += result.nbytes
        return result


@pytest.mark.parametrize(("precision", "itemsize"), [("fp32", 4), ("bf16", 2)])
@pytest.mark.parametrize("shape", [(9, 4, 4), (3, 2, 5)], ids=str)
def test_evaluation_has_no_memory_made_for_what_training_keeps(
    shape: tuple[int, int, int], precision: str, itemsize: int
) -> None:
    module, x = layer(), tokens(*shape, C)
    made = {}
    for training in (True, False):
        with (
            torch.set_grad_enabled(training),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            MadeBytes() as counter,  # type: ignore[no-untyped-call]
        ):
            grid(module, x)
        made[training] = counter.total
    gates_and_states = 5 * 4 * D * math.prod(shape) * itemsize
    assert made[True] - made[False] == gates_and_states
    assert made[False] > 0


def test_no_images_give_gradients_of_zero() -> None:
    module = layer()
    for shape in ((0, 3, 3, C), (0, 2, 4, C)):
        expected = step(module, tokens(*shape), "torch")
        for found, one in zip(step(module, tokens(*shape), "function"), expected, strict=True):
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
    module.lstm_path = "function"
    expected = step(copy.deepcopy(module), x, "function", "bf16")[:2]
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
import hashlib, torch
from lowmem_seq.models import BiLSTM2D
torch.set_num_threads(1)
torch.manual_seed(0)
module, x = BiLSTM2D(48, 12), torch.randn(8, 4, 4, 48, requires_grad=True)
module.lstm_path = "function"
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
    told = {subprocess.check_output([sys.executable, "-c", BITS], encoding="utf-8") for _ in range(2)}
    assert len(told) == 1


@pytest.fixture(name="onednn", params=["with oneDNN", "without oneDNN", "without its private name"])
def _onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", request.param != "without oneDNN")
    if request.param == "without its private name":
        monkeypatch.setattr(products, "_linear_pointwise", lambda: None)
    found = products.products_for(torch.float32, torch.device("cpu"))
    assert isinstance(found, products._OneDNN) == (request.param == "with oneDNN")


@pytest.mark.usefixtures("onednn")
def test_every_library_of_products_serves() -> None:
    module, x = layer(width=48, lstm_width=12), tokens(40, 4, 4, 48)  # of 160 rows a step
    truth = step(copy.deepcopy(module).double(), x.double(), "torch")
    assert max(distance(a, b) for a, b in zip(step(module, x, "function"), truth, strict=True)) < 1e-6


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
    calls: list[tuple[int, ...]] = []

    def counted(vertical: nn.LSTM, horizontal: nn.LSTM, x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return read_grid(vertical, horizontal, x)

    monkeypatch.setattr("lowmem_seq.models.bilstm2d.read_grid", counted)
    assert model.lstm_path == "torch"
    expected, names = model(images), list(model.state_dict())
    assert calls == []
    model.lstm_path = "function"
    found = model(images)
    assert len(calls) == model.layer_count
    assert copy.deepcopy(model).lstm_path == "function"
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
    with pytest.raises(UsageError, match="no LSTM path 'function'"):
        vanilla.lstm_path = "function"
    assert (sequencer.lstm_path, vanilla.lstm_path) == ("torch", "torch")
