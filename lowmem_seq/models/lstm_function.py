"""BiLSTM2D's four LSTMs as one operation of autograd: the same results as four nn.LSTM, faster, keeping less.

For backward it keeps, beside its input and its result, the gates of every token and direction, and with ATen's
operations the state too: under bf16 autocast 32 D bytes a token, or 40 D, 2 C for the input, and 8 D for the
result, which the next layer keeps as well.

The weights are those of two nn.LSTM, which stays the reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowmem_seq.errors import UsageError
from lowmem_seq.models.lstm_backward import Backward, BackwardWeights, WeightGradients
from lowmem_seq.models.lstm_forward import GATES, WAYS, Axes, Directions, Forward, Weights, side_by_side, wide_dtype
from lowmem_seq.models.lstm_native import (
    NativeBackward,
    NativeForward,
    NativeGradients,
    pack_for_backward,
    pack_for_forward,
)
from lowmem_seq.models.native_cells import has_cells
from lowmem_seq.models.products import products_for

_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def read_grid(vertical: nn.LSTM, horizontal: nn.LSTM, x: Tensor, native: bool = False) -> Tensor:
    """Run two bidirectional LSTMs of one layer, one over the columns and one over the rows.

    With `native`, cells are computed by compiled code where it serves the dtype and the device. Both LSTMs are as
    `BiLSTM2D` makes them, with biases and without projections: their options are not looked at. Gradients flow
    once, to x and the weights. Under autocast, products are in its dtype, and so is the result.

    Shapes:
        x: (B, H, W, C) -> (B, H, W, 4D): vertical forward, backward, horizontal forward, backward

    Raises:
        UsageError: x has no token in an image, another number of channels, or another dtype than the weights.
    """
    weights = [
        getattr(lstm, name + end) for lstm in (vertical, horizontal) for end in ("", "_reverse") for name in _NAMES
    ]
    device_type, dtype = x.device.type, x.dtype
    if x.shape[-1] != vertical.input_size:
        raise UsageError(
            f"tokens of {x.shape[-1]} channels were given to LSTMs that read {vertical.input_size}.",
            f"give tokens of the shape (batch, height, width, {vertical.input_size})",
        )
    if not (x.shape[1] and x.shape[2]):
        raise UsageError(
            f"grids of {x.shape[1]} by {x.shape[2]} tokens were given to LSTMs: there are none to read.",
            "give at least one token each way: images no smaller than a patch",
        )
    # for a device that autocast doesn't know, as "meta" is, asking whether it is on raises
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    if autocast and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    elif dtype != weights[0].dtype:
        raise UsageError(
            f"tokens are {dtype}, and the LSTMs' weights {weights[0].dtype}.",
            "bring both to one dtype: tokens.to(weights.dtype), or train under torch.autocast",
        )
    if torch.is_grad_enabled() and any(one.requires_grad for one in (x, *weights)):
        y: Tensor = _ReadGrid.apply(x, dtype, native, *weights)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, dtype, native, weights, None)


class _ReadGrid(torch.autograd.Function):
    """The operation; what it keeps are x, the result, the weights, and gates and states of each part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, native: bool, *weights: Tensor) -> Tensor:
        ctx.x_dtype, ctx.dtype, ctx.native = x.dtype, dtype, native
        kept: list[Tensor] = []
        x = x.to(dtype)
        out = _forward(x, dtype, native, weights, kept)
        ctx.save_for_backward(x, out, *weights, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, out, *others = ctx.saved_tensors
        x_needs, _, _, *weights_need = ctx.needs_input_grad
        weights, kept = others[: len(weights_need)], iter(others[len(weights_need) :])
        dx = torch.empty(x.shape, dtype=ctx.x_dtype, device=x.device) if x_needs else None
        if not len(x):
            zeros = (
                torch.zeros_like(one) if need else None for one, need in zip(weights, weights_need, strict=True)
            )
            return (dx, None, None, *zeros)
        found: list[Tensor | None] = []
        cells, products = _cells_for(x, ctx.dtype, ctx.native), products_for(ctx.dtype, x.device)
        for part in _Part.of(x, weights):
            packed = cells.pack_for_backward(part.directions, ctx.dtype, x_needs)
            sums, reader = cells.gradients(), None
            for piece, of_piece in zip(part.pieces, part.cut(list(islice(kept, len(cells.kept)))), strict=True):
                images = piece.stop - piece.start
                if reader is None or reader.images != images:
                    reader = cells.backward(part.axes, packed, images, products)
                reader.read(dout[piece], out[piece], of_piece)
                if any(weights_need):
                    reader.add_weights(x[piece], sums)
                if dx is not None:
                    reader.put_inputs(dx[piece], first=not found)
            if any(weights_need):
                found += sums.of()
            else:
                found += [None] * (len(part.directions) * len(_NAMES))
        return (dx, None, None, *(one if need else None for one, need in zip(found, weights_need, strict=True)))


class _Part(NamedTuple):
    """The axes that are read together, their weights, and the pieces that a batch is read in."""

    axes: Axes
    directions: Directions
    pieces: list[slice]
    lstm_width: int

    @classmethod
    def of(cls, x: Tensor, weights: Sequence[Tensor]) -> Iterator[_Part]:
        """Return both axes together or one after the other. Shapes: x: (B, H, W, C)."""
        batch, height, width, _ = x.shape
        lstm_width = len(weights[0]) // GATES
        names = len(_NAMES)
        directions = iter([Weights(*weights[start : start + names]) for start in range(0, len(weights), names)])
        for axes in Axes.of(height, width):
            theirs = list(islice(directions, WAYS * len(axes.axes)))
            yield cls(axes, theirs, axes.pieces(batch, lstm_width), lstm_width)

    def cut(self, kept: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Return each piece's share of what is kept, (T, P, n, ...), contiguous."""
        cells = [
            self.axes.steps * len(self.directions) * (piece.stop - piece.start) * self.axes.sequences
            for piece in self.pieces
        ]
        shares = [torch.split(one, [count * one.numel() // sum(cells) for count in cells]) for one in kept]
        shape = (self.axes.steps, len(self.directions), -1)
        return [
            tuple(share.view(*shape[:2], count // math.prod(shape[:2]), -1) for share in of_piece)
            for count, *of_piece in zip(cells, *shares, strict=True)
        ]


class _Cells(NamedTuple):
    """How what lies between the products is computed."""

    pack_for_forward: Callable[[Directions, torch.dtype], Tensor]
    forward: type[Forward | NativeForward]
    kept: tuple[int, ...]
    """The numbers of a hidden unit and a token that each tensor holds that is kept for backward."""
    pack_for_backward: Callable[[Directions, torch.dtype, bool], BackwardWeights]
    backward: type[Any]
    gradients: type[WeightGradients | NativeGradients]


_ATEN = _Cells(side_by_side, Forward, (GATES, 1), BackwardWeights.of, Backward, WeightGradients)
_NATIVE = _Cells(pack_for_forward, NativeForward, (GATES,), pack_for_backward, NativeBackward, NativeGradients)


def _cells_for(x: Tensor, dtype: torch.dtype, native: bool) -> _Cells:
    return _NATIVE if native and has_cells(x, dtype) else _ATEN


def _forward(
    x: Tensor, dtype: torch.dtype, native: bool, weights: Sequence[Tensor], kept: list[Tensor] | None
) -> Tensor:
    """Read the grid; what backward will want goes to the end of `kept`, for each part."""
    batch, height, width, _ = x.shape
    out = x.new_empty((batch, height, width, len(weights[0])), dtype=dtype)
    wide = wide_dtype(dtype)
    cells, products = _cells_for(x, dtype, native), products_for(dtype, x.device)
    for part in _Part.of(x, weights):
        packed = cells.pack_for_forward(part.directions, dtype)
        into: list[tuple[Tensor, ...] | None] = [None] * len(part.pieces)
        if kept is not None:
            units = len(part.directions) * batch * height * width * part.lstm_width
            keep = wide if wide == dtype else torch.float16  # from 6e-5 on, rounds an eighth as much as bf16
            of_part = [x.new_empty(count * units, dtype=keep) for count in cells.kept]
            kept += of_part
            into = list(part.cut(of_part)) if batch else []
        reader = None
        for piece, one in zip(part.pieces, into, strict=True):
            images = piece.stop - piece.start
            if reader is None or reader.images != images:
                reader = cells.forward(part.axes, packed, images, products)
            reader.read(x[piece], out[piece], one)
    return out
