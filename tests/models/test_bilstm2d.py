from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lowmem_seq.models import BiLSTM2D

SHAPES = [(2, 3, 5, 8), (1, 4, 4, 8), (3, 1, 6, 8), (2, 5, 1, 8)]


def by_lstm_loops(layer: BiLSTM2D, x: Tensor) -> Tensor:
    """One column and one row at a time through torch's LSTM."""
    height, width = x.shape[1:3]
    columns = torch.stack([layer.vertical(x[:, :, w])[0] for w in range(width)], dim=2)
    rows = torch.stack([layer.horizontal(x[:, h])[0] for h in range(height)], dim=1)
    mixed: Tensor = layer.fc(torch.cat([columns, rows], dim=-1))
    return mixed


def lstm_by_hand(lstm: nn.LSTM, sequence: Tensor, suffix: str) -> Tensor:
    """One direction over (T, C), as the LSTM's equations read (arXiv 2205.01972, section 3.1)."""
    w_x, w_h, b_x, b_h = (
        getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    hidden = cell = sequence.new_zeros(lstm.hidden_size)
    outputs = []
    for x in sequence:
        i, f, g, o = (w_x @ x + b_x + w_h @ hidden + b_h).chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs)


def both_ways(lstm: nn.LSTM, sequence: Tensor) -> Tensor:
    backward = lstm_by_hand(lstm, sequence.flip(0), "_reverse").flip(0)
    return torch.cat([lstm_by_hand(lstm, sequence, ""), backward], dim=-1)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_loops_of_torch_lstm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = BiLSTM2D(8, 3)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), by_lstm_loops(layer, x), atol=1e-5, rtol=1e-5)


def test_equals_the_equations() -> None:
    torch.manual_seed(0)
    layer = BiLSTM2D(4, 3).double()
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    columns = torch.stack([both_ways(layer.vertical, x[0, :, w]) for w in range(5)], dim=1)
    rows = torch.stack([both_ways(layer.horizontal, x[0, h]) for h in range(3)])
    expected = layer.fc(torch.cat([columns, rows], dim=-1))[None]
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=1e-12)


def test_gradients_equal_those_of_the_loops() -> None:
    torch.manual_seed(0)
    layer = BiLSTM2D(8, 3)
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    toward = torch.randn(2, 3, 5, 8)
    inputs = [x, *layer.parameters()]
    ours = torch.autograd.grad((layer(x) * toward).sum(), inputs)
    loops = torch.autograd.grad((by_lstm_loops(layer, x) * toward).sum(), inputs)
    for found, expected in zip(ours, loops, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    layer = BiLSTM2D(3, 2).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        result: Tensor = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))
        return result

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()))


def test_each_token_sees_its_row_and_column_and_no_more() -> None:
    torch.manual_seed(0)
    layer = BiLSTM2D(8, 3)
    x = torch.randn(1, 4, 5, 8, requires_grad=True)
    layer(x)[0, 1, 2].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(dim=-1) > 0
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[1, :] = True
    expected[:, 2] = True
    assert torch.equal(seen, expected)
