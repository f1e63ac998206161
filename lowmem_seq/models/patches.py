"""Images cut into patches, and tokens merged into coarser ones: a convolution whose kernel equals its stride.

Such a convolution touches every pixel once, so it is a reshape and one matrix product. Written so it keeps the
channels last without a permutation of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lowmem_seq.errors import UsageError
from lowmem_seq.models.linear import Linear

IMAGE_CHANNELS = 3


def cut_patches(x: Tensor, patch_size: int) -> Tensor:
    """Gather each patch of p x p tokens into one, its rows first, then its columns, then its channels.

    Shapes:
        x: (B, H, W, C) -> (B, H/p, W/p, p*p*C); H and W are multiples of p.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // patch_size, width // patch_size
    if patch_size == 1:
        return x
    x = x.reshape(batch, rows, patch_size, columns, patch_size, channels)  # (B, H/p, p, W/p, p, C)
    x = x.permute(0, 1, 3, 2, 4, 5)  # (B, H/p, W/p, p, p, C)
    return x.reshape(batch, rows, columns, patch_size * patch_size * channels)  # (B, H/p, W/p, p*p*C)


class PatchLinear(nn.Module):
    """A linear layer over each patch: the patch embedding, and the patch merging between stages.

    With a patch size of 1 it is a pointwise linear layer.
    """

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = Linear(patch_size * patch_size * channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x: (B, H, W, C) -> (B, H/p, W/p, width)."""
        tokens: Tensor = self.linear(cut_patches(x, self.patch_size))
        return tokens


def check_images(images: Tensor, patch_sizes: Sequence[int]) -> None:
    """Refuse images that can't be cut: one patch of the last stage must fit a whole number of times.

    Shapes:
        images: (B, H, W, 3)

    Raises:
        UsageError: another number of dimensions or channels, or a side that is no multiple of all patch sizes.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[-1] != IMAGE_CHANNELS:
        raise UsageError(
            f"images of shape {shape} are not (batch, height, width, {IMAGE_CHANNELS}).",
            "bring channels to the end: images.permute(0, 2, 3, 1)",
        )
    unit = math.prod(patch_sizes)
    _, height, width, _ = shape
    if height % unit or width % unit or not height or not width:
        wrong = height if height % unit or not height else width
        below, above = wrong // unit * unit, (wrong // unit + 1) * unit
        sizes = f"--image-size {above}" if below == 0 else f"--image-size {below} or {above}"
        product = " x ".join(str(size) for size in patch_sizes)
        raise UsageError(
            f"images of {height} x {width} pixels can't be cut into patches of {product} pixels: "
            f"both sides must be multiples of {unit}.",
            f"use {sizes}, or a preset with other patches",
        )
