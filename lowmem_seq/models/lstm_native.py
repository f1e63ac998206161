"""The four LSTMs of a BiLSTM2D, read forward and backward with compiled cells.

The recursions are those of lstm_forward.py and lstm_backward.py, with the same products. What lies between two
products is one loop over the hidden units of a step, in C, which reads and writes tokens where they are: nothing is
gathered before and nothing scattered afterwards. tanh is computed as such here, so that small numbers keep all of
their digits. Weights are packed and gradients added up in C too: for each call of torch from Python a worker needs
Python's lock, which others may have.

For backward only the gates are kept: the states follow from them, c_t = f c_{t-1} + i g, and computing them again
takes less than reading them would. The gradients da in the preactivations are written as each product wants them:
those of a step for U^T da, those of all steps but the first for dU, and token by token with the directions side by
side, so that dW of all directions is one product, da^T x, and dx another, da W, which adds up the directions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from lowmem_seq.models.lstm_backward import BackwardWeights
from lowmem_seq.models.lstm_forward import BIAS_COLUMNS, GATES, WAYS, Axes, Directions, Weights, side_by_side
from lowmem_seq.models.native_cells import (
    MOST_DIRECTIONS,
    BackwardArguments,
    ForwardArguments,
    Place,
    WeightArguments,
    cells_for,
    place,
)
from lowmem_seq.models.products import Products


def pack_for_forward(directions: Directions, dtype: torch.dtype) -> Tensor:
    """Do what `side_by_side` does. Shapes: (P, 4D, C + 8 + D)."""
    if not _can_be_read(directions):
        return side_by_side(directions, dtype)
    w, u, *_ = directions[0]
    packed = w.new_empty((len(directions), len(w), w.shape[1] + BIAS_COLUMNS + u.shape[1]), dtype=dtype)
    cells_for(dtype).pack_for_forward(ctypes.byref(_weights(directions)), packed.data_ptr())
    return packed


def pack_for_backward(directions: Directions, dtype: torch.dtype, x_needs: bool) -> BackwardWeights:
    """Do what `BackwardWeights.of` does."""
    if not _can_be_read(directions):
        return BackwardWeights.of(directions, dtype, x_needs)
    (w_of_one, u_of_one, *_), count = directions[0], len(directions)
    rows, channels = w_of_one.shape
    u = u_of_one.new_empty((count, *u_of_one.shape), dtype=dtype)
    w = w_of_one.new_empty((count // WAYS, WAYS * rows, channels), dtype=dtype) if x_needs else None
    to = None if w is None else w.data_ptr()
    cells_for(dtype).pack_for_backward(ctypes.byref(_weights(directions)), u.data_ptr(), to)
    return BackwardWeights(u, w)


def _can_be_read(directions: Directions) -> bool:
    return all(weight.dtype == torch.float32 and weight.is_contiguous() for one in directions for weight in one)


def _weights(directions: Directions) -> WeightArguments:
    kinds = zip(*directions, strict=True)
    pointers = [(ctypes.c_void_p * MOST_DIRECTIONS)(*[one.data_ptr() for one in kind]) for kind in kinds]
    rows, channels = directions[0].w.shape
    return WeightArguments(len(directions), rows // GATES, channels, *pointers)


class NativeGradients:
    """Sums of dW, dU and db over the pieces of a batch, in 32 bits."""

    def __init__(self) -> None:
        self._found: list[Weights] = []

    def add(self, dw: Tensor, du: Tensor | None, db: Tensor) -> None:
        """Add a piece's. Shapes: dw: (P*4D, C), du: (P, 4D, D) or None, db: (P, 4D)."""
        count, rows = db.shape
        is_first = not self._found
        if is_first:
            new, channels = db.new_empty, dw.shape[1]
            shapes = ((rows, channels), (rows, rows // GATES), (rows,), (rows,))
            self._found = [Weights(*map(new, shapes)) for _ in range(count)]
        arguments, to = ctypes.byref(_weights(self._found)), None if du is None else du.data_ptr()
        cells_for(dw.dtype).add_gradients(arguments, is_first, dw.data_ptr(), to, db.data_ptr())

    def of(self) -> list[Tensor]:
        """Return w, u, b and b' of each direction, in the order of `Directions`."""
        return [part for one in self._found for part in one]


class NativeForward:
    """Scratch for one piece of a batch, and the recursion over its steps.

    Args:
        packed: (P, 4D, K), of `side_by_side`.
        images: how many the piece has.
    """

    def __init__(self, axes: Axes, packed: Tensor, images: int, products: Products) -> None:
        directions, rows, width = packed.shape
        lstm_width = rows // GATES
        channels = width - BIAS_COLUMNS - lstm_width
        n, itemsize = images * axes.sequences, packed.element_size()
        self.axes, self.images, self.packed, self.products = axes, images, packed, products
        self.columns, self.cells = _columns(axes, lstm_width), cells_for(packed.dtype)
        self.inputs = packed.new_empty((directions, n, width))  # [x, 1, 1, 0, h]
        self.sums = packed.new_empty((directions, n, rows))
        self.state = packed.new_empty((directions, n, lstm_width), dtype=torch.float32)
        self.row = packed.new_empty(rows, dtype=torch.float32)
        self.arguments = ForwardArguments(
            directions=directions,
            steps=axes.steps,
            images=images,
            sequences=axes.sequences,
            width=lstm_width,
            token_bytes=channels * itemsize,
            row_bytes=width * itemsize,
            **{name: getattr(self, name).data_ptr() for name in ("inputs", "sums", "state", "row")},
        )

    def read(self, x: Tensor, out: Tensor, kept: Sequence[Tensor] | None) -> None:
        """Read the sequences of some images.

        Shapes:
            x: (b, H, W, C); out: (b, H, W, 4D), the axes' parts of which are written; kept: (T, P, n, 4D) for the
            gates, if backward will want them.
        """
        cells, arguments = self.cells, self.arguments
        x = x.to(self.packed.dtype).contiguous()
        arguments.x = _places(x, self.axes, [0] * len(self.columns))
        arguments.out = _places(out, self.axes, self.columns)
        arguments.gates = None if kept is None else kept[0].data_ptr()
        pointer = ctypes.byref(arguments)
        cells.start(pointer)
        for step in range(self.axes.steps):
            self.products.rows(self.inputs, self.packed, self.sums)
            cells.forward(pointer, step)


class NativeBackward:
    """Scratch for one piece of a batch, and the recursion over its steps, from the last.

    Args:
        images: how many the piece has.
    """

    def __init__(self, axes: Axes, weights: BackwardWeights, images: int, products: Products) -> None:
        new = weights.u.new_empty
        directions, rows, lstm_width = weights.u.shape
        steps, n = axes.steps, images * axes.sequences
        self.axes, self.weights, self.products = axes, weights, products
        self.images, self.columns = images, _columns(axes, lstm_width)
        self.cells = cells_for(weights.u.dtype)
        height, width = (steps, axes.sequences) if axes.axes[0] == 0 else (axes.sequences, steps)
        self.da_by_token = new((images, height, width, directions * rows))
        self.da_of_step = new((directions, n, rows))
        self.da = new((directions, steps - 1, n, rows))  # of all steps but the first, for dU
        self.before = new((directions, steps - 1, n, lstm_width))
        self.dh = new((directions, n, lstm_width))
        self.states = new((steps, directions, n, lstm_width), dtype=torch.float32)
        self.dstate = new((directions, n, lstm_width), dtype=torch.float32)
        self.no_state = new(lstm_width, dtype=torch.float32)
        self.db = new((directions, rows), dtype=torch.float32)
        self.row = new(rows, dtype=torch.float32)
        pointers = ("states", "no_state", "before", "da", "da_of_step", "dh", "dstate", "db", "row")
        self.arguments = BackwardArguments(
            directions=directions,
            steps=steps,
            images=images,
            sequences=axes.sequences,
            width=lstm_width,
            da_by_token=_places(self.da_by_token, axes, range(0, directions * rows, rows)),
            **{name: getattr(self, name).data_ptr() for name in pointers},
        )

    def read(self, dout: Tensor, out: Tensor, kept: Sequence[Tensor]) -> None:
        """Find da of every step. Shapes: dout, out: (b, H, W, 4D); kept: what `NativeForward.read` wrote."""
        cells, arguments = self.cells, self.arguments
        dout = dout.contiguous()
        arguments.out = _places(out, self.axes, self.columns)
        arguments.dout = _places(dout, self.axes, self.columns)
        arguments.gates = kept[0].data_ptr()
        pointer = ctypes.byref(arguments)
        cells.remember(pointer)
        for step in range(self.axes.steps - 1, -1, -1):
            cells.backward(pointer, step)
            if step:
                torch.bmm(self.da_of_step, self.weights.u, out=self.dh)

    def add_weights(self, x: Tensor, sums: NativeGradients) -> None:
        """Add this piece's dW, dU and db. Shapes: x: (b, H, W, C)."""
        dw = self.products.weights(self.da_by_token.flatten(0, 2)[None], x.flatten(0, 2)[None])[0]  # (P*4D, C)
        du = None
        if self.axes.steps > 1:
            du = self.products.weights(self.da.flatten(1, 2), self.before.flatten(1, 2))  # (P, 4D, D)
        sums.add(dw, du, self.db)

    def put_inputs(self, dx: Tensor, first: bool) -> None:
        """Write dx, or where another axis has written, add to it. Shapes: dx: (b, H, W, C)."""
        assert self.weights.w is not None
        found = self.products.inputs(self.da_by_token.flatten(0, 2)[None], self.weights.w.flatten(0, 1)[None])[0]
        found = found.view(dx.shape)
        if first:
            dx.copy_(found)
        else:
            dx.add_(found.to(dx.dtype))


def _places(tokens: Tensor, axes: Axes, columns: Sequence[int]) -> ctypes.Array[Place]:
    """Where each direction finds its part of the tokens, which begins at its column."""
    directions = product(axes.axes, (False, True))
    found = [place(tokens, column, *direction) for column, direction in zip(columns, directions, strict=True)]
    return (Place * MOST_DIRECTIONS)(*found)


def _columns(axes: Axes, lstm_width: int) -> list[int]:
    """Where each direction's part of the result begins."""
    return [(WAYS * axis + way) * lstm_width for axis in axes.axes for way in range(WAYS)]
