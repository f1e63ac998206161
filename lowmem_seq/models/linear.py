"""A linear layer by the faster library: oneDNN's where torch would take a slow one.

For 32-bit floats on x86 torch's own products go to MKL, which is slow on processors of AMD: on a Zen 5 forward and
backward of Small's linear layers ran at 95 GFLOP/s a core, and by oneDNN at 165 to 190 (AVX2 alone: 96 and 103;
docs/log.md, 2026-11-23). Elsewhere, and in 16 bits, it is torch's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lowmem_seq.models.products import FEWEST_ROWS, linear_weights_gradient, onednn_linear
from lowmem_seq.runs.environment import processor_name


class Linear(nn.Linear):
    """As nn.Linear; names, weights and, but for rounding, results are the same."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x: (..., C) -> (..., D)."""
        if _is_slow_in_torch(x, self.weight):
            y: Tensor = _OneDNNLinear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return y
        return super().forward(x)


class _OneDNNLinear(torch.autograd.Function):
    """x W^T + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiplied(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_needs, weight_needs, bias_needs = ctx.needs_input_grad
        rows = dy.flatten(0, -2).contiguous()
        return (
            _multiplied(dy, weight.t()) if x_needs else None,
            linear_weights_gradient(rows, x.flatten(0, -2)) if weight_needs else None,
            rows.sum(0) if bias_needs else None,
        )


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    linear = onednn_linear()
    assert linear is not None
    return linear(x.contiguous(), weight, bias, "none", [], "")


def _is_slow_in_torch(x: Tensor, weight: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and _is_of_amd()
        and onednn_linear() is not None
    )


@cache
def _is_of_amd() -> bool:
    """Whether the processor is AMD's, by what Linux (a name) or Windows (a maker) calls it."""
    name = processor_name()
    return name.startswith("AMD ") or "AuthenticAMD" in name
