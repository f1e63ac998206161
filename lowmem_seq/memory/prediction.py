"""What a setting that was not measured will need, from those that were.

Peak memory against the micro-batch is affine within 2 to 3 %, and extrapolations missed by -20 to +116 MiB
(docs/log.md). So two lines are drawn, one through the two nearest sizes and one through all by least squares; the
larger value counts, and MARGIN stands on top of it wherever a prediction decides what may be tried. Nothing is ever
chosen that was only predicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

MARGIN = 0.06
"""Share by which the memory of a setting may pass its prediction: of 2 x 96 that were predicted from others and
measured, the worst passed it by 5.8 % (docs/log.md, 2026-11-24)."""


def predict_bytes(measured: Mapping[int, int], micro_batch: int, floor_bytes: int) -> int:
    """Return the bytes expected at a micro-batch; bytes never shrink with it.

    Args:
        measured: bytes by micro-batch, one at least; all else as in the setting asked for.
        micro_batch: the size asked for.
        floor_bytes: what is held for no images at all; where one size was measured alone, all above it grows.
    """
    points = dict(measured)
    if len(points) == 1:
        points[0] = floor_bytes
    nearest = sorted(points, key=lambda size: (abs(size - micro_batch), size))[:2]
    pairs = [(size, points[size]) for size in nearest]
    lines = [_line(pairs)] if len(points) < 3 else [_line(pairs), _line(list(points.items()))]
    anchor = min(measured, key=lambda size: abs(size - micro_batch))
    expected = max(base + slope * micro_batch for base, slope in lines)
    if micro_batch >= anchor:
        expected = max(expected, measured[anchor])
    return round(max(expected, 0))


def bytes_an_image(measured: Mapping[int, int]) -> float:
    """Return by how much the bytes grow with the micro-batch; two sizes at least."""
    return _line(list(measured.items()))[1]


def _line(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return base and slope of the line with the least squares through the points; it never falls."""
    middle_x, middle_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    square = sum((x - middle_x) ** 2 for x, _ in points)
    slope = max(0.0, sum((x - middle_x) * (y - middle_y) for x, y in points) / square)
    return middle_y - slope * middle_x, slope


def kept_share(shares: Sequence[float], recomputed_layers: int) -> float:
    """Return the share of the kept activations that the layers have which are not recomputed."""
    return 1 - sum(shares[:recomputed_layers])


def predict_recomputed(none_bytes: int, all_bytes: int, shares: Sequence[float], recomputed_layers: int) -> int:
    """Return the bytes expected where only the first layers are recomputed.

    Args:
        none_bytes: with no layer recomputed.
        all_bytes: with all layers recomputed.
        shares: of the kept activations, by layer; they sum up to one.
        recomputed_layers: how many, from the first.
    """
    return round(all_bytes + (none_bytes - all_bytes) * kept_share(shares, recomputed_layers))


def with_margin(expected_bytes: int) -> int:
    """Return what must be free for a setting that was only predicted."""
    return round(expected_bytes * (1 + MARGIN))
