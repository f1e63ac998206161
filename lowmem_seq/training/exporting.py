"""A trained model as a folder for others: timm's, where timm has a model of its kind, or our own.

model.safetensors   the weights, under timm's names or ours
config.json         what the model takes and says; for timm in the form of the Hugging Face hub
model.yaml          our own only: its sizes, as `lowmem_seq.models.create_model` reads them
README.md           how to load it
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lowmem_seq.checkpoint.codec import write_tensors
from lowmem_seq.errors import UsageError
from lowmem_seq.files import building_folder, is_temporary, make_folder, sync_written, write_json, write_text
from lowmem_seq.models import to_timm_state_dict
from lowmem_seq.models.timm_weights import TimmModel, timm_model
from lowmem_seq.text import harmless
from lowmem_seq.training.state import final_metadata
from lowmem_seq.training.trained import TrainedModel

WEIGHTS, CONFIG, MODEL, README = "model.safetensors", "config.json", "model.yaml", "README.md"
LEAST_DEVIATION = 1 / 255
"""Training takes it for a colour that is the same in all pictures; timm would divide by zero."""
LOAD_WITH_TIMM = """\
import timm

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
"""
LOAD_WITH_OURS = """\
import json
from pathlib import Path

from lowmem_seq.models import create_model
from safetensors.torch import load_file

about = json.loads(Path("config.json").read_text(encoding="utf-8"))
model = create_model("./model.yaml", num_classes=len(about["classes"]))
model.load_state_dict(load_file("model.safetensors"))
model.eval()
"""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    architecture: str | None
    """By which timm knows the model; None: it has none of its kind."""


def export_model(trained: TrainedModel, folder: Path) -> Exported:
    """Write a model into a folder, which is there wholly or not at all; an earlier export in it is replaced.

    Raises:
        OSError: what the disk said.
        UsageError: other things lie there.
    """
    if folder.exists() and not _is_export(folder):
        raise UsageError(f"{folder} holds other things than an export.", "choose another folder: --to DIR")
    timm = timm_model(trained.settings)
    make_folder(folder.parent)
    with building_folder(folder, replacing=True) as building:
        if timm is None:
            _write_ours(trained, building)
        else:
            _write_for_timm(trained, timm, building)
        sync_written(building / WEIGHTS)
    return Exported(folder, None if timm is None else timm.architecture)


def _is_export(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    found = {path.name for path in folder.iterdir() if not is_temporary(path)}
    return found <= {WEIGHTS, CONFIG, MODEL, README}


def _write_for_timm(trained: TrainedModel, timm: TimmModel, folder: Path) -> None:
    size = trained.image_size
    metadata = {"format": "pt", "classes": json.dumps(trained.classes)}
    write_tensors(folder / WEIGHTS, to_timm_state_dict(trained.model), metadata)
    config: dict[str, Any] = {
        "architecture": timm.architecture,
        "num_classes": len(trained.classes),
        "num_features": trained.model.feature_width,
        **({"model_args": timm.model_args} if timm.model_args else {}),
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(trained.mean),
            "std": [max(value, LEAST_DEVIATION) for value in trained.deviation],
            "num_classes": len(trained.classes),
            "label_names": list(trained.classes),
            "pool_size": None,
            "first_conv": "stem.proj",
            "classifier": "head.fc",
        },
    }
    write_json(folder / CONFIG, config)
    takes = "It takes and says what `pretrained_cfg` in config.json has; `transform` makes it of a Pillow image."
    write_text(folder / README, _readme(trained, f"timm's {timm.architecture}", LOAD_WITH_TIMM, takes))


def _write_ours(trained: TrainedModel, folder: Path) -> None:
    details = {
        "model": trained.settings.to_settings(),
        "image_size": trained.image_size,
        "mean": trained.mean,
        "deviation": trained.deviation,
    }
    weights = dict(trained.model.named_parameters())
    write_tensors(folder / WEIGHTS, weights, final_metadata(trained.name, trained.classes, details))
    about = {"format": "lowmem-seq", "format_version": 1, "name": trained.name, "classes": trained.classes}
    write_json(folder / CONFIG, {**about, **details})
    settings = {"name": trained.name, "model": trained.settings.to_settings()}
    write_text(folder / MODEL, yaml.safe_dump(settings, sort_keys=False))
    takes = (
        "It takes images as (B, H, W, 3): the shorter side brought to `image_size`, the middle cut out, bytes\n"
        "over 255, less `mean`, over `deviation`. timm has no model of this kind."
    )
    write_text(folder / README, _readme(trained, "`lowmem_seq.models`", LOAD_WITH_OURS, takes))


def _readme(trained: TrainedModel, kind: str, code: str, takes: str) -> str:
    """Return a page that says what the folder holds. Names are in config.json, where no letter can do harm."""
    name, side = harmless(trained.name, one_line=True).replace("`", "'"), trained.image_size
    return (
        f"# {name}\n\n"
        f"An image classifier for {len(trained.classes)} classes, {side}x{side} pixels, trained with lowmem-seq.\n"
        f"The model is {kind}; in this folder:\n\n"
        f"```python\n{code}```\n\n{takes}\n"
    )
