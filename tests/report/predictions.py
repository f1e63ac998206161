"""predictions.safetensors as a test leaves it (docs/concepts/checkpoints.md), made of noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from lowmem_seq.report.mistakes import FILE
from tests.report.builders import TESTED_WEIGHTS


def write_predictions(
    folder: Path, class_names: list[str], images: int = 40, mistakes: int = 3, side: int = 16, **other: Any
) -> Path:
    """Write the file into a run folder; `other` replaces a tensor by its name, or a part of the metadata."""
    random = numpy.random.default_rng(0)
    answers = min(5, len(class_names))
    probabilities = numpy.sort(random.random((images, answers)), axis=1)[:, ::-1] / answers
    tensors: dict[str, Any] = {
        "label": numpy.arange(images, dtype=numpy.int32) % len(class_names),
        "top_class": numpy.tile(numpy.arange(answers, dtype=numpy.int32), (images, 1)),
        "top_probability": numpy.ascontiguousarray(probabilities, dtype=numpy.float32),
        "mistake": numpy.arange(1, mistakes + 1, dtype=numpy.int32),
        "mistake_image": random.integers(0, 256, (mistakes, side, side, 3), dtype=numpy.uint8),
    }
    metadata = {"format": "lowmem-seq", "format_version": "1", "part": "test", "classes": json.dumps(class_names)}
    metadata["weights_sha256"] = TESTED_WEIGHTS
    for name, value in other.items():
        (metadata if isinstance(value, str) else tensors)[name] = value
    path = folder / FILE
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata)
    return path
