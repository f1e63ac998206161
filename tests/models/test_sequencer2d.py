from __future__ import annotations

import pytest
import torch
from torch import nn

from lowmem_seq.models import Sequencer2D
from lowmem_seq.models.sequencer2d import ChannelMLP, Sequencer2DLayer

from .builders import TINY, random_images, tiny_sequencer


def modules_of(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def test_a_layer_is_two_residual_branches() -> None:
    torch.manual_seed(0)
    layer = Sequencer2DLayer(8, 2, 3.0)
    x = torch.randn(2, 3, 4, 8)
    tokens = x + layer.bilstm2d(layer.token_norm(x))
    torch.testing.assert_close(layer(x), tokens + layer.mlp(layer.channel_norm(tokens)))


def test_gelu_is_exact() -> None:
    mlp = ChannelMLP(4, 8).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    y = mlp.expand(x)
    exact = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    torch.testing.assert_close(mlp(x), mlp.contract(exact), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "drop_path", "rates"),
    [
        ((1, 2), 0.2, (0, 0, 0.1, 0.1, 0.2, 0.2)),
        ((1, 1), 0.0, (0, 0, 0, 0)),
        ((1,), 0.3, (0.3, 0.3)),
    ],
)
def test_stochastic_depth_grows_linearly(
    layers: tuple[int, ...], drop_path: float, rates: tuple[float, ...]
) -> None:
    sizes = {name: values[: len(layers)] for name, values in TINY.items() if name != "layers"}
    assert tiny_sequencer(layers=layers, drop_path=drop_path, **sizes).drop_path_rates == pytest.approx(rates)


def test_settings_reach_where_they_act() -> None:
    model = tiny_sequencer()
    assert (model.dropout, model.feature_width, model.pointwise) == (0.0, 12, None)
    assert tiny_sequencer(dropout=0.25).dropout == 0.25
    norms = modules_of(model, nn.LayerNorm)
    assert norms == 3 * 2 + 1
    assert modules_of(tiny_sequencer(embed_norm=True), nn.LayerNorm) == norms + 1
    assert modules_of(tiny_sequencer(final_pointwise=True), nn.Linear) == modules_of(model, nn.Linear) + 1
    assert tiny_sequencer(mlp_ratio=2.5).state_dict()["stages.1.layers.0.mlp.expand.weight"].shape == (30, 12)


def test_embed_norm_and_final_pointwise_change_the_logits() -> None:
    images = random_images(2)
    plain = tiny_sequencer()
    for setting in ("embed_norm", "final_pointwise"):
        other = tiny_sequencer(**{setting: True})
        other.load_state_dict(plain.state_dict(), strict=False)
        assert not torch.allclose(other(images), plain(images), atol=1e-3)


def test_every_stage_needs_all_its_sizes() -> None:
    with pytest.raises(ValueError, match="zip"):
        Sequencer2D(3, layers=(1, 1), widths=(8, 8), lstm_widths=(2,), patch_sizes=(4, 2))


def test_final_norm_comes_before_the_mean() -> None:
    model = tiny_sequencer()
    seen: list[torch.Size] = []
    model.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    model(random_images(2, 16, 24))
    assert seen == [(2, 2, 3, 12)]
