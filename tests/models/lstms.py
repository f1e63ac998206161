"""Layers with LSTMs, and steps with them, that several files here share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowmem_seq.compiled import library
from lowmem_seq.models import BiLSTM2D
from lowmem_seq.models.lstm_function import read_grid

C, D = 5, 3
NO_CELLS = "the package was installed without a C compiler"


class Ours:
    """Which of our two ways to compute LSTMs a test is about."""

    path = "function"


def our_paths(request: pytest.FixtureRequest) -> None:
    """Have a module's tests run for each of them; for a fixture of that scope."""
    if request.param == "native" and library() is None:
        pytest.skip(NO_CELLS)
    Ours.path = request.param


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
    return read_grid(module.vertical, module.horizontal, x, native=Ours.path == "native")
