from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lowmem_seq.models import Sequencer2D, VanillaBiLSTM
from lowmem_seq.models.patches import PatchLinear

SIZES = {"layers": (1, 1), "widths": (128, 192), "lstm_widths": (32, 48), "patch_sizes": (8, 2)}


def sequencer(initialisation: str) -> Sequencer2D:
    torch.manual_seed(0)
    return Sequencer2D(100, **SIZES, final_pointwise=True, initialisation=initialisation)  # type: ignore[arg-type]


def linears_of(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def excess_kurtosis(values: Tensor) -> float:
    return float((((values - values.mean()) / values.std()) ** 4).mean() - 3)


@pytest.mark.parametrize(
    "model", [sequencer("he"), VanillaBiLSTM(100, 1, 128, 64, 8)], ids=["sequencer2d", "vanilla"]
)
def test_he_draws_normal_weights_with_variance_two_by_inputs(model: nn.Module) -> None:
    for name, linear in linears_of(model).items():
        weight = linear.weight.detach()
        expected = math.sqrt(2 / linear.in_features)
        assert weight.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel())), name
        assert abs(float(weight.mean())) < 5 * expected / math.sqrt(weight.numel()), name
        assert abs(excess_kurtosis(weight)) < 0.25, name
        assert not linear.bias.any(), name


@pytest.mark.parametrize("initialisation", ["he", "paper"])
def test_lstms_and_norms_are_drawn_as_torch_does(initialisation: str) -> None:
    for module in sequencer(initialisation).modules():
        if isinstance(module, nn.LSTM):
            bound = 1 / math.sqrt(module.hidden_size)
            for value in module.parameters():
                assert value.abs().max() <= bound
                assert value.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            assert bool((module.weight == 1).all())
            assert not module.bias.any()


def test_paper_draws_as_timm_does() -> None:
    model = sequencer("paper")
    patch_linears = {f"{name}.linear" for name, module in model.named_modules() if isinstance(module, PatchLinear)}
    assert len(patch_linears) == 2
    for name, linear in linears_of(model).items():
        weight = linear.weight.detach()
        if name == "head":
            assert not weight.any()
        elif name in patch_linears:
            assert weight.std() == pytest.approx(math.sqrt(1 / linear.in_features), rel=0.03)
            assert weight.abs().max() <= 2.28 * math.sqrt(1 / linear.in_features)
        else:
            bound = math.sqrt(6 / (linear.in_features + linear.out_features))
            assert weight.abs().max() <= bound
            assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert linear.bias.abs().max() < 1e-5
        assert bool(linear.bias.any()) == (".mlp." in name), name
