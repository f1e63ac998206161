from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lowmem_seq.checkpoint.weights import UsableWeights
from lowmem_seq.config import load_preset, override, validate
from lowmem_seq.errors import DataError, NoCheckpointError, UsageError
from lowmem_seq.files import write_json
from lowmem_seq.models import build_model
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.exporting import LOAD_WITH_OURS, LOAD_WITH_TIMM, export_model
from lowmem_seq.training.trained import TrainedModel, load_trained, open_trained, read_metadata
from tests.builders import end, names, start_python
from tests.conftest import Coloured

HOSTILE = ("</script><b>", 'quo"te\n\u202e', "c")


def fresh(preset: str, *assignments: str) -> TrainedModel:
    """A model of a preset with three classes and weights that nobody trained."""
    settings = load_preset(preset)
    for assignment in assignments:
        override(settings, assignment)
    config = validate(settings)
    torch.manual_seed(0)
    model = build_model(config.model, len(HOSTILE)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.05)
    return TrainedModel(
        model=model,
        name=config.name,
        settings=config.model,
        classes=HOSTILE,
        image_size=config.data.image_size,
        mean=(0.5, 0.4, 0.3),
        deviation=(0.2, 0.3, 0.0),
    )


OTHER_SIZES = ("model.layers=[1,2]", "model.widths=[16,24]", "model.lstm_widths=[4,6]", "model.patch_sizes=[8,2]")


@pytest.mark.parametrize(
    ("trained", "architecture"),
    [
        (fresh("sequencer2d_s"), "sequencer2d_s"),
        (fresh("sequencer2d_s", *OTHER_SIZES, "model.mlp_ratio=2", "data.image_size=32"), "sequencer2d_s"),
    ],
    ids=["timm's own", "other sizes"],
)
def test_timm_loads_an_export_and_says_the_same(
    timm: Any, tmp_path: Path, trained: TrainedModel, architecture: str
) -> None:
    exported = export_model(trained, tmp_path / "model")
    assert exported.architecture == architecture
    model = timm.create_model(f"local-dir:{exported.folder}", pretrained=True).eval()
    images = torch.rand(2, trained.image_size, trained.image_size, 3) - 0.5  # (B, H, W, 3)
    with torch.inference_mode():
        theirs, ours = model(images.permute(0, 3, 1, 2)), trained.model(images)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    takes = timm.data.resolve_data_config({}, model=model)
    assert tuple(takes["input_size"]) == (3, trained.image_size, trained.image_size)
    assert tuple(takes["mean"]) == trained.mean
    assert tuple(takes["std"]) == (0.2, 0.3, 1 / 255)
    assert takes["crop_pct"] == 1.0
    assert tuple(model.pretrained_cfg["label_names"]) == HOSTILE


def test_the_page_of_an_export_for_timm_holds_code_that_runs(
    timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = export_model(fresh("sequencer2d_s", *OTHER_SIZES, "data.image_size=32"), tmp_path / "model").folder
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert LOAD_WITH_TIMM in page
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(LOAD_WITH_TIMM, found)
    assert found["model"].num_classes == 3
    from PIL import Image

    assert found["transform"](Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_a_model_that_timm_lacks_is_loaded_by_the_code_on_its_page(coloured: Coloured, tmp_path: Path) -> None:
    trained = load_trained(coloured.run.weights_file)
    exported = export_model(trained, tmp_path / "model")
    assert exported.architecture is None
    assert names(exported.folder) == ["README.md", "config.json", "model.safetensors", "model.yaml"]
    assert LOAD_WITH_OURS in (exported.folder / "README.md").read_text(encoding="utf-8")
    images = torch.rand(2, 16, 16, 3)
    with torch.inference_mode():
        expected = trained.model(images).sum().item()
    code = f"import os, torch; os.chdir({str(exported.folder)!r})\n{LOAD_WITH_OURS}\n"
    code += "torch.manual_seed(0)\nprint(repr(model(torch.load_images()).sum().item()))"
    code = code.replace("torch.load_images()", f"torch.tensor({images.tolist()})")
    ended = end(start_python(code))
    assert ended[0] == 0, ended
    assert float(ended[1]) == pytest.approx(expected, rel=1e-5)


def test_an_export_of_ours_describes_itself_as_final_weights_do(coloured: Coloured, tmp_path: Path) -> None:
    trained = load_trained(coloured.run.weights_file)
    again = load_trained(export_model(trained, tmp_path / "model").folder / "model.safetensors")
    assert again.classes == trained.classes == ("blue", "green", "red")
    assert (again.mean, again.deviation, again.settings) == (trained.mean, trained.deviation, trained.settings)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), trained.model.parameters(), strict=True))


