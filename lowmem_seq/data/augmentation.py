"""Training images changed at random, a whole batch at a time.

Nothing here draws: `draws` holds uniform numbers keyed by (seed, epoch, sample), one column a decision, so an
image is changed in the same way in whichever micro-batch it is computed. Images are channels-last throughout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lowmem_seq.config import AugmentationConfig

FLIP, SHIFT_X, SHIFT_Y, ROTATE, ZOOM, STRETCH, CONTRAST, BRIGHTNESS, SATURATION = range(9)
ERASE, ERASE_SIZE, ERASE_X, ERASE_Y = range(9, 13)
AUGMENTATION_DRAWS = 13
MIX_KIND, MIX_SHARE, MIX_X, MIX_Y = range(4)
MIXING_DRAWS = 4


def normalise(images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Bring bytes to zero mean and unit deviation, by channel.

    Args:
        images: (B, H, W, 3), uint8.
        mean: (3,), in units of 0 to 1.
        deviation: (3,), in units of 0 to 1; of a channel that is constant it is taken as one byte.

    Returns:
        (B, H, W, 3), float32.
    """
    return (images.float() - mean * 255.0) / (deviation * 255.0).clamp(min=1.0)


def augment(images: Tensor, draws: Tensor, settings: AugmentationConfig) -> Tensor:
    """Move, mirror, recolour and erase as `settings` says.

    Args:
        images: (B, H, W, 3), normalised, so that what is shifted in is the mean colour.
        draws: (B, AUGMENTATION_DRAWS), uniform in [0, 1).
        settings: how far each change may go.

    Returns:
        (B, H, W, 3), float32.
    """
    if settings.rotate_degrees > 0 or settings.zoom > 0:
        images = _warp(images, draws, settings)
    elif settings.crop_padding > 0 or settings.flip:
        images = _shift_and_flip(images, draws, settings)
    if settings.colour > 0:
        images = _recolour(images, draws, settings.colour)
    if settings.erase > 0:
        images = _erase(images, draws, settings.erase)
    return images


def _shift_and_flip(images: Tensor, draws: Tensor, settings: AugmentationConfig) -> Tensor:
    """Crop a window at a whole-pixel offset out of the padded image, mirrored for half of the samples."""
    count, height, width, _ = images.shape
    pad = settings.crop_padding
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))  # (B, H + 2p, W + 2p, 3)
    offsets = (draws[:, [SHIFT_Y, SHIFT_X]] * (2 * pad + 1)).long()  # (B, 2)
    rows = offsets[:, :1] + torch.arange(height)  # (B, H)
    columns = torch.arange(width).expand(count, width)  # (B, W)
    if settings.flip:
        columns = torch.where(draws[:, FLIP, None] < 0.5, columns.flip(1), columns)
    columns = offsets[:, 1:] + columns  # (B, W)
    samples = torch.arange(count)[:, None, None]
    return padded[samples, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)


def _warp(images: Tensor, draws: Tensor, settings: AugmentationConfig) -> Tensor:
    """Rotate, scale, stretch, shift and mirror in one bilinear resampling."""
    signed = draws * 2 - 1
    angle = signed[:, ROTATE] * math.radians(settings.rotate_degrees)
    scale = torch.exp(signed[:, ZOOM] * settings.zoom)
    stretch = torch.exp(signed[:, STRETCH] * settings.zoom / 2)
    mirror = torch.where(draws[:, FLIP] < 0.5, -1.0, 1.0) if settings.flip else torch.ones(len(images))
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    reach = 2 * settings.crop_padding / torch.tensor([images.shape[2], images.shape[1]])
    shift = signed[:, [SHIFT_X, SHIFT_Y]] * reach  # (B, 2), in half-images
    matrices = torch.stack(
        [
            torch.stack([cosine * stretch * mirror, -sine, shift[:, 0]], 1),
            torch.stack([sine * mirror, cosine / stretch, shift[:, 1]], 1),
        ],
        1,
    )  # (B, 2, 3)
    planes = images.permute(0, 3, 1, 2)  # (B, 3, H, W)
    grid = F.affine_grid(matrices, list(planes.shape), align_corners=False)  # (B, H, W, 2)
    warped = F.grid_sample(planes, grid, padding_mode="zeros", align_corners=False)  # (B, 3, H, W)
    return warped.permute(0, 2, 3, 1)  # (B, H, W, 3)


def _recolour(images: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Change contrast about the image's mean, brightness, and saturation about each pixel's grey."""
    signed = (draws * 2 - 1)[:, :, None, None, None] * strength  # (B, draws, 1, 1, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, torch.exp(signed[:, CONTRAST])) + signed[:, BRIGHTNESS]
    grey = images.mean(3, keepdim=True)
    return torch.lerp(grey, images, torch.exp(signed[:, SATURATION]))


def _erase(images: Tensor, draws: Tensor, share: float) -> Tensor:
    """Set a square to the mean colour in `share` of the images (arXiv 1708.04896, square)."""
    side = 0.2 + 0.3 * draws[:, ERASE_SIZE]
    inside = _rectangle(images, draws[:, ERASE_X], draws[:, ERASE_Y], side)
    return images.masked_fill((inside & (draws[:, ERASE] < share)[:, None, None])[..., None], 0.0)


def _rectangle(images: Tensor, x: Tensor, y: Tensor, side: Tensor) -> Tensor:
    """Return where a rectangle lies: (B, H, W) bool; centre and side (B,) in shares of the image."""
    _, height, width, _ = images.shape
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    within_rows = (rows - y[:, None]).abs() < side[:, None] / 2  # (B, H)
    within_columns = (columns - x[:, None]).abs() < side[:, None] / 2  # (B, W)
    return within_rows[:, :, None] & within_columns[:, None, :]  # (B, H, W)


def mix(
    images: Tensor, targets: Tensor, partners: Tensor, draws: Tensor, settings: AugmentationConfig
) -> tuple[Tensor, Tensor]:
    """Blend samples with their partners (mixup), or paste a part of the partner (cutmix).

    Args:
        images: (B, H, W, 3), augmented.
        targets: (B, K), probabilities.
        partners: (B,), the position in this batch of each sample's partner.
        draws: (B, MIXING_DRAWS), uniform in [0, 1).
        settings: the shares of samples that are mixed in each way.

    Returns:
        Images (B, H, W, 3) and targets (B, K) with the partners' shares in them.

    Source: mixup, arXiv 1710.09412, with the share drawn uniformly and the sample keeping the larger one;
    CutMix, arXiv 1905.04899, the rectangle's area as drawn less what lies outside of the image.
    """
    blended = draws[:, MIX_KIND] < settings.mixup
    pasted = ~blended & (draws[:, MIX_KIND] < settings.mixup + settings.cutmix)
    share = torch.where(blended, draws[:, MIX_SHARE] / 2, 0.0)  # (B,), the partner's
    mixed = torch.lerp(images, images[partners], share[:, None, None, None])
    rectangle = _rectangle(images, draws[:, MIX_X], draws[:, MIX_Y], draws[:, MIX_SHARE].sqrt())
    rectangle &= pasted[:, None, None]
    mixed = torch.where(rectangle[..., None], images[partners], mixed)
    share = torch.where(pasted, rectangle.float().mean((1, 2)), share)
    return mixed, torch.lerp(targets, targets[partners], share[:, None])
