"""A small set of drawn pictures that needs no network: one of eight shapes before noise, texture and clutter.

Place, size, angle and all colours are drawn at random, and other things lie beside and over the shape: a pixel by
itself says little, so a linear model on pixels finds less than half of the classes, and a good one has to see
outlines.

The pictures are the same on every system. The draws are integers, and from there to the bytes there are only
IEEE additions, multiplications, divisions, square roots and comparisons, element by element: no function of the
system's libm, and no sum whose order depends on the processor. Cosines come from a table rounded to 12 bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from lowmem_seq.data.dataset import PART_NAMES, Content, PartName, Picture, Pixels, Progress, Skipped, Stamp
from lowmem_seq.data.draws import Purpose, uniforms
from lowmem_seq.data.pictures import fitted

Reals = npt.NDArray[np.float32]

SIDE = 32
TRAIN_COUNT = 8_000
TEST_COUNT = 2_000
SEED = 20_220_504
VERSION = 1
_TEST_OFFSET = 1 << 40  # samples of the test part are keyed from here on, whatever the train part's size
_DRAWN_AT_ONCE = 250

_ANGLES = 1024
_COSINES = np.array(
    [round(4096 * math.cos(2 * math.pi * n / _ANGLES)) for n in range(_ANGLES)], np.float32
) / np.float32(4096)


def _cosine(angle: npt.NDArray[np.int64]) -> Reals:
    cosine: Reals = _COSINES[angle % _ANGLES]
    return cosine


def _sine(angle: npt.NDArray[np.int64]) -> Reals:
    sine: Reals = _COSINES[(angle - _ANGLES // 4) % _ANGLES]
    return sine


def _turned(x: Reals, y: Reals, turns: float) -> Reals:
    """The distance along the direction that is `turns` of a full turn away from x."""
    angle = np.array(round(turns * _ANGLES))
    distance: Reals = x * _cosine(angle) + y * _sine(angle)
    return distance


# Signed distances to the outline of each shape: negative inside; x and y are in units of the shape's radius.


def _disc(x: Reals, y: Reals) -> Reals:
    distance: Reals = np.sqrt(x * x + y * y) - np.float32(0.88)
    return distance


def _box(x: Reals, y: Reals, half_width: float, half_height: float) -> Reals:
    distance: Reals = np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))
    return distance


def _square(x: Reals, y: Reals) -> Reals:
    return _box(x, y, 0.75, 0.75)


def _triangle(x: Reals, y: Reals) -> Reals:
    sides = [_turned(x, y, third / 3) for third in range(3)]
    distance: Reals = np.maximum(np.maximum(sides[0], sides[1]), sides[2]) - np.float32(0.52)
    return distance


def _star(x: Reals, y: Reals) -> Reals:
    """A pentagram: the points that lie beyond at most one of five lines."""
    largest = second = np.full_like(x, -9)
    for fifth in range(5):
        line = _turned(x, y, fifth / 5)
        second = np.maximum(second, np.minimum(largest, line))
        largest = np.maximum(largest, line)
    distance: Reals = second - np.float32(0.36)
    return distance


def _cross(x: Reals, y: Reals) -> Reals:
    distance: Reals = np.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))
    return distance


def _ring(x: Reals, y: Reals) -> Reals:
    distance: Reals = np.abs(np.sqrt(x * x + y * y) - np.float32(0.7)) - np.float32(0.22)
    return distance


def _crescent(x: Reals, y: Reals) -> Reals:
    outer = np.sqrt(x * x + y * y) - np.float32(0.95)
    moved = x - np.float32(0.42)
    distance: Reals = np.maximum(outer, np.float32(0.72) - np.sqrt(moved * moved + y * y))
    return distance


def _stripes(x: Reals, y: Reals) -> Reals:
    to_nearest_bar = np.minimum(np.abs(y), np.abs(np.abs(y) - np.float32(0.68)))
    distance: Reals = np.maximum(to_nearest_bar - np.float32(0.18), np.abs(x) - np.float32(0.85))
    return distance


_OUTLINES: dict[str, Callable[[Reals, Reals], Reals]] = {
    "circle": _disc,
    "crescent": _crescent,
    "cross": _cross,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "stripes": _stripes,
    "triangle": _triangle,
}
CLASSES = tuple(_OUTLINES)


class _Draws:
    """The random numbers of some samples, handed out in order."""

    def __init__(self, samples: npt.NDArray[np.int64], count: int) -> None:
        self._numbers = uniforms(SEED, VERSION, samples, Purpose.AUGMENTATION, count)  # (B, count)
        self._next = 0

    def take(self, count: int) -> Reals:
        """Numbers in [0, 1): (B, count)."""
        self._next += count
        numbers: Reals = self._numbers[:, self._next - count : self._next]
        return numbers

    def between(self, low: float, high: float, count: int = 1) -> Reals:
        """Numbers in [low, high): (B, count)."""
        numbers: Reals = np.float32(low) + np.float32(high - low) * self.take(count)
        return numbers

    def angles(self, turns: float) -> npt.NDArray[np.int64]:
        """Table positions of angles, up to half of `turns` full turns each way: (B, 1)."""
        positions: npt.NDArray[np.int64] = self.between(-turns * _ANGLES / 2, turns * _ANGLES / 2).astype(np.int64)
        return positions


def _colours(draws: _Draws) -> tuple[Reals, Reals]:
    """The colours of back and front, which differ clearly in at least one channel: (B, 3) each, mostly 0 to 1.

    In that channel the front is nearly always the lighter one, so that a small model learns in minutes.
    """
    back = draws.between(0.05, 0.5, 3)
    step = draws.between(-0.6, 0.6, 3)
    strongest = np.abs(step) >= np.abs(step).max(axis=1, keepdims=True)
    front = back + np.where(strongest, np.float32(0.28) + np.abs(step) * np.float32(0.6), step)
    outside = (front < 0) | (front > 1)
    return back, np.where(outside, back + back - front, front)  # mirrored, the step keeps its size


def _texture(draws: _Draws, cells: int) -> Reals:
    """Smooth noise between -0.5 and 0.5 with `cells` cells a side: (B, H, W)."""
    knots = draws.between(-0.5, 0.5, (cells + 1) ** 2).reshape(-1, cells + 1, cells + 1)
    place = (np.arange(SIDE, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / SIDE)
    low = place.astype(np.int64)
    share = place - low.astype(np.float32)
    rows = knots[:, low, :] * (1 - share)[None, :, None] + knots[:, low + 1, :] * share[None, :, None]
    # (B, H, cells + 1) -> (B, H, W)
    noise: Reals = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    return noise


def _laid_over(picture: Reals, coverage: Reals, colour: Reals) -> None:
    """Blend a colour: (B, 3) or (B, H, W, 3) into picture: (B, H, W, 3) by coverage: (B, H, W), in place."""
    colour = colour[:, None, None, :] if colour.ndim == 2 else colour
    picture += (colour - picture) * coverage[..., None]


def _coverage(distance: Reals) -> Reals:
    """How much of a pixel lies inside an outline at this signed distance in pixels."""
    share_inside: Reals = np.clip(np.float32(0.5) - distance, 0, 1)
    return share_inside


def _placed(draws: _Draws, radius: Reals, reach: float, turns: float = 1.0) -> tuple[Reals, Reals]:
    """Coordinates in radii from a random centre up to `reach` pixels from the middle, turned: (B, H, W) each."""
    pixel = np.arange(SIDE, dtype=np.float32) - np.float32((SIDE - 1) / 2)
    x = (pixel[None, None, :] - draws.between(-reach, reach)[:, :, None]) / radius[:, :, None]
    y = (pixel[None, :, None] - draws.between(-reach, reach)[:, :, None]) / radius[:, :, None]
    angle = draws.angles(turns)
    cosine, sine = _cosine(angle)[:, :, None], _sine(angle)[:, :, None]
    return x * cosine + y * sine, y * cosine - x * sine


def draw(samples: npt.NDArray[np.int64]) -> Pixels:
    """Return the pictures with these keys: (B, 32, 32, 3). A key's class is its remainder by 8."""
    draws = _Draws(samples, 256 + SIDE * SIDE * 3)
    back, front = _colours(draws)
    texture = _texture(draws, 3) * draws.between(0.1, 0.5)[:, :, None]  # (B, H, W)
    texture += _texture(draws, 8) * draws.between(0.1, 0.4)[:, :, None]
    tint = draws.between(0.4, 1.0, 3)
    picture = back[:, None, None, :] + texture[..., None] * tint[:, None, None, :]  # (B, H, W, 3)

    for _ in range(2):  # clutter behind the shape: discs and bars in colours near those of the picture
        colour = front + (back - front) * draws.take(1) + draws.between(-0.15, 0.15, 3)
        radius = draws.between(2.0, 5.0)
        x, y = _placed(draws, radius, 14.0)
        longness = draws.between(0.3, 1.6)[:, :, None]
        _laid_over(picture, _coverage(_box(x, y * longness, 0.9, 0.9) * radius[:, :, None]), colour)

    radius = draws.between(8.0, 13.0)
    x, y = _placed(draws, radius, 4.0, turns=0.15)
    squeeze = draws.between(0.85, 1.18)[:, :, None]
    shape_colour = (
        front[:, None, None, :] + _texture(draws, 4)[..., None] * draws.between(0.0, 0.35)[:, :, None, None]
    )
    labels = samples % len(CLASSES)
    distance = np.empty_like(x)
    for label, outline in enumerate(_OUTLINES.values()):
        own = labels == label
        distance[own] = outline(x[own] * squeeze[own], y[own])
    _laid_over(picture, _coverage(distance * radius[:, :, None]), shape_colour)

    for _ in range(2):  # clutter over the shape: thin bars that interrupt its outline
        colour = back + draws.between(-0.2, 0.2, 3)
        length, width = draws.between(3.0, 9.0), draws.between(0.5, 1.3)
        x, y = _placed(draws, np.ones_like(length), 12.0)
        bar = np.maximum(np.abs(x) - length[:, :, None], np.abs(y) - width[:, :, None])
        _laid_over(picture, _coverage(bar), colour)

    noise = draws.between(-1, 1, SIDE * SIDE * 3)
    strength = draws.between(0.02, 0.13)
    picture += (noise * strength).reshape(picture.shape)
    rounded: Pixels = np.floor(np.clip(picture, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return rounded


class _ShapesContent:
    classes = CLASSES
    test_part = "drawn like the train part, from other random numbers"

    def __init__(self, counts: dict[PartName, int]) -> None:
        self.skipped = Skipped()
        self.picture_count = sum(counts.values())
        self._counts = counts

    def hashes(self, progress: Progress) -> Iterable[tuple[str, str]]:
        progress("checking the recipe", 0, 1)
        recipe = json.dumps({"version": VERSION, "seed": SEED, **self._counts}, sort_keys=True)
        return [("shapes", hashlib.sha256(recipe.encode()).hexdigest())]

    def pictures(self, image_size: int, progress: Progress) -> Iterator[Picture]:
        done = 0
        for part in PART_NAMES:
            first = _TEST_OFFSET if part == "test" else 0
            for start in range(0, self._counts[part], _DRAWN_AT_ONCE):
                samples = first + np.arange(start, min(start + _DRAWN_AT_ONCE, self._counts[part]))
                progress("drawing shapes", done, self.picture_count)
                for label, pixels in zip((samples % len(CLASSES)).tolist(), draw(samples), strict=True):
                    yield Picture(part, label, fitted(pixels, image_size))
                done += len(samples)
        progress("drawing shapes", done, self.picture_count)


class ShapesDataset:
    """The drawn pictures; their number can be made smaller for tests."""

    name = "shapes"
    source = "shapes"

    def __init__(self, train_count: int = TRAIN_COUNT, test_count: int = TEST_COUNT) -> None:
        self._counts: dict[PartName, int] = {"train": train_count, "test": test_count}

    def stamps(self) -> Iterable[Stamp]:
        """The version of the drawing and the number of pictures."""
        return [Stamp(f"version {VERSION}", self._counts["train"], self._counts["test"])]

    @contextlib.contextmanager
    def opened(self, progress: Progress) -> Iterator[Content]:
        """Nothing has to be downloaded or listed."""
        progress("drawing shapes", 0, self._counts["train"] + self._counts["test"])
        yield _ShapesContent(self._counts)
