"""The baseline: a plain bidirectional LSTM over an image's patches as one long sequence.

What Sequencer2D is compared with: the same patches and a similar number of parameters, but the grid is flattened
row by row, so that vertical neighbours lie a whole row apart.
"""

from __future__ import annotations

from torch import Tensor, nn

from lowmem_seq.errors import UsageError
from lowmem_seq.models.bilstm2d import LstmPath
from lowmem_seq.models.initialisation import NORM_EPS, initialise_he
from lowmem_seq.models.noise import Noise, check_noise, keep_features
from lowmem_seq.models.patches import IMAGE_CHANNELS, PatchLinear, check_images
from lowmem_seq.models.recompute import recomputed


class VanillaBiLSTM(nn.Module):
    """Patches -> linear -> norm -> (BiLSTM -> norm) a layer -> mean over time -> head.

    The norm after each layer keeps a stack of three trainable at the learning rates that Sequencer2D uses.
    `recomputed_layers` is as for Sequencer2D.

    Args:
        num_classes: logits.
        layers: bidirectional LSTM layers.
        width: channels of a token before the first LSTM.
        lstm_width: hidden units of each direction.
        patch_size: side of the patches, in pixels.
        dropout: probability that a pooled feature is dropped, for whoever draws the noise.
    """

    drop_path_rates: tuple[float, ...] = ()
    """There are no residual branches to skip."""
    lstm_paths: tuple[LstmPath, ...] = ("torch",)
    """Its sequences lie along one axis; the function reads two."""

    def __init__(
        self,
        num_classes: int,
        layers: int,
        width: int,
        lstm_width: int,
        patch_size: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.feature_width = 2 * lstm_width
        self.dropout = dropout
        self.layer_count = layers
        self.recomputed_layers = 0
        self.patches = nn.Sequential(
            PatchLinear(IMAGE_CHANNELS, width, patch_size), nn.LayerNorm(width, eps=NORM_EPS)
        )
        self.layers = nn.ModuleList(
            BiLSTMLayer(width if index == 0 else self.feature_width, lstm_width) for index in range(layers)
        )
        self.head = nn.Linear(self.feature_width, num_classes)
        initialise_he(self)

    @property
    def lstm_path(self) -> LstmPath:
        """How its LSTMs are computed.

        Raises:
            UsageError: set to another path.
        """
        return "torch"

    @lstm_path.setter
    def lstm_path(self, path: LstmPath) -> None:
        if path not in self.lstm_paths:
            raise UsageError(f"a vanilla BiLSTM has no LSTM path {path!r}.", f"use {', '.join(self.lstm_paths)}")

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Shapes: images: (B, H, W, 3), normalised -> logits (B, num_classes).

        Raises:
            UsageError: images that can't be cut into these patches, or noise of another shape.
        """
        check_images(images, (self.patch_size,))
        if noise is not None:
            check_noise(noise, 0, len(images), self.feature_width)
        x = self.patches(images)  # (B, H/p, W/p, C)
        x = x.flatten(1, 2)  # (B, T, C)
        for index, layer in enumerate(self.layers):
            x = recomputed(layer, x) if index < self.recomputed_layers else layer(x)  # (B, T, 2D)
        features = x.mean(dim=1)  # (B, 2D)
        logits: Tensor = self.head(keep_features(features, noise))
        return logits


class BiLSTMLayer(nn.Module):
    """A bidirectional LSTM and the norm of what it gives."""

    def __init__(self, width: int, lstm_width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, lstm_width, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * lstm_width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x: (B, T, C) -> (B, T, 2D)."""
        y: Tensor = self.norm(self.lstm(x)[0])
        return y
