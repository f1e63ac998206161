"""The four LSTMs of a BiLSTM2D, read backwards: the gradients of lstm_forward.py.

With dy for the loss's gradient in y, and e = 2c as the state, backpropagation through time (Werbos 1990) is at step
t, from the last to the first, and from de = 0:

    dh  = dout_t + U^T da_{t+1}                    what the layer above wants, and what the next step wants
    do  = dh (2 r - 1)
    de  = de + 2 dh o r (1 - r)                    through r = sigma(e), h = o (2 r - 1)
    di  = 2 de g,  df = de e_{t-1},  dg = 2 de i
    da  = di i (1 - i),  df f (1 - f),  dg (1 - g^2) / 2,  do o (1 - o)            for the rows of g by 2 a_g
    de  = f de                                     for step t - 1

and, summed over steps and sequences, dW = sum da x_t^T, dU = sum da h_{t-1}^T, db = db' = sum da, where the rows of
g of all three count twice, as they do in the weights; dx_t = W^T da, summed over the four directions.

What is kept is i, f, g, o and e; r is computed again. The weights' gradients wait until all steps of a piece are
done: then they are a few large products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowmem_seq.models.lstm_forward import AXES, GATES, WAYS, Axes, Directions, along, wide_dtype
from lowmem_seq.models.products import Products

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class BackwardWeights(NamedTuple):
    """The weights as backward multiplies by them, the rows of g doubled."""

    u: Tensor
    """(P, 4D, D)."""
    w: Tensor | None
    """(axes, 8D, C), a forward direction above its backward one; None where x needs no gradient."""

    @classmethod
    def of(cls, directions: Directions, dtype: torch.dtype, x_needs: bool) -> BackwardWeights:
        """Stack some axes' weights."""
        u = _doubled([one.u for one in directions], dtype)  # (P, 4D, D)
        if not x_needs:
            return cls(u, None)
        w = _doubled([one.w for one in directions], dtype)  # (P, 4D, C)
        return cls(u, w.view(-1, WAYS * w.shape[1], w.shape[2]))  # (axes, 8D, C)


