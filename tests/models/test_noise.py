from __future__ import annotations

import pytest
import torch

from lowmem_seq.errors import UsageError
from lowmem_seq.models import Noise

from .builders import layers_of, random_images, random_noise, stages_of, tiny_sequencer, tiny_vanilla


def test_a_skipped_branch_leaves_no_trace() -> None:
    model = tiny_sequencer(drop_path=0.5)
    images = random_images(4)
    for branch in range(6):
        keep = torch.ones(6, 4)
        keep[branch, 1] = 0.0
        noisy = model(images, Noise(keep))
        silenced = tiny_sequencer(drop_path=0.5)
        silenced.load_state_dict(model.state_dict())
        layer = layers_of(silenced)[branch // 2]
        last = layer.mlp.contract if branch % 2 else layer.bilstm2d.fc
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        torch.testing.assert_close(noisy[1], silenced(images)[1])
        torch.testing.assert_close(noisy[[0, 2, 3]], model(images)[[0, 2, 3]])


def test_survivors_are_scaled() -> None:
    model = tiny_sequencer(layers=(1,), widths=(8,), lstm_widths=(2,), patch_sizes=(4,))
    (layer,) = layers_of(model)
    x = torch.randn(3, 2, 4, 8)
    keep = torch.tensor([[1.25, 0.0, 1.0], [0.0, 2.0, 1.0]])
    tokens = x + layer.bilstm2d(layer.token_norm(x)) * keep[0][:, None, None, None]
    expected = tokens + layer.mlp(layer.channel_norm(tokens)) * keep[1][:, None, None, None]
    torch.testing.assert_close(layer(x, keep), expected)


def test_all_branches_skipped_leaves_only_patches_and_head() -> None:
    model = tiny_sequencer(final_pointwise=True)
    images = random_images(2)
    x = images
    for stage in stages_of(model):
        x = stage.patches(x)
    assert model.pointwise is not None
    expected = model.head(model.norm(model.pointwise(x)).mean(dim=(1, 2)))
    torch.testing.assert_close(model(images, Noise(torch.zeros(6, 2))), expected)


@pytest.mark.parametrize("build", [tiny_sequencer, tiny_vanilla])
def test_dropped_features_reach_no_logit(build: type) -> None:
    model = build()
    keep = torch.ones(2, model.feature_width)
    keep[0] = 0.0
    logits = model(random_images(2), Noise(keep_features=keep))
    torch.testing.assert_close(logits[0], model.head.bias)
    torch.testing.assert_close(logits[1], model(random_images(2))[1])


def test_noise_of_ones_is_an_evaluation() -> None:
    model = tiny_sequencer()
    images = random_images(3)
    ones = Noise(torch.ones(6, 3), torch.ones(3, model.feature_width))
    assert torch.equal(model(images, ones), model(images))
    assert torch.equal(model(images, Noise()), model(images))


@pytest.mark.parametrize(
    "noise",
    [Noise(torch.ones(4, 3)), Noise(torch.ones(6, 2)), Noise(keep_features=torch.ones(3, 7))],
    ids=["branches", "batch", "features"],
)
def test_noise_of_another_model_is_refused(noise: Noise) -> None:
    with pytest.raises(UsageError, match="this model and batch need") as caught:
        tiny_sequencer()(random_images(3), noise)
    assert "drop_path_rates" in caught.value.hint


def test_vanilla_has_no_branches_to_skip() -> None:
    assert tiny_vanilla().drop_path_rates == ()
    with pytest.raises(UsageError, match="keep_path"):
        tiny_vanilla()(random_images(3), Noise(torch.ones(4, 3)))


def test_masks_keep_float32_scales_under_bf16() -> None:
    model = tiny_sequencer(embed_norm=True, drop_path=0.1)
    images = random_images(3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images, random_noise(model, 3))
    torch.testing.assert_close(logits.float(), model(images, random_noise(model, 3)), atol=0.1, rtol=0.1)
