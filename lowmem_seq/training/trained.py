"""A trained model and what it takes and says: from the file that a run ends with, or from a checkpoint."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from safetensors import safe_open

from lowmem_seq.checkpoint.codec import read_tensors_into
from lowmem_seq.checkpoint.header import read_shapes
from lowmem_seq.checkpoint.weights import UsableWeights
from lowmem_seq.config import ModelConfig, validate
from lowmem_seq.data.catalogue import HOST
from lowmem_seq.errors import DataError, NoCheckpointError, UsageError
from lowmem_seq.models import ImageClassifier, build_model
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.session import make_model, open_data

Colours = tuple[float, float, float]
"""A figure for red, green and blue, each in units of 0 to 1."""


@dataclass(frozen=True)
class TrainedModel:
    """A model with the weights of a run."""

    model: ImageClassifier
    name: str
    """Of the preset."""
    settings: ModelConfig
    classes: tuple[str, ...]
    """In the order of the logits."""
    image_size: int
    mean: Colours
    """What is subtracted from a picture's bytes over 255."""
    deviation: Colours
    """What they are divided by then."""


class _Header(msgspec.Struct, frozen=True):
    """What the final weights say of themselves."""

    format: Literal["lowmem-seq"]
    format_version: Literal["1"]
    name: str
    classes: tuple[str, ...]
    model: dict[str, Any]
    image_size: Annotated[int, Meta(ge=8, le=1024)]
    mean: Colours
    deviation: Colours


AS_JSON = ("classes", "model", "image_size", "mean", "deviation")
"""What stands in the header as JSON: safetensors keeps texts only."""


def open_trained(run: RunFolder, weights: UsableWeights) -> TrainedModel:
    """Return the model of a run with these weights of it.

    Raises:
        DataError: they are a checkpoint's, and the images that say what the classes are have gone.
        NoCheckpointError: the weights are not this model's.
        UsageError: the file says nothing of itself, or what is no model.
    """
    if weights.step is None:
        return load_trained(weights.path)
    config = run.config
    try:
        pack, parts = open_data(run, config)
    except DataError as error:
        source, side = shlex.quote(config.data.source), config.data.image_size
        again = f"lowmem-seq data add {source} --image-size {side}   packs them again"
        if source == HOST:
            again = f"lowmem-seq resume {shlex.quote(str(run.path))} --join IP:PORT   fetches them again"
        raise DataError(
            f"the run is not finished, so its images say what its classes are: {error.message}",
            again,
        ) from error
    model = make_model(config, len(parts.classes))
    read_tensors_into(dict(model.named_parameters()), weights.path, "weights")
    described = pack.description
    return TrainedModel(
        model=model.eval(),
        name=config.name,
        settings=config.model,
        classes=parts.classes,
        image_size=described.image_size,
        mean=described.mean,
        deviation=described.deviation,
    )


def load_trained(path: Path) -> TrainedModel:
    """Return the model that a run's final weights describe.

    Raises:
        NoCheckpointError: the file can't be read, or its tensors are not those of the model.
        UsageError: it says nothing of itself, or what is no model.
    """
    header = _read_header(path)
    settings = validate({"name": header.name or "model", "model": header.model}).model
    model = build_model(settings, len(header.classes))
    read_tensors_into(dict(model.named_parameters()), path, "weights")
    return TrainedModel(
        model=model.eval(),
        name=header.name,
        settings=settings,
        classes=header.classes,
        image_size=header.image_size,
        mean=header.mean,
        deviation=header.deviation,
    )


def _read_header(path: Path) -> _Header:
    metadata = read_metadata(path)
    try:
        told = {key: json.loads(text) if key in AS_JSON else text for key, text in metadata.items()}
        return msgspec.convert(told, _Header)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{path} does not say what model it is for: {error}", "give a run folder, whose model.safetensors does"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file.

    Raises:
        NoCheckpointError: it is no whole safetensors file, or its header is longer than any of ours.
    """
    read_shapes(path)  # which looks at the header's length before it is read
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except OSError as error:
        raise NoCheckpointError(f"{path} can't be read: {error}", "is it a copy that broke off?") from error
