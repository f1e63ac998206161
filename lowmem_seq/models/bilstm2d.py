"""BiLSTM2D: the layer that mixes tokens in a Sequencer2D (arXiv 2205.01972, section 3.2, figure 2b).

Every column of the token grid is read as a sequence by one bidirectional LSTM, every row by another; each token's
two results are concatenated and mapped back to its channels by a pointwise linear layer:

    H_ver[:, w] = BiLSTM_ver(X[:, w]),  H_hor[h, :] = BiLSTM_hor(X[h, :]),  FC(concatenate(H_ver, H_hor))
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lowmem_seq.models.linear import Linear
from lowmem_seq.models.lstm_function import read_grid

LstmPath: TypeAlias = Literal["torch", "function", "native"]
"""How LSTMs are computed: by nn.LSTM, the reference; or by read_grid of lstm_function.py, with compiled cells or
without."""


class BiLSTM2D(nn.Module):
    """A vertical and a horizontal bidirectional LSTM over a grid of tokens, side by side.

    `lstm_path` can be set at any time: it changes time, memory, and results by rounding. The weights are the same.

    Args:
        width: channels of a token (the paper's C).
        lstm_width: hidden units of each of the four directions (the paper's D).
    """

    def __init__(self, width: int, lstm_width: int) -> None:
        super().__init__()
        self.vertical = nn.LSTM(width, lstm_width, batch_first=True, bidirectional=True)
        self.horizontal = nn.LSTM(width, lstm_width, batch_first=True, bidirectional=True)
        self.fc = Linear(4 * lstm_width, width)
        self.lstm_path: LstmPath = "torch"

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x: (B, H, W, C) -> (B, H, W, C); H and W may differ and may change between calls."""
        if self.lstm_path == "torch":
            mixed = torch.cat([read_columns(self.vertical, x), read_rows(self.horizontal, x)], dim=-1)
        else:
            native = self.lstm_path == "native"
            mixed = read_grid(self.vertical, self.horizontal, x, native)  # (B, H, W, 4D)
        tokens: Tensor = self.fc(mixed)
        return tokens


def read_columns(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Run a bidirectional LSTM down (and up) every column.

    Shapes:
        x: (B, H, W, C) -> (B, H, W, 2D)
    """
    return read_rows(lstm, x.transpose(1, 2)).transpose(1, 2)


def read_rows(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Run a bidirectional LSTM along (and back) every row.

    Shapes:
        x: (B, H, W, C) -> (B, H, W, 2D)
    """
    batch, height, width, channels = x.shape
    rows: Tensor = lstm(x.reshape(batch * height, width, channels))[0]  # (B*H, W, 2D)
    return rows.reshape(batch, height, width, 2 * lstm.hidden_size)  # (B, H, W, 2D)
