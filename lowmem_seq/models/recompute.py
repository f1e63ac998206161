"""Layers that keep only their input for backward, and are computed a second time in it.

What a layer's backward needs is the most of what a training step holds; recomputed, one layer's share exists at a
time. torch.utils.checkpoint does the same, but its first call imports torch._dynamo: 75 MiB and a second.

No generator's state is kept for the second time: layers draw no random numbers, what they drop is handed in
(noise.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def recomputed(layer: nn.Module, x: Tensor, *fixed: Tensor | None) -> Tensor:
    """Return layer(x, *fixed), with the same bits and gradients as without this.

    Every weight of the layer takes part in its result. Gradients flow to x and to the weights, and only once (no
    second derivatives). Where no gradient is wanted, the layer is just called.

    Args:
        layer: its result depends on these arguments and its weights alone.
        x: (B, ...), what the layer before gave.
        fixed: further arguments, which get no gradient.
    """
    weights = [weight for weight in layer.parameters() if weight.requires_grad]
    if not torch.is_grad_enabled() or not (x.requires_grad or weights):
        y: Tensor = layer(x, *fixed)
        return y
    # The weights are arguments, so that they get gradients even where x needs none, and autograd's own care: hooks,
    # torch.autograd.grad, and an error if they are changed before backward.
    twice: Tensor = _Recomputed.apply(layer, fixed, x, *weights)  # type: ignore[no-untyped-call]
    return twice


class _Autocast(NamedTuple):
    """What autocast does to the operations of one kind of device."""

    device_type: str
    enabled: bool
    dtype: torch.dtype
    cached: bool

    @classmethod
    def now(cls, device_type: str) -> _Autocast | None:
        """Read the present thread's state; None if autocast doesn't know the device."""
        if not torch.amp.is_autocast_available(device_type):
            return None
        return cls(
            device_type,
            torch.is_autocast_enabled(device_type),
            torch.get_autocast_dtype(device_type),
            torch.is_autocast_cache_enabled(),
        )


class _Recomputed(torch.autograd.Function):
    """The layer as one operation."""

    @staticmethod
    def forward(
        ctx: Any, layer: nn.Module, fixed: tuple[Tensor | None, ...], x: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.layer, ctx.fixed_count = layer, len(fixed)
        ctx.autocast = _Autocast.now(x.device.type)
        ctx.save_for_backward(x, *fixed, *weights)
        # With gradients, though what they need is dropped at once: without, oneDNN's LSTM takes another program,
        # whose results differ in the last bits where it reads a single sequence. And no cast of a weight is
        # remembered: it belongs to this graph, and its memory would outlast the layer.
        with torch.enable_grad(), _autocasting(ctx.autocast, cached=False), _keeping_nothing():
            y: Tensor = layer(x.detach().requires_grad_(x.requires_grad), *fixed)
        return y.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        fixed, weights = others[: ctx.fixed_count], others[ctx.fixed_count :]
        x_needs = x.requires_grad
        x = x.detach().requires_grad_(x_needs)
        with torch.enable_grad(), _autocasting(ctx.autocast):
            y = ctx.layer(x, *fixed)
        # Outside of that autocast, as backward usually is; and it frees each part of the graph once used.
        found = torch.autograd.grad(y, [x, *weights] if x_needs else weights, gradient)
        return (None, None, *(found if x_needs else (None, *found)))


def _keeping_nothing() -> AbstractContextManager[object]:
    """What is saved for a backward in here is dropped; that backward never comes."""
    return torch.autograd.graph.saved_tensors_hooks(lambda _tensor: None, lambda nothing: nothing)


def _autocasting(state: _Autocast | None, cached: bool = True) -> AbstractContextManager[object]:
    """Autocast as `state` says; without `cached`, casts of weights are not remembered."""
    if state is None:
        return nullcontext()
    return torch.autocast(state.device_type, state.dtype, state.enabled, state.cached and cached)
