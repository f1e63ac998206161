"""What a test leaves for reports: of each picture what it is and what it was taken for, and the worst mistakes.

    RUN_DIR/predictions.safetensors     docs/concepts/checkpoints.md has its tensors

It is written batch by batch while the test goes on, at the places that its header will name; the header comes last,
into room that is left for it. So the memory it takes does not grow with the test: two million pictures would need
90 MB that no plan knows of.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lowmem_seq.data.parts import Part
from lowmem_seq.files import writing

MOST_CLASSES = 5
"""Classes that are kept of each picture, the most probable first."""
MOST_MISTAKES = 24
LARGEST_SIDE = 96
"""Of the pictures of mistakes, in pixels; larger ones are scaled down."""
NUMBER_BYTES = 4
"""Of an I32 and of an F32."""
LENGTH_BYTES = 8
"""Of the header's length, with which a safetensors file begins."""


class _IncompleteError(Exception):
    """The test was stopped: what is known of some pictures is not kept."""


@contextlib.contextmanager
def writing_predictions(
    path: Path, part: Part, classes: Sequence[str], weights_sha256: str
) -> Iterator[Predictions]:
    """Give what takes in the predictions of a part; they become `path` once all pictures were taken in.

    Args:
        path: the file.
        part: its pictures are predicted in their order.
        classes: names, in the order of the logits.
        weights_sha256: of the weights that predict.

    Raises:
        OSError: what the disk said; `path` is as it was.
    """
    with contextlib.suppress(_IncompleteError), writing(path) as file:
        predictions = Predictions(file, part, classes, weights_sha256)
        yield predictions
        predictions.finish()


class Predictions:
    """Takes in the logits of a part, batch by batch; made by `writing_predictions`."""

    def __init__(self, file: IO[bytes], part: Part, classes: Sequence[str], weights_sha256: str) -> None:
        self._file, self._part = file, part
        self._metadata = {
            "format": "lowmem-seq",
            "format_version": "1",
            "part": "test",
            "classes": json.dumps(list(classes)),
            "weights_sha256": weights_sha256,
        }
        self._kept = min(MOST_CLASSES, len(classes))
        self._side = min(LARGEST_SIDE, part.pack.image_size)
        self._room = len(self._header(MOST_MISTAKES))
        """Bytes of the header and its length: with fewer mistakes it is no longer than with most."""
        self._count = 0
        self._mistakes: list[tuple[float, int]] = []
        """Probability and number of the picture, the most confident first."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take in the next pictures of the part. Shapes: logits: (B, K), labels: (B,)."""
        probability, taken_for = logits.softmax(1).topk(self._kept)  # (B, k)
        self._write("label", labels)
        self._write("top_class", taken_for)
        self._write("top_probability", probability)
        wrong = (taken_for[:, 0] != labels).nonzero()[:, 0].tolist()
        self._mistakes += [(float(probability[row, 0]), self._count + row) for row in wrong]
        self._mistakes.sort(key=lambda mistake: (-mistake[0], mistake[1]))
        del self._mistakes[MOST_MISTAKES:]
        self._count += len(labels)

    def _write(self, name: str, rows: Tensor) -> None:
        """Put the rows of the next pictures where the tensor `name` has its place."""
        kind, shape, begin, _ = self._places(MOST_MISTAKES)[name]
        row_bytes = NUMBER_BYTES * int(np.prod(shape[1:]))
        self._file.seek(self._room + begin + self._count * row_bytes)
        self._file.write(rows.numpy().astype({"I32": "<i4", "F32": "<f4"}[kind]).tobytes())

    def finish(self) -> None:
        """Write the mistakes and the header.

        Raises:
            _IncompleteError: pictures are missing.
        """
        if self._count < self._part.size:
            raise _IncompleteError
        places = self._places(len(self._mistakes))
        numbers = np.array([number for _, number in self._mistakes], "<i4")  # (M,)
        self._file.seek(self._room + places["mistake"][2])
        self._file.write(numbers.tobytes())
        for number in numbers:  # one by one: at 1024x1024 a picture has 3 MB
            pixels = torch.from_numpy(self._part.read(np.array([number])))[0]  # (S, S, 3)
            self._file.write(scaled_down(pixels, self._side).numpy().tobytes())
        self._file.seek(0)
        self._file.write(self._header(len(self._mistakes), self._room))

    def _places(self, mistakes: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
        """Type, shape, first byte and end of each tensor, counted from the header's end."""
        count, side = self._part.size, self._side
        shapes = {
            "label": ("I32", (count,)),
            "top_class": ("I32", (count, self._kept)),
            "top_probability": ("F32", (count, self._kept)),
            "mistake": ("I32", (mistakes,)),
            "mistake_image": ("U8", (mistakes, side, side, 3)),
        }
        places, end = {}, 0
        for name, (kind, shape) in shapes.items():
            begin = end
            end += int(np.prod(shape)) * (1 if kind == "U8" else NUMBER_BYTES)
            places[name] = (kind, shape, begin, end)
        return places

    def _header(self, mistakes: int, room: int = 0) -> bytes:
        """The header with its length before it, filled up with spaces to `room` bytes, or to the next 8."""
        entries = {
            name: {"dtype": kind, "shape": shape, "data_offsets": (begin, end)}
            for name, (kind, shape, begin, end) in self._places(mistakes).items()
        }
        text = json.dumps({"__metadata__": self._metadata, **entries}).encode()
        length = room - LENGTH_BYTES if room else -(-len(text) // LENGTH_BYTES) * LENGTH_BYTES
        return length.to_bytes(LENGTH_BYTES, "little") + text.ljust(length)


def scaled_down(pixels: Tensor, side: int) -> Tensor:
    """Return a picture of this side. Shapes: pixels: (S, S, 3), uint8 -> (side, side, 3), uint8."""
    if len(pixels) == side:
        return pixels
    channels_first = pixels.permute(2, 0, 1)[None].float()  # (1, 3, S, S)
    small = F.interpolate(channels_first, (side, side), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).contiguous()  # (side, side, 3)
