from __future__ import annotations

import hashlib
import time

import numpy as np
import numpy.typing as npt
import pytest

from lowmem_seq.data.dataset import Pixels, silent
from lowmem_seq.data.prepare import prepare
from lowmem_seq.data.shapes import CLASSES, SIDE, ShapesDataset, draw

TEST_KEYS = 1 << 40


def drawn(first: int, count: int) -> Pixels:
    return np.concatenate([draw(np.arange(start, start + 250)) for start in range(first, first + count, 250)])


def test_the_pixels_are_pinned() -> None:
    """The same bytes on every system; a change here changes everybody's pack, and needs a new VERSION."""
    assert (
        hashlib.sha256(drawn(0, 1000).tobytes()).hexdigest()
        == "c58e1ff23f83bc8b400f02bf2aad1d3ac90a1efdb8ae796d859ad191e5092309"
    )
    assert (
        hashlib.sha256(drawn(TEST_KEYS, 250).tobytes()).hexdigest()
        == "e87023d5168f2239180ad942abd0745498dd50825c59a1ffe23116a5b558874e"
    )


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    keys = np.array([5, 3, 700, TEST_KEYS + 9])
    for key, pixels in zip(keys, draw(keys), strict=True):
        assert np.array_equal(draw(np.array([key]))[0], pixels)


def test_no_two_pictures_are_the_same() -> None:
    pixels = np.concatenate([drawn(0, 1000), drawn(TEST_KEYS, 1000)])
    assert len({picture.tobytes() for picture in pixels}) == 2000


def test_classes_are_balanced_and_the_size_is_brought_to() -> None:
    with ShapesDataset(40, 16).opened(silent) as content:
        pictures = list(content.pictures(24, silent))
    assert [picture.part for picture in pictures] == ["train"] * 40 + ["test"] * 16
    assert np.bincount([picture.label for picture in pictures]).tolist() == [7] * 8
    assert all(picture.pixels.shape == (24, 24, 3) for picture in pictures)
    assert content.classes == CLASSES


def test_all_of_it_is_drawn_in_seconds() -> None:
    """About two seconds of a processor for 10,000 pictures; the bound is for busy machines."""
    began = time.process_time()
    pack = prepare("shapes", SIDE)
    assert time.process_time() - began < 15
    assert (pack.size("train"), pack.size("test")) == (8000, 2000)
    assert pack.description.parts["test"].by_class == (250,) * 8
    assert pack.description.source == "shapes"
    assert all(deviation > 0.15 for deviation in pack.description.deviation)


@pytest.fixture(scope="module")
def halved() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The pictures at 16x16, as rows with a constant, so that the fit takes a second."""

    def rows(first: int, count: int) -> npt.NDArray[np.float32]:
        pixels = drawn(first, count).reshape(count, 16, 2, 16, 2, 3).mean((2, 4), dtype=np.float32) / 255 - 0.5
        return np.concatenate([pixels.reshape(count, -1), np.ones((count, 1), np.float32)], 1)

    return rows(0, 8000), rows(TEST_KEYS, 2000)


@pytest.mark.parametrize("ridge", [10.0, 100.0, 1000.0])
def test_a_linear_model_stays_below_45_percent(
    halved: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ridge: float
) -> None:
    train, test = halved
    targets = np.eye(8, dtype=np.float32)[np.arange(len(train)) % 8]
    weights = np.linalg.solve(train.T @ train + ridge * np.eye(train.shape[1], dtype=np.float32), train.T @ targets)
    accuracy = float(((test @ weights).argmax(1) == np.arange(len(test)) % 8).mean())
    assert 0.15 < accuracy < 0.45