def test_an_earlier_export_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    trained = fresh("tiny")
    export_model(trained, tmp_path / "model")
    export_model(replace(trained, classes=("x", "y", "z")), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["classes"] == ["x", "y", "z"]
    assert names(tmp_path) == ["model"]
    (tmp_path / "model" / "thesis.tex").write_text("...", encoding="utf-8")
    with pytest.raises(UsageError, match="holds other things than an export"):
        export_model(trained, tmp_path / "model")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="holds other things"):
        export_model(trained, tmp_path / "file")


def test_hostile_names_stand_in_json_alone(tmp_path: Path) -> None:
    folder = export_model(replace(fresh("tiny"), name="`<script>\n# x"), tmp_path / "model").folder
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "</script>" not in page
    assert page.startswith("# '<script> # x\n\n")
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["classes"] == list(HOSTILE)


def test_a_checkpoint_gives_the_model_that_the_final_weights_give(coloured: Coloured) -> None:
    checkpoint = coloured.run.checkpoints / "step-00000040" / "model.safetensors"
    one = open_trained(coloured.run, UsableWeights(checkpoint, 40))
    other = load_trained(coloured.run.weights_file)
    assert replace(one, model=other.model) == other
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_checkpoint_whose_images_have_gone_says_what_packs_them(coloured: Coloured, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(coloured.run.path, tmp_path / "run")))
    record = run.read_json(run.data_file)
    write_json(run.data_file, {**(record or {}), "pack": str(tmp_path / "gone")})
    checkpoint = run.checkpoints / "step-00000040" / "model.safetensors"
    with pytest.raises(
        DataError, match="the run is not finished, so its images say what its classes are"
    ) as caught:
        open_trained(run, UsableWeights(checkpoint, 40))
    assert caught.value.hint.startswith(f"lowmem-seq data add {coloured.photos} --image-size 16")
    text = run.config_file.read_text(encoding="utf-8")
    run.config_file.write_text(text.replace(f"source: {coloured.photos}", "source: host"), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        open_trained(run, UsableWeights(checkpoint, 40))
    assert caught.value.hint == f"lowmem-seq resume {run.path} --join IP:PORT   fetches them again"
    assert open_trained(run, UsableWeights(run.weights_file, None)).classes == ("blue", "green", "red")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "does not say what model it is for"),
        ({"format": "lowmem-seq", "format_version": "2"}, "does not say what model it is for"),
        ({"classes": "[" * 9000}, "does not say what model it is for"),
    ],
)
def test_a_file_that_says_nothing_of_itself_is_refused(tmp_path: Path, metadata: dict[str, str], said: str) -> None:
    save_file({"head.bias": torch.zeros(3)}, tmp_path / "file", metadata)
    with pytest.raises(UsageError, match=said):
        load_trained(tmp_path / "file")


def test_weights_that_are_not_those_of_the_model_are_refused(coloured: Coloured, tmp_path: Path) -> None:
    metadata = read_metadata(coloured.run.weights_file)
    save_file({"head.bias": torch.zeros(3)}, tmp_path / "file", metadata)
    with pytest.raises(NoCheckpointError, match="has other tensors than this model"):
        load_trained(tmp_path / "file")
