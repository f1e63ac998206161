from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lowmem_seq.errors import UsageError
from lowmem_seq.models import create_model, load_timm_state_dict, parameter_count, to_timm_state_dict

from .builders import TINY, random_images, tiny_sequencer, tiny_vanilla


def test_roundtrip_without_timm() -> None:
    source = tiny_sequencer(embed_norm=True)
    target = tiny_sequencer(embed_norm=True)
    for value in target.parameters():
        torch.nn.init.zeros_(value)
    load_timm_state_dict(target, to_timm_state_dict(source))
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_every_wrong_key_is_named_and_nothing_is_copied() -> None:
    model = tiny_sequencer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: torch.zeros_like(value) for name, value in to_timm_state_dict(model).items()}
    del weights["norm.weight"]
    weights["head.fc.weight"] = torch.zeros(7, 12)
    weights["stages.0.downsample.down.weight"] = torch.zeros(1)
    with pytest.raises(UsageError) as caught:
        load_timm_state_dict(model, weights)
    for line in (
        "missing: norm.weight",
        "unexpected: stages.0.downsample.down.weight",
        "head.fc.weight: (7, 12), and the model has (5, 12)",
    ):
        assert line in caught.value.message
    assert "num_classes" in caught.value.hint
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_long_list_is_cut() -> None:
    with pytest.raises(UsageError, match=r"and \d+ more"):
        load_timm_state_dict(tiny_sequencer(), {})


@pytest.mark.parametrize(
    "model", [tiny_vanilla(), tiny_sequencer(final_pointwise=True)], ids=["vanilla", "pointwise"]
)
def test_models_that_timm_lacks_are_refused(model: Any) -> None:
    with pytest.raises(UsageError) as caught:
        to_timm_state_dict(model)
    assert "sequencer2d_*" in caught.value.hint
    with pytest.raises(UsageError):
        load_timm_state_dict(model, {})


def with_a_head(oracle: Any) -> Any:
    """timm draws the head as zeros, which would hide every difference."""
    torch.nn.init.normal_(oracle.head.fc.weight, std=0.05)
    return oracle.eval()


def channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["sequencer2d_s", "sequencer2d_m", "sequencer2d_l"])
def test_logits_equal_timm(timm: Any, name: str) -> None:
    torch.manual_seed(0)
    oracle = with_a_head(timm.create_model(name))
    model = create_model(name)
    load_timm_state_dict(model, oracle.state_dict())
    assert parameter_count(model) == parameter_count(oracle)
    sizes = [(224, 224), (168, 252)] if name == "sequencer2d_s" else [(224, 224)]
    with torch.inference_mode():
        for height, width in sizes:
            images = random_images(1, height, width)
            expected = oracle(channels_first(images))
            assert expected.std() > 0.1
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


def test_a_small_model_and_its_gradients_equal_timm_in_float64(timm: Any) -> None:
    torch.manual_seed(0)
    oracle = with_a_head(
        timm.models.sequencer.Sequencer2d(
            num_classes=5,
            layers=TINY["layers"],
            patch_sizes=TINY["patch_sizes"],
            embed_dims=TINY["widths"],
            hidden_sizes=TINY["lstm_widths"],
            mlp_ratios=(3.0, 3.0),
            stem_norm=True,
        )
    ).double()
    model = tiny_sequencer(embed_norm=True).double()
    load_timm_state_dict(model, oracle.state_dict())
    images = random_images().double()
    ours, theirs = model(images), oracle(channels_first(images))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradients = {name: value.grad for name, value in oracle.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    for name, value in to_timm_state_dict(model).items():
        torch.testing.assert_close(value, gradients[name], atol=1e-10, rtol=1e-10)


def test_weights_go_back_to_timm(timm: Any) -> None:
    oracle = timm.create_model("sequencer2d_s")
    torch.manual_seed(3)
    oracle.load_state_dict(to_timm_state_dict(create_model("sequencer2d_s")))