class WeightGradients:
    """Sums of dW, dU and db over the pieces of a batch, in the dtype of the states."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, part: Tensor, dtype: torch.dtype) -> None:
        """Add a piece's part, (axes, 2, 4D, ...)."""
        if name in self._sums:
            self._sums[name].add_(part)
        else:
            self._sums[name] = part.to(dtype)

    def of(self) -> list[Tensor]:
        """Return w, u, b and b' of each direction, in the order of `Directions`."""
        w, b = self._sums["w"].flatten(0, 1), self._sums["b"].flatten(0, 1)  # (P, 4D, C), (P, 4D)
        # sequences of one step meet no earlier state
        u = (
            self._sums["u"].flatten(0, 1) if "u" in self._sums else w.new_zeros((*b.shape, b.shape[1] // GATES))
        )  # (P, 4D, D)
        for one in (w, u, b):
            _g_of(one).mul_(2)
        return [
            part
            for one_w, one_u, one_b in zip(w, u, b, strict=True)
            for part in (one_w, one_u, one_b, one_b.clone())
        ]


class Backward:
    """Scratch for one piece of a batch, and the recursion over its steps, from the last.

    Args:
        images: how many the piece has.
    """

    def __init__(self, axes: Axes, weights: BackwardWeights, images: int, products: Products) -> None:
        new, dtype = weights.u.new_empty, weights.u.dtype
        wide = wide_dtype(dtype)
        directions, rows, lstm_width = weights.u.shape
        count, steps, n = len(axes.axes), axes.steps, images * axes.sequences
        self.axes, self.weights, self.products = axes, weights, products
        self.images, self.wide = images, wide
        self.dout = new((WAYS, steps, count, n, lstm_width), dtype=wide)  # by token
        self.da = new((count, steps, n, WAYS * rows))  # by token
        self.da_step = new((directions, n, rows))
        self.dh_step = new((directions, n, lstm_width))
        self.gates = new((directions, n, rows), dtype=wide) if dtype != wide else None
        self.dgates = new((directions, n, rows), dtype=wide) if dtype != wide else self.da_step
        self.cells = new((6, directions, n, lstm_width), dtype=wide)
        self.minus_one, self.zero = weights.u.new_tensor([-1.0, 0.0], dtype=wide).unbind(0)

    def read(self, dout: Tensor, out: Tensor, kept: Sequence[Tensor]) -> None:
        """Find da of every step. Shapes: dout, out: (b, H, W, 4D); kept: what `Forward.read` wrote."""
        self.out = out
        for place, axis in enumerate(self.axes.axes):
            ways = along(dout, axis).chunk(AXES * WAYS, dim=-1)[WAYS * axis :][:WAYS]  # (T, b, S, D) each
            for way, into in zip(ways, self.dout, strict=True):
                torch.unflatten(into[:, place], 1, (self.images, -1)).copy_(way)
        gates, states = kept
        self._steps(gates.unbind(0), states.unbind(0))

    def _steps(self, kept_gates: Sequence[Tensor], kept_states: Sequence[Tensor]) -> None:
        last = self.axes.steps - 1
        dout, dout_back = (one.unbind(0) for one in self.dout)  # T times (axes, n, D)
        da, da_back = (one.unbind(1) for one in self.da.chunk(WAYS, dim=-1))  # T times (axes, n, 4D)
        da_step, dgates, dh_step = self.da_step, self.dgates, self.dh_step
        da_forward, da_backward = torch.unflatten(da_step, 0, (-1, WAYS)).unbind(1)  # (axes, n, 4D)
        dh, de, r, product, *two_states = self.cells
        dh_forward, dh_backward = torch.unflatten(dh, 0, (-1, WAYS)).unbind(1)  # (axes, n, D)
        di, df, dg, do = dgates.chunk(GATES, dim=-1)  # (P, n, D) each
        di_and_df = dgates[..., : 2 * di.shape[-1]]
        for step in range(last, -1, -1):
            back = last - step  # the token where the backward directions are
            gates = kept_gates[step]
            if self.gates is not None:
                gates = self.gates.copy_(gates)
            i, f, g, o = gates.chunk(GATES, dim=-1)
            if step == last:
                dh_forward.copy_(dout[step])
                dh_backward.copy_(dout_back[back])
            else:
                torch.bmm(da_step, self.weights.u, out=dh_step)
                dh.copy_(dh_step)
                dh_forward.add_(dout[step])
                dh_backward.add_(dout_back[back])
            if self.gates is None:
                e, e_before = kept_states[step], kept_states[step - 1]
            else:
                e, e_before = two_states[step % 2], two_states[(step - 1) % 2]
                if step == last:
                    e.copy_(kept_states[step])
                if step:
                    e_before.copy_(kept_states[step - 1])
            torch.sigmoid(e, out=r)
            torch.add(self.minus_one, r, alpha=2, out=product)
            torch.mul(dh, product, out=do)
            dh.mul_(o)
            if step == last:
                _sigmoid_backward(dh, r, grad_input=de)
                de.mul_(2)
            else:
                de.add_(_sigmoid_backward(dh, r, grad_input=dh), alpha=2)
            torch.addcmul(self.zero, de, g, value=2, out=di)
            torch.mul(de, i, out=dg)
            if step:
                torch.mul(de, e_before, out=df)
                de.mul_(f)
            else:
                df.zero_()
            _sigmoid_backward(di_and_df, gates[..., : di_and_df.shape[-1]], grad_input=di_and_df)
            _tanh_backward(dg, g, grad_input=dg)
            _sigmoid_backward(do, o, grad_input=do)
            if dgates is not da_step:
                da_step.copy_(dgates)
            da[step].copy_(da_forward)
            da_back[back].copy_(da_backward)

    def add_weights(self, x: Tensor, sums: WeightGradients) -> None:
        """Add this piece's dW, dU and db. Shapes: x: (b, H, W, C)."""
        new, out, steps = self.da.new_empty, self.out, self.axes.steps
        count, _, n, _ = self.da.shape
        inputs = new((count, steps, n, x.shape[-1]))
        for place, axis in enumerate(self.axes.axes):
            torch.unflatten(inputs[place], 1, (self.images, -1)).copy_(along(x, axis))
        da = self.da.flatten(1, 2)  # (axes, T*n, 8D)
        dw = self.products.weights(da, inputs.flatten(1, 2))  # (axes, 8D, C)
        sums.add("w", torch.unflatten(dw, 1, (WAYS, -1)), self.wide)
        sums.add("b", torch.unflatten(da.sum(1), 1, (WAYS, -1)), self.wide)
        if steps == 1:
            return
        # h before each step, and da of that step: forward from the second token on, backward up to the last but one
        before = new((count, steps - 1, n, out.shape[-1] // (AXES * WAYS)))
        parts = []
        for way, (now, earlier) in enumerate(((slice(1, None), slice(-1)), (slice(-1), slice(1, None)))):
            for place, axis in enumerate(self.axes.axes):
                hidden = along(out, axis).chunk(AXES * WAYS, dim=-1)[WAYS * axis + way]  # (T, b, S, D)
                torch.unflatten(before[place], 1, (self.images, -1)).copy_(hidden[earlier])
            da = self.da.chunk(WAYS, dim=-1)[way][:, now].flatten(1, 2).contiguous()  # (axes, (T-1)*n, 4D)
            parts.append(torch.bmm(da.transpose(1, 2), before.flatten(1, 2)))
        sums.add("u", torch.stack(parts, dim=1), self.wide)

    def put_inputs(self, dx: Tensor, first: bool) -> None:
        """Write dx, or where another axis has written, add to it. Shapes: dx: (b, H, W, C)."""
        assert self.weights.w is not None
        found = self.products.inputs(self.da.flatten(1, 2), self.weights.w)  # (T*n, C) each
        for axis, one in zip(self.axes.axes, found, strict=True):
            part = one.view(self.axes.steps, self.images, self.axes.sequences, -1)  # (T, b, S, C)
            into = along(dx, axis)
            if first:
                into.copy_(part)
            else:
                into.add_(part.to(dx.dtype))  # of two dtypes, it takes twice as long
            first = False


def _doubled(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Stack weights in `dtype`, the rows of g doubled. Shapes: P times (4D, ...) -> (P, 4D, ...)."""
    stacked = weights[0].new_empty((len(weights), *weights[0].shape), dtype=dtype)
    for into, one in zip(stacked, weights, strict=True):
        into.copy_(one)
    _g_of(stacked).mul_(2)
    return stacked


def _g_of(weights: Tensor) -> Tensor:
    """The rows of gate g. Shapes: (P, 4D, ...) -> (P, D, ...), a view."""
    return weights.chunk(GATES, dim=1)[2]
