from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lowmem_seq.models
from lowmem_seq.config import Sequencer2DConfig, load_preset, preset_names, validate
from lowmem_seq.errors import UsageError
from lowmem_seq.models import Sequencer2D, VanillaBiLSTM, build_model, create_model, parameter_count

PARAMETERS = {
    ("tiny", 10): 22_826,
    ("small", 10): 7_595_722,
    ("small-plus", 10): 3_374_218,
    ("medium", 10): 13_071_562,
    ("vanilla", 10): 7_523_210,
    ("sequencer2d_s", 1000): 27_651_688,  # 28M in the paper's table 1
    ("sequencer2d_m", 1000): 38_307_688,  # 38M
    ("sequencer2d_l", 1000): 54_298_216,  # 54M
}


@pytest.mark.parametrize(("name", "num_classes"), PARAMETERS)
def test_parameter_counts_are_pinned(name: str, num_classes: int) -> None:
    with torch.device("meta"):  # no memory, no time
        assert parameter_count(create_model(name, num_classes)) == PARAMETERS[name, num_classes]


def test_every_preset_is_pinned() -> None:
    assert {name for name, _ in PARAMETERS} == set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_its_own_images(name: str) -> None:
    config = validate(load_preset(name))
    assert config.name == name
    model = build_model(config.model, 3)
    side = config.data.image_size
    with torch.inference_mode():
        assert model(torch.zeros(1, side, side, 3)).shape == (1, 3)


def test_classes_default_to_those_of_imagenet() -> None:
    assert create_model("tiny").head.out_features == 1000


def test_the_config_decides_the_model(tmp_path: Path) -> None:
    assert isinstance(create_model("vanilla", 2), VanillaBiLSTM)
    changed = tmp_path / "mine.yaml"
    text = Path(lowmem_seq.config.configs_folder() / "tiny.yaml").read_text(encoding="utf-8")
    changed.write_text(text.replace("widths: [16, 32]", "widths: [16, 24]", 1), encoding="utf-8")
    model = create_model(str(changed), 2)
    assert isinstance(model, Sequencer2D)
    assert (model.feature_width, model.dropout, max(model.drop_path_rates)) == (24, 0.1, 0.1)


def test_the_initialisation_reaches_the_model() -> None:
    config = Sequencer2DConfig(
        architecture="sequencer2d",
        layers=(1,),
        widths=(4,),
        lstm_widths=(1,),
        patch_sizes=(2,),
        initialisation="paper",
    )
    model = build_model(config, 2)
    assert not model.head.weight.any()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        create_model("smal")
    assert "small" in caught.value.hint


def test_every_public_name_exists() -> None:
    for name in lowmem_seq.models.__all__:
        assert hasattr(lowmem_seq.models, name), name


def test_import_and_a_step_stay_light() -> None:
    """Importing torch._dynamo costs about 75 MiB and a second."""
    program = """
import sys, torch
from lowmem_seq.models import create_model
model = create_model("tiny", 2)
model.recomputed_layers = 1
model(torch.zeros(2, 32, 32, 3)).sum().backward()
heavy = {"torch._dynamo", "torchvision", "timm", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
