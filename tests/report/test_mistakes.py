from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors.numpy import load_file

from lowmem_seq.report.mistakes import FILE, Mistake, PredictionsError, read_mistakes
from tests.report.builders import TESTED_WEIGHTS
from tests.report.predictions import write_predictions

CLASSES = ["cat", "dog", "<b>emu"]


def shown(uri: str) -> Any:
    """The pixels behind an address that holds a picture."""
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def read(path: Path) -> list[Mistake]:
    """The mistakes of the weights that were tested."""
    mistakes = read_mistakes(path, TESTED_WEIGHTS)
    assert mistakes is not None
    return mistakes


def test_a_test_that_left_nothing_has_none_to_tell(tmp_path: Path) -> None:
    assert read_mistakes(tmp_path / FILE, TESTED_WEIGHTS) is None


@pytest.mark.parametrize("weights", ["of another step", None])
def test_mistakes_of_other_weights_are_not_told(tmp_path: Path, weights: str | None) -> None:
    assert read_mistakes(write_predictions(tmp_path, CLASSES), weights) is None


def test_a_model_that_is_always_right_has_no_mistakes(tmp_path: Path) -> None:
    assert read(write_predictions(tmp_path, CLASSES, mistakes=0)) == []


def test_mistakes_come_in_their_order_with_what_was_said(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, CLASSES)
    mistakes = read(path)
    tensors = load_file(path)
    assert [one.label for one in mistakes] == ["dog", "<b>emu", "cat"]
    for index, mistake in enumerate(mistakes):
        said = tensors["top_probability"][index + 1].tolist()
        assert mistake.answers == list(zip(CLASSES, said, strict=True))
        assert mistake.image_uri.startswith("data:image/png;base64,")
        assert numpy.array_equal(shown(mistake.image_uri), tensors["mistake_image"][index])


def test_large_pictures_take_little_of_a_page(tmp_path: Path) -> None:
    mistakes = read(write_predictions(tmp_path, CLASSES, mistakes=24, side=96))
    assert len(mistakes) == 24
    assert shown(mistakes[0].image_uri).shape == (96, 96, 3)
    assert sum(len(one.image_uri) for one in mistakes) < 600_000  # noise, which no picture is


@pytest.mark.parametrize(
    "other",
    [
        {"format_version": "2"},
        {"classes": "no JSON"},
        {"mistake": None},
        {"mistake": numpy.zeros(25, dtype=numpy.int32)},
        {"mistake_image": numpy.zeros((3, 8, 9, 3), dtype=numpy.uint8)},
        {"mistake_image": numpy.zeros((3, 97, 97, 3), dtype=numpy.uint8)},
        {"mistake_image": numpy.zeros((3, 16, 16, 3), dtype=numpy.float32)},
        {"label": numpy.zeros((40, 2), dtype=numpy.int32)},
        {"top_probability": numpy.zeros((40, 4), dtype=numpy.float32)},
        {"top_class": numpy.zeros((40, 6), dtype=numpy.int32)},
    ],
    ids=str,
)
def test_a_file_that_is_not_as_it_should_be_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    path = write_predictions(tmp_path, CLASSES, **other)
    with pytest.raises(PredictionsError, match=FILE):
        read(path)


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, CLASSES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PredictionsError, match="can't be used"):
        read(path)


def test_a_mistake_outside_of_the_pictures_is_passed_over(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, CLASSES, mistake=numpy.array([-1, 5, 40], dtype=numpy.int32))
    assert [one.label for one in read(path)] == ["<b>emu"]


def test_a_class_without_a_name_has_its_number(tmp_path: Path) -> None:
    path = write_predictions(tmp_path, CLASSES, label=numpy.full(40, 7, dtype=numpy.int32))
    assert {one.label for one in read(path)} == {"class 7"}
