from __future__ import annotations

import torch

from lowmem_seq.models.patches import PatchLinear, cut_patches
from lowmem_seq.models.vanilla import BiLSTMLayer

from .builders import random_images, tiny_vanilla


def test_reads_the_patches_row_by_row() -> None:
    model = tiny_vanilla()
    images = random_images(2, 8, 12)
    patches = [
        images[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
        for row in range(2)
        for column in range(3)
    ]
    sequence = torch.stack(patches, dim=1)
    torch.testing.assert_close(cut_patches(images, 4).flatten(1, 2), sequence)
    embedding, norm = model.patches
    assert isinstance(embedding, PatchLinear)
    x = norm(embedding.linear(sequence))
    for layer in model.layers:
        assert isinstance(layer, BiLSTMLayer)
        x = layer.norm(layer.lstm(x)[0])
    torch.testing.assert_close(model(images), model.head(x.mean(dim=1)))


def test_settings_reach_where_they_act() -> None:
    model = tiny_vanilla(layers=3, width=10, lstm_width=7, patch_size=2, dropout=0.4)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["patches.0.linear.weight"] == (10, 12)
    assert shapes["layers.0.lstm.weight_ih_l0"] == (28, 10)
    assert shapes["layers.2.lstm.weight_ih_l0_reverse"] == (28, 14)
    assert (model.feature_width, model.dropout, len(model.layers)) == (14, 0.4, 3)
