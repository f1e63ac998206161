"""Batches of matrix products by the fastest library at hand.

For 32-bit floats on a CPU with oneDNN, ATen's own products go to the BLAS it was built with, MKL on x86, which is
slow on processors of another make: on an AMD Zen 5 110 GFLOP/s a core, and oneDNN 240 (AVX2 alone: 113 and 130).
ATen offers oneDNN's to inductor, under a private name; where that is missing, `torch.bmm` does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

FEWEST_ROWS = 128
"""With fewer rows a call for each product costs more than the faster library saves."""
_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Without it, oneDNN's a^T x is no faster than ATen's, and copies both."""


class Products(Protocol):
    """Three shapes of products."""

    def rows(self, a: Tensor, weights: Tensor, out: Tensor) -> None:
        """Write a weights^T. Shapes: a: (N, n, K), weights: (N, M, K), out: (N, n, M), all contiguous."""

    def inputs(self, a: Tensor, weights: Tensor) -> Sequence[Tensor]:
        """Return a weights. Shapes: a: (N, n, M), weights: (N, M, K) -> N times (n, K)."""

    def weights(self, a: Tensor, x: Tensor) -> Tensor:
        """Return a^T x, summed over the rows. Shapes: a: (N, n, M), x: (N, n, K) -> (N, M, K)."""


class _Aten:
    """ATen's batched product. In 16 bits it copies what is neither contiguous nor the transpose of such."""

    def rows(self, a: Tensor, weights: Tensor, out: Tensor) -> None:
        torch.bmm(a, weights.transpose(1, 2), out=out)

    def inputs(self, a: Tensor, weights: Tensor) -> Sequence[Tensor]:
        return torch.bmm(a, weights).unbind(0)

    def weights(self, a: Tensor, x: Tensor) -> Tensor:
        return torch.bmm(a.transpose(1, 2), x)


class _OneDNN(_Aten):
    """oneDNN's product of two matrices, one after the other; small ones as ATen does them."""

    def __init__(self, linear: Callable[..., Tensor]) -> None:
        self._linear = linear

    def rows(self, a: Tensor, weights: Tensor, out: Tensor) -> None:
        if a.shape[1] < FEWEST_ROWS:
            super().rows(a, weights, out)
            return
        for one, weight, result in zip(a, weights, out, strict=True):
            result.copy_(self._linear(one, weight, None, "none", [], ""))

    def inputs(self, a: Tensor, weights: Tensor) -> Sequence[Tensor]:
        return [self._linear(one, weight.t(), None, "none", [], "") for one, weight in zip(a, weights, strict=True)]

    def weights(self, a: Tensor, x: Tensor) -> Tensor:
        if not _AVX512:
            return super().weights(a, x)
        return torch.stack([linear_weights_gradient(one, y) for one, y in zip(a, x, strict=True)])


_ATEN = _Aten()


def products_for(dtype: torch.dtype, device: torch.device) -> Products:
    """Return the products for this dtype and device, as torch.backends.mkldnn.enabled now says."""
    linear = onednn_linear() if dtype == torch.float32 and device.type == "cpu" else None
    return _ATEN if linear is None else _OneDNN(linear)


def onednn_linear() -> Callable[..., Tensor] | None:
    """Return oneDNN's x W^T + b, private to torch; None where there is none, or it is switched off."""
    if not torch.backends.mkldnn.enabled or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear_weights_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Return dy^T x by the faster library. Shapes: dy: (n, M), x: (n, K) -> (M, K)."""
    if not _AVX512:
        return dy.t() @ x
    # _linear_pointwise would transpose both first: half of the time again for 4,096 rows
    like = dy.new_empty((dy.shape[1], x.shape[1]))
    found: Tensor = torch.ops.aten.mkldnn_linear_backward_weights(dy.to_mkldnn(), x.to_mkldnn(), like, False)[0]
    return found
