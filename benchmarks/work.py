"""The work that an image is: floating-point operations of a Sequencer2D's matrix products, from its sizes.

Two for each product that is added up. LayerNorm, activations, gates and augmentation are left out. The paper's
table 1 (arXiv 2205.01972) counts a product with its sum as one, and a little of the rest: 8.4, 11.1 and 16.6 G.
"""

from __future__ import annotations

from itertools import pairwise

from lowmem_seq.config import Sequencer2DConfig

IMAGE_CHANNELS = 3
DIRECTIONS, GATES = 4, 4
TRAINED_BY_FORWARD = 3
"""Backward multiplies twice for each product of forward: for the gradients of the inputs, and of the weights."""


def forward_flops(model: Sequencer2DConfig, image_size: int, class_count: int) -> int:
    """Return what evaluating one square image takes."""
    products, side = 0, image_size
    stages = zip(
        pairwise((IMAGE_CHANNELS, *model.widths)), model.layers, model.lstm_widths, model.patch_sizes, strict=True
    )
    for (width_in, width), layers, lstm_width, patch_size in stages:
        side //= patch_size
        patches = patch_size**2 * width_in * width
        lstms = DIRECTIONS * GATES * lstm_width * (width + lstm_width)
        back_to_channels = DIRECTIONS * lstm_width * width
        mlp = 2 * width * int(model.mlp_ratio * width)
        products += side**2 * (patches + layers * (lstms + back_to_channels + mlp))
    last = model.widths[-1]
    products += side**2 * last**2 * model.final_pointwise + last * class_count
    return 2 * products


def training_flops(model: Sequencer2DConfig, image_size: int, class_count: int) -> int:
    """Return what training on one square image takes, forward and backward, nothing computed a second time."""
    return TRAINED_BY_FORWARD * forward_flops(model, image_size, class_count)
