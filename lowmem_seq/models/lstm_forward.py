"""The four LSTMs of a BiLSTM2D, read in step with each other: the forward recursion.

Each direction of each axis is an LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000),
with weights W and U, biases b and b', in nn.LSTM's order of gates i, f, g, o. At its step t

    a = W x_t + b + U h_{t-1} + b'                          preactivations, (4D,)
    i, f, o = sigma(a_i), sigma(a_f), sigma(a_o)            input, forget and output gate
    g       = tanh(a_g)             = 2 s - 1,              s = sigma(2 a_g)
    c_t     = f c_{t-1} + i g
    h_t     = o tanh(c_t)           = o (2 r - 1),          r = sigma(2 c_t)

A sigmoid costs a tenth of a tanh in ATen, so there are sigmoids only. The 2 of 2 a_g is multiplied into the rows of
g of the weights, which is exact, so that one call takes all four gates; the state kept is e = 2c:

    e_t = f e_{t-1} + 2 i g,                                r = sigma(e_t)

s and r are rounded at the size of 1/2, so g and tanh(c) are off by about 1e-7 in 32 bits however small they are: in
fp32, tokens of size 1e-4 without biases give 3 right digits instead of nn.LSTM's 6. g takes the place of s, and is
kept so: kept in 16 bits, s would lose it where it is small.

x_t, a one for each bias and h_{t-1} lie side by side in memory, so a step's preactivations are one matrix product
with one rounding. The bias takes two columns, its value rounded to the product's dtype and what was lost in that.
Where products are in 16 bits, gates and states are computed in 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowmem_seq.models.products import Products

AXES = 2
WAYS = 2  # forward and backward
GATES = 4
BIAS_COLUMNS = 8  # two, and zeros up to a multiple of 16 bytes
CELLS_AT_ONCE = 12288
"""Hidden units times sequences that a direction takes a step with: what that touches stays in a cache of 1 MB."""


class Axes(NamedTuple):
    """The axes of a token grid that are read together, for they have equally many steps and sequences."""

    axes: tuple[int, ...]
    """0: vertical, down and up the columns; 1: horizontal, along the rows and back."""
    steps: int
    sequences: int
    """Of each image."""

    @classmethod
    def of(cls, height: int, width: int) -> list[Axes]:
        """Both axes of a square grid together; else one after the other."""
        if height == width:
            return [cls((0, 1), height, width)]
        return [cls((0,), height, width), cls((1,), width, height)]

    def pieces(self, batch: int, lstm_width: int) -> list[slice]:
        """Cut a batch into runs of images of about equal length, each small enough for the cache."""
        most = max(1, CELLS_AT_ONCE // (self.sequences * lstm_width))
        count = -(-batch // most)
        length = -(-batch // count) if count else 1
        return [slice(start, min(start + length, batch)) for start in range(0, batch, length)]


def along(x: Tensor, axis: int) -> Tensor:
    """View tokens step by step. Shapes: x: (B, H, W, C) -> (H, B, W, C) for axis 0, (W, B, H, C) for axis 1."""
    return x.permute(1, 0, 2, 3) if axis == 0 else x.permute(2, 0, 1, 3)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of gates and states, for products in `dtype`."""
    return torch.float32 if dtype.itemsize < 4 else dtype


class Weights(NamedTuple):
    """One direction's, as nn.LSTM names them: (4D, C), (4D, D), (4D,), (4D,)."""

    w: Tensor
    u: Tensor
    b: Tensor
    b_too: Tensor


Directions = Sequence[Weights]
"""Vertical forward, vertical backward, horizontal forward, horizontal backward; P of them."""


def side_by_side(directions: Directions, dtype: torch.dtype) -> Tensor:
    """Return [W, b, what b lost, 0, U] of each direction, the rows of g doubled. Shapes: (P, 4D, C + 8 + D)."""
    rows, channels = directions[0].w.shape
    lstm_width = rows // GATES
    width = channels + BIAS_COLUMNS + lstm_width
    packed = directions[0].w.new_empty((len(directions), rows, width), dtype=dtype)
    for into, one in zip(packed, directions, strict=True):
        into[:, :channels].copy_(one.w)
        into[:, channels + BIAS_COLUMNS :].copy_(one.u)
    bias = torch.stack([one.b + one.b_too for one in directions])  # (P, 4D)
    packed[..., channels] = bias
    packed[..., channels + 1 : channels + BIAS_COLUMNS] = 0
    if dtype != bias.dtype:
        packed[..., channels + 1] = bias - packed[..., channels]
    packed[:, 2 * lstm_width : 3 * lstm_width].mul_(2)
    return packed


