"""BiLSTM2D's four LSTMs as one operation of autograd: the same results as four nn.LSTM, faster, keeping less.

For backward it keeps, beside its input and its result, the gates and the state of every token and direction: under
bf16 autocast 40 D bytes a token, 2 C for the input, and 8 D for the result, which the next layer keeps as well.

The weights are those of two nn.LSTM, which stays the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowmem_seq.errors import UsageError
from lowmem_seq.models.lstm_backward import Backward, BackwardWeights, WeightGradients
from lowmem_seq.models.lstm_forward import GATES, WAYS, Axes, Forward, Weights, side_by_side, wide_dtype
from lowmem_seq.models.products import products_for

_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def read_grid(vertical: nn.LSTM, horizontal: nn.LSTM, x: Tensor) -> Tensor:
    """Run two bidirectional LSTMs of one layer, one over the columns and one over the rows.

    Gradients flow once, to x and the weights. Under autocast, products are in its dtype, and so is the result.

    Shapes:
        x: (B, H, W, C) -> (B, H, W, 4D): vertical forward, backward, horizontal forward, backward

    Raises:
        UsageError: x has another number of channels, or another dtype than the weights.
    """
    weights = [
        getattr(lstm, name + end) for lstm in (vertical, horizontal) for end in ("", "_reverse") for name in _NAMES
    ]
    device_type, dtype = x.device.type, x.dtype
    if x.shape[-1] != vertical.input_size:
        raise UsageError(f"tokens of {x.shape[-1]} channels were given to LSTMs that read {vertical.input_size}.")
    if torch.is_autocast_enabled(device_type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    elif dtype != weights[0].dtype:
        raise UsageError(f"tokens are {dtype}, and the LSTMs' weights {weights[0].dtype}.")
    if torch.is_grad_enabled() and any(one.requires_grad for one in (x, *weights)):
        y: Tensor = _ReadGrid.apply(x, dtype, *weights)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, dtype, weights, None)


class _ReadGrid(torch.autograd.Function):
    """The operation; what it keeps are x, the result, and gates and states of each of the `Axes`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        ctx.x_dtype, ctx.dtype = x.dtype, dtype
        kept: list[Tensor] = []
        x = x.to(dtype)
        out = _forward(x, dtype, weights, kept)
        ctx.save_for_backward(x, out, *weights, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, out, *others = ctx.saved_tensors
        weights, kept = others[: len(_NAMES) * 4], iter(others[len(_NAMES) * 4 :])
        x_needs, _, *weights_need = ctx.needs_input_grad
        batch, height, width, channels = x.shape
        dx = torch.empty(x.shape, dtype=ctx.x_dtype, device=x.device) if x_needs else None
        found: list[Tensor | None] = []
        for number, axes in enumerate(Axes.of(height, width)):
            count = len(axes.axes)
            directions = _directions(weights)[WAYS * number :][: WAYS * count]
            packed = BackwardWeights.of(directions, ctx.dtype, x_needs)
            sums, reader = WeightGradients(), None
            gates, states = _by_piece(axes, batch, (next(kept), next(kept)), len(weights[0]))
            for piece, *one in zip(axes.pieces(batch, len(weights[0]) // GATES), gates, states, strict=True):
                images = piece.stop - piece.start
                if reader is None or reader.images != images:
                    reader = Backward(axes, packed, images, channels, products_for(ctx.dtype, x.device))
                reader.read(dout[piece], (one[0], one[1]))
                if any(weights_need):
                    reader.add_weights(x[piece], out[piece], sums)
                if dx is not None:
                    reader.put_inputs(dx[piece], first=number == 0)
            found += (
                sums.of(len(weights[0]) // GATES) if any(weights_need) else [None] * (len(_NAMES) * WAYS * count)
            )
        found = [one if need else None for one, need in zip(found, weights_need, strict=True)]
        return (dx, None, *found)


def _forward(x: Tensor, dtype: torch.dtype, weights: Sequence[Tensor], kept: list[Tensor] | None) -> Tensor:
    """Read the grid; gates and states go to the end of `kept`, two tensors for each of the `Axes`."""
    batch, height, width, _ = x.shape
    rows = len(weights[0])
    out = torch.empty((batch, height, width, rows), dtype=dtype, device=x.device)
    wide = wide_dtype(dtype)
    for number, axes in enumerate(Axes.of(height, width)):
        count = len(axes.axes)
        packed = side_by_side(_directions(weights)[WAYS * number :][: WAYS * count], dtype)
        pieces = axes.pieces(batch, rows // GATES)
        both: list[tuple[Tensor, Tensor] | None] = [None] * len(pieces)
        if kept is not None:
            cells = axes.steps * WAYS * count * batch * axes.sequences
            keep = wide if wide == dtype else torch.float16
            kept += [x.new_empty(cells * rows, dtype=keep), x.new_empty(cells * rows // GATES, dtype=keep)]
            both = list(zip(*_by_piece(axes, batch, (kept[-2], kept[-1]), rows), strict=True))
        reader = None
        for piece, one in zip(pieces, both, strict=True):
            images = piece.stop - piece.start
            if reader is None or reader.images != images:
                reader = Forward(axes, packed, images, products_for(dtype, x.device))
            reader.read(x[piece], out[piece], one)
    return out


def _directions(weights: Sequence[Tensor]) -> list[Weights]:
    return [Weights(*weights[start : start + len(_NAMES)]) for start in range(0, len(weights), len(_NAMES))]


def _by_piece(axes: Axes, batch: int, kept: tuple[Tensor, Tensor], rows: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return each piece's part of what is kept, contiguous: (T, P, n, 4D) and (T, P, n, D)."""
    pieces = axes.pieces(batch, rows // GATES)
    shapes = [(axes.steps, WAYS * len(axes.axes), (piece.stop - piece.start) * axes.sequences) for piece in pieces]
    sizes = [steps * directions * n for steps, directions, n in shapes]
    found = []
    for one, width in zip(kept, (rows, rows // GATES), strict=True):
        parts = torch.split(one, [size * width for size in sizes])
        found.append([part.view(*shape, width) for part, shape in zip(parts, shapes, strict=True)])
    return found[0], found[1]
