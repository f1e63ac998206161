"""The picture of `python -m benchmarks.scaling`: images/s against what grows, a panel for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.page import drawing

COLOURS = {"native": "#0b3c5d", "torch": "#62a8d1"}
LABELS = {"native": "our function", "torch": "nn.LSTM"}
EXPECTED_COLOUR = "#b3261e"
TICKS = [first * 10**power for power in range(6) for first in (1, 3)]
"""Of images/s."""


@dataclass(frozen=True)
class Line:
    """Images/s at some places."""

    name: str
    places: Sequence[int]
    rates: Sequence[float]
    notes: Sequence[str] = ()
    """Written beside the points."""
    is_expected: bool = False
    """Whether it was not measured, but follows from the first point and the work."""


@dataclass(frozen=True)
class Panel:
    """What grows, and what that does to the images/s."""

    title: str
    lines: Sequence[Line]
    ticks: Sequence[int]


def draw(panels: Sequence[Panel], picture: Path) -> None:
    """Draw panels side by side, on one scale of images/s.

    Raises:
        SystemExit: matplotlib is not there.
    """
    pyplot = drawing()
    figure, places = pyplot.subplots(1, len(panels), figsize=(11.0, 3.9), sharey=True, layout="constrained")
    named = {}
    for axes, panel in zip(places, panels, strict=True):
        axes.set(xscale="log", yscale="log", xlabel=panel.title)
        axes.set_xticks(panel.ticks, [short(tick) for tick in panel.ticks])
        axes.minorticks_off()
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        for line in panel.lines:
            style = {
                "color": COLOURS.get(line.name, EXPECTED_COLOUR),
                "linewidth": 1.8,
                "marker": "o",
                "markersize": 4,
            }
            if line.is_expected:
                style |= {"linestyle": "--", "linewidth": 1.2, "marker": "", "zorder": 3}
            named[LABELS.get(line.name, line.name)] = axes.plot(line.places, line.rates, **style)[0]
            for place, rate, note in zip(line.places, line.rates, line.notes, strict=False):
                offset = {"textcoords": "offset points", "xytext": (0, -16), "ha": "center"}
                axes.annotate(note, (place, rate), color="#555555", fontsize=8, **offset)
        if any(line.notes for line in panel.lines):
            axes.margins(x=0.16)  # room for the notes at both ends
    low, high = places[0].get_ylim()
    places[0].set_yticks([tick for tick in TICKS if low <= tick <= high])
    places[0].minorticks_off()
    places[0].set_ylabel("images/s")
    places[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    figure.savefig(picture, metadata={"Date": None})
    pyplot.close(figure)


def short(value: int) -> str:
    """Return a number as an axis has room for it."""
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if value >= unit:
            return f"{value // unit}{name}"
    return str(value)