class Forward:
    """Scratch for one piece of a batch, and the recursion over its steps.

    All P directions take a step together: at step t the forward ones are at the t-th token, the backward ones at
    the t-th from the end. What a step touches is small and stays in the cache, but for tokens and what is kept.

    Args:
        packed: (P, 4D, K), of `side_by_side`.
        images: how many the piece has.
    """

    def __init__(self, axes: Axes, packed: Tensor, images: int, products: Products) -> None:
        wide = wide_dtype(packed.dtype)
        directions, rows, width = packed.shape
        lstm_width = rows // GATES
        n = images * axes.sequences
        self.axes, self.images, self.packed, self.products = axes, images, packed, products
        self.channels = width - BIAS_COLUMNS - lstm_width
        self.inputs = packed.new_empty((directions, n, width))  # [x, 1, 1, 0, h]
        self.inputs[..., self.channels : self.channels + 2] = 1
        self.inputs[..., self.channels + 2 : self.channels + BIAS_COLUMNS] = 0
        self.hidden = packed.new_empty((axes.steps, directions, n, lstm_width))
        self.sums = None if packed.dtype == wide else packed.new_empty((directions, n, rows))
        self.gates = packed.new_empty((directions, n, rows), dtype=wide)
        self.state = packed.new_empty((directions, n, lstm_width), dtype=wide)
        self.r = torch.empty_like(self.state)
        self.minus_one, self.zero = packed.new_tensor([-1.0, 0.0], dtype=wide).unbind(0)

    def read(self, x: Tensor, out: Tensor, kept: Sequence[Tensor] | None) -> None:
        """Read the sequences of some images.

        Shapes:
            x: (b, H, W, C); out: (b, H, W, 4D), the axes' parts of which are written; kept: (T, P, n, 4D) for the
            gates i, f, g, o and (T, P, n, D) for the states, if backward will want them.
        """
        tokens = [along(x, axis).unbind(0) for axis in self.axes.axes]  # T times (b, S, C) each
        self._steps(tokens, None if kept is None else (kept[0].unbind(0), kept[1].unbind(0)))
        hidden = torch.unflatten(self.hidden, 2, (self.images, -1))  # (T, P, b, S, D)
        for place, axis in enumerate(self.axes.axes):
            forward, backward = along(out, axis).chunk(AXES * WAYS, dim=-1)[WAYS * axis :][:WAYS]  # (T, b, S, D)
            forward.copy_(hidden[:, WAYS * place])
            backward.copy_(hidden[:, WAYS * place + 1].flip(0))

    def _steps(
        self, tokens: Sequence[Sequence[Tensor]], kept: tuple[Sequence[Tensor], Sequence[Tensor]] | None
    ) -> None:
        e, r, gates, sums = self.state, self.r, self.gates, self.sums
        x_slots = torch.unflatten(self.inputs[..., : self.channels], 1, (self.images, -1)).unbind(0)  # (b, S, C)
        h_slot = self.inputs[..., self.channels + BIAS_COLUMNS :]  # (P, n, D)
        h_slot.zero_()
        i, f, g, o = gates.chunk(GATES, dim=-1)  # (P, n, D) each
        for step, hidden in enumerate(self.hidden.unbind(0)):
            for number, slot in enumerate(x_slots):
                slot.copy_(tokens[number // WAYS][-1 - step if number % WAYS else step])
            if sums is not None:
                self.products.rows(self.inputs, self.packed, sums)
                gates.copy_(sums)
            else:
                if kept is not None:
                    gates = kept[0][step]
                    i, f, g, o = gates.chunk(GATES, dim=-1)
                self.products.rows(self.inputs, self.packed, gates)
            gates.sigmoid_()
            torch.add(self.minus_one, g, alpha=2, out=g)  # from s
            if step == 0:
                torch.addcmul(self.zero, i, g, value=2, out=e)
            else:
                e.mul_(f)
                e.addcmul_(i, g, value=2)
            if kept is not None:
                if sums is not None:
                    kept[0][step].copy_(gates)
                kept[1][step].copy_(e)
            torch.sigmoid(e, out=r)
            torch.add(self.minus_one, r, alpha=2, out=r)
            hidden.copy_(r.mul_(o))
            h_slot.copy_(hidden)
