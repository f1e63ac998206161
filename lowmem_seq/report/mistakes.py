"""The pictures that a test got most wrong, read from what it left in the run folder: predictions.safetensors.

docs/concepts/checkpoints.md has the file's tensors. It may come from elsewhere, so shapes are looked at first.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

FILE = "predictions.safetensors"
FORMAT_VERSION = "1"
MOST_MISTAKES = 24
LARGEST_SIDE = 96
MOST_ANSWERS = 5
SIDE_FOR_EXACT_PIXELS = 48
"""Up to here a picture is a PNG; larger ones are JPEG, as 24 exact ones would take a megabyte."""


class Mistake(NamedTuple):
    """A picture that was taken for something else."""

    image_uri: str
    """The picture itself, as a data: address."""
    label: str
    """What it is."""
    answers: list[tuple[str, float]]
    """What the model said, with its probabilities (0 to 1), best first."""


class PredictionsError(Exception):
    """The file of predictions can't be used; the message says why."""


def read_mistakes(path: Path, weights_sha256: object) -> list[Mistake] | None:
    """Return the worst mistakes of some weights, the most confident first.

    Args:
        path: of the predictions.
        weights_sha256: of the weights, as their test told it. A run that goes on after its test, and one that was
            stopped in the middle of the next, have predictions of earlier weights lying there.

    Returns None where there are no predictions of these weights.

    Raises:
        PredictionsError: the file is there, and is not as it should be.
    """
    if not path.is_file():
        return None
    from safetensors import SafetensorError  # numpy and Pillow as well: for those runs that have pictures

    try:
        return _read(path, weights_sha256)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, IndexError, struct.error) as error:
        raise PredictionsError(f"{path.name} can't be used: {error}") from error


def _read(path: Path, weights_sha256: object) -> list[Mistake] | None:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if metadata.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"it has format version {metadata.get('format_version')}")
        if metadata["weights_sha256"] != weights_sha256:
            return None
        classes = [str(name) for name in json.loads(metadata["classes"])]
        _require_shapes({name: list(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
        indices = file.get_tensor("mistake").tolist()
        images = file.get_tensor("mistake_image")
        labels, tops = file.get_tensor("label"), file.get_tensor("top_class")
        probabilities = file.get_tensor("top_probability")
    if str(images.dtype) != "uint8":
        raise ValueError(f"mistake_image holds {images.dtype}")
    return [
        Mistake(
            image_uri=_data_uri(image),
            label=_named(classes, int(labels[index])),
            answers=[
                (_named(classes, int(one)), float(probability))
                for one, probability in zip(tops[index], probabilities[index], strict=True)
            ],
        )
        for index, image in zip(indices, images, strict=True)
        if 0 <= index < len(labels)
    ]


def _require_shapes(shapes: dict[str, list[int]]) -> None:
    """See that the tensors fit together, and that none is larger than anything a test leaves.

    Raises:
        ValueError: they don't.
        KeyError: one is missing.
    """
    images, answers = shapes["label"][0], shapes["top_class"][-1]
    mistakes, side = shapes["mistake"][0], shapes["mistake_image"][-2]
    expected = {
        "label": [images],
        "top_class": [images, answers],
        "top_probability": [images, answers],
        "mistake": [mistakes],
        "mistake_image": [mistakes, side, side, 3],
    }
    found = {name: shapes[name] for name in expected}
    if found != expected or mistakes > MOST_MISTAKES or not 0 < side <= LARGEST_SIDE or answers > MOST_ANSWERS:
        raise ValueError(f"its tensors have the shapes {found}")


def _named(classes: list[str], index: int) -> str:
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def _data_uri(image: Any) -> str:
    """Return a picture (s, s, 3) of bytes as an address that holds it."""
    from PIL import Image

    buffer, kind = io.BytesIO(), "png" if len(image) <= SIDE_FOR_EXACT_PIXELS else "jpeg"
    Image.fromarray(image).save(buffer, format=kind, quality=90, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
