"""What all plots are made of: curves, axes, colours, and names from elsewhere as Plotly may show them.

A plot is Plotly's JSON. Its colours are the names of the page's CSS variables; report.js puts in what they are in
light or dark.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lowmem_seq.report.series import Point, Series
from lowmem_seq.text import harmless

Trace = dict[str, Any]

BLUE, ORANGE, GREEN, RED, GREY, VIOLET, CARD = (
    f"var(--{name})" for name in ("blue", "orange", "green", "red", "grey", "violet", "card")
)
ACCURACY = {"tickformat": ".0%", "hoverformat": ".2%", "autorangeoptions": {"clipmin": 0, "clipmax": 1}}
"""Of an axis; around a single value Plotly would show 100 % on either side."""
LONGEST_LABEL = 28
LONGEST_HOVER_LINE, MOST_HOVER_LINES = 56, 8
FIRST_STRONG_ISOLATE, POP_ISOLATE = "\u2068", "\u2069"


@dataclass(frozen=True)
class Figure:
    """A plot."""

    name: str
    """Of the element that it is drawn in."""
    title: str
    text: str
    """What is to be seen in it, for those who don't see it."""
    data: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 280
    """In pixels."""
    is_wide: bool = False
    """Whether it takes the page's whole width."""


def curve(
    name: str, points: Iterable[Point], colour: str, x_unit: float = 1.0, y_unit: float = 1.0, **more: Any
) -> Trace:
    """Return a curve.

    Args:
        name: what the legend calls it, as Plotly shows it: see `label`.
        points: those of a Series.
        colour: of the line.
        x_unit: what x is divided by.
        y_unit: what y is divided by.
        more: Plotly's own settings of a trace.
    """
    kept = list(points)
    return {
        **{"type": "scatter", "name": name, "mode": "lines", "line": {"color": colour, "width": 2}},
        **{"x": [short(point.x / x_unit) for point in kept], "y": [short(point.y / y_unit) for point in kept]},
        **more,
    }


def short(number: float) -> float:
    """Return a number with the digits that a plot can show, so that a page doesn't grow by those it can't."""
    return float(f"{number:.6g}")


def axes(x_title: str, y_title: str, **y_settings: Any) -> dict[str, Any]:
    """Return a layout with these titles; both axes begin at 0, unless the settings of y say otherwise."""
    return {
        "xaxis": {"title": {"text": x_title}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": y_title}, "rangemode": "tozero", **y_settings},
    }


def label(text: str) -> str:
    """Return a name from elsewhere as Plotly shows it letter by letter.

    Plotly reads a little HTML; and letters that run from right to left would turn what stands beside them.
    """
    line = harmless(text, one_line=True)
    return (
        FIRST_STRONG_ISOLATE
        + _escaped(line if len(line) <= LONGEST_LABEL else f"{line[:LONGEST_LABEL]}…")
        + POP_ISOLATE
    )


def paragraph(text: str) -> str:
    """Return a sentence as Plotly shows it in a few lines, letter by letter."""
    lines = textwrap.wrap(
        harmless(text, one_line=True), LONGEST_HOVER_LINE, max_lines=MOST_HOVER_LINES, placeholder=" …"
    )
    return "<br>".join(_escaped(line) for line in lines)


def _escaped(text: str) -> str:
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, entity)
    return text


def clock_text(at: float | None) -> str:
    """Return a time as the clock of the machine that makes the page tells it; nothing where it knows none such."""
    with contextlib.suppress(OSError, OverflowError, ValueError):  # Windows knows no years from 3001 on
        return "" if at is None else f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}"
    return ""


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit in which so long a time is drawn: its seconds, and its name."""
    return next(
        ((unit, name) for unit, name in ((3600.0, "hours"), (60.0, "minutes")) if seconds > 2 * unit),
        (1.0, "seconds"),
    )


def times(count: int) -> str:
    """Return how often something happened, in words."""
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count:,} times")


def first_and_last(series: Series) -> tuple[Point, Point]:
    """Return the first and the last point of a series that has some."""
    points = list(series)
    return points[0], points[-1]
