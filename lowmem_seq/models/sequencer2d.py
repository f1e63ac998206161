"""Sequencer2D, an image classifier whose tokens meet through LSTMs (arXiv 2205.01972, section 3.2 and figure 2).

Images are cut into patches; each stage is a patch embedding or merging and then Sequencer2D layers; a last norm,
the mean over the grid and a linear head give the logits. Channels are last throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from lowmem_seq.compiled import library
from lowmem_seq.errors import UsageError
from lowmem_seq.models.bilstm2d import BiLSTM2D, LstmPath
from lowmem_seq.models.initialisation import NORM_EPS, initialise_he, initialise_paper
from lowmem_seq.models.linear import Linear
from lowmem_seq.models.noise import Noise, check_noise, keep_branch, keep_features
from lowmem_seq.models.patches import IMAGE_CHANNELS, PatchLinear, check_images
from lowmem_seq.models.recompute import recomputed


class Sequencer2D(nn.Module):
    """The classifier.

    `recomputed_layers` can be set at any time: so many of the `layer_count` layers, from the first, which hold the
    most tokens, are computed a second time in backward. It changes memory and time, and no bit of a result.
    `lstm_path`, one of `lstm_paths`, can be too: how all layers compute their LSTMs.

    Args:
        num_classes: logits.
        layers: Sequencer2D layers in each stage.
        widths: channels of a token in each stage.
        lstm_widths: hidden units of each of the four LSTM directions, by stage.
        patch_sizes: side of the patches that become a stage's tokens: in pixels for the first stage, in tokens of
            the stage before for the others (1: a pointwise linear layer).
        mlp_ratio: hidden units of the channel MLP over the token's channels.
        embed_norm: whether a LayerNorm follows the patch embedding.
        final_pointwise: whether a pointwise linear layer stands before the last norm.
        drop_path: rate of the last layer in `drop_path_rates`.
        dropout: probability that a pooled feature is dropped. Both rates are for whoever draws the noise.
        initialisation: see `initialisation.py`.
    """

    lstm_paths: tuple[LstmPath, ...] = tuple(
        path for path in get_args(LstmPath) if path != "native" or library() is not None
    )

    def __init__(
        self,
        num_classes: int,
        layers: Sequence[int],
        widths: Sequence[int],
        lstm_widths: Sequence[int],
        patch_sizes: Sequence[int],
        mlp_ratio: float = 3.0,
        embed_norm: bool = False,
        final_pointwise: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        initialisation: Literal["paper", "he"] = "he",
    ) -> None:
        super().__init__()
        self.patch_sizes = tuple(patch_sizes)
        self.feature_width = widths[-1]
        self.dropout = dropout
        self.layer_count = sum(layers)
        self.recomputed_layers = 0
        self.drop_path_rates = _linear_rates(self.layer_count, drop_path)
        self.stages = nn.ModuleList(
            Stage(width_in, width, depth, lstm_width, patch_size, mlp_ratio, norm_patches)
            for (width_in, width), depth, lstm_width, patch_size, norm_patches in zip(
                pairwise((IMAGE_CHANNELS, *widths)),
                layers,
                lstm_widths,
                patch_sizes,
                (embed_norm, *(False for _ in layers[1:])),
                strict=True,
            )
        )
        self.pointwise = Linear(widths[-1], widths[-1]) if final_pointwise else None
        self.norm = nn.LayerNorm(widths[-1], eps=NORM_EPS)
        self.head = Linear(widths[-1], num_classes)
        self.lstm_path = "torch"
        (initialise_paper if initialisation == "paper" else initialise_he)(self)

    @property
    def lstm_path(self) -> LstmPath:
        """The path that all layers take.

        Raises:
            UsageError: set to something that is no path.
        """
        return self._lstm_path

    @lstm_path.setter
    def lstm_path(self, path: LstmPath) -> None:
        if path not in self.lstm_paths:
            raise UsageError(f"there is no LSTM path {path!r}.", f"use one of {', '.join(self.lstm_paths)}")
        self._lstm_path = path
        for module in self.modules():
            if isinstance(module, BiLSTM2D):
                module.lstm_path = path

    def forward(self, images: Tensor, noise: Noise | None = None) -> Tensor:
        """Shapes: images: (B, H, W, 3), normalised -> logits (B, num_classes).

        Raises:
            UsageError: images that can't be cut into these patches, or noise of another shape.
        """
        check_images(images, self.patch_sizes)
        if noise is not None:
            check_noise(noise, len(self.drop_path_rates), len(images), self.feature_width)
        numbered = enumerate(_by_layer(noise, self.layer_count))
        x = images
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x = stage.patches(x)  # (B, H/p, W/p, C)
            for layer in stage.layers:
                index, keep = next(numbered)
                again = index < self.recomputed_layers
                x = recomputed(layer, x, keep) if again else layer(x, keep)  # (B, H/p, W/p, C)
        if self.pointwise is not None:
            x = self.pointwise(x)
        features = self.norm(x).mean(dim=(1, 2))  # (B, C)
        logits: Tensor = self.head(keep_features(features, noise))
        return logits


class Stage(nn.Module):
    """Tokens of one size: the patches that make them, and the layers that mix them."""

    def __init__(
        self,
        width_in: int,
        width: int,
        depth: int,
        lstm_width: int,
        patch_size: int,
        mlp_ratio: float,
        norm_patches: bool,
    ) -> None:
        super().__init__()
        self.patches = nn.Sequential(PatchLinear(width_in, width, patch_size))
        if norm_patches:
            self.patches.append(nn.LayerNorm(width, eps=NORM_EPS))
        self.layers = nn.ModuleList(Sequencer2DLayer(width, lstm_width, mlp_ratio) for _ in range(depth))


class Sequencer2DLayer(nn.Module):
    """Two residual branches: tokens are mixed by a BiLSTM2D, then channels by an MLP (figure 2e)."""

    def __init__(self, width: int, lstm_width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.bilstm2d = BiLSTM2D(width, lstm_width)
        self.channel_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = ChannelMLP(width, int(mlp_ratio * width))

    def forward(self, x: Tensor, keep_path: Tensor | None = None) -> Tensor:
        """Shapes: x: (B, H, W, C); keep_path: (2, B), the token branch's first -> (B, H, W, C)."""
        keep_tokens, keep_channels = (None, None) if keep_path is None else keep_path
        x = keep_branch(x, self.bilstm2d(self.token_norm(x)), keep_tokens)
        return keep_branch(x, self.mlp(self.channel_norm(x)), keep_channels)


class ChannelMLP(nn.Module):
    """Two linear layers with an exact GELU (arXiv 1606.08415) between them, on each token by itself."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = Linear(width, hidden_width)
        self.activation = nn.GELU()
        self.contract = Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x: (..., C) -> (..., C)."""
        y: Tensor = self.contract(self.activation(self.expand(x)))
        return y


def _linear_rates(layers: int, last: float) -> tuple[float, ...]:
    """The stochastic depth of every branch: 0 in the first layer, `last` in the last (and in an only one)."""
    rates = [last * index / (layers - 1) for index in range(layers)] if layers > 1 else [last]
    return tuple(rate for rate in rates for _branch in range(2))


def _by_layer(noise: Noise | None, layers: int) -> list[Tensor | None]:
    """What each layer's branches keep, (2, B) a layer."""
    if noise is None or noise.keep_path is None:
        return [None] * layers
    return list(noise.keep_path.reshape(layers, 2, -1))  # (layers, 2, B)
