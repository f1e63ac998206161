"""What the test showed: accuracy by class, and which class was taken for which."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from lowmem_seq.report.plots.figure import BLUE, Figure, label, short, times
from lowmem_seq.runs.events import Event
from lowmem_seq.text import harmless

MOST_BARS = 40
MOST_NUMBERED = 12
"""Up to so many classes the cells of the matrix have their numbers written in them."""
MOST_IN_A_MATRIX = 120
"""With more classes a page would hold ten thousands of numbers, in cells too small to see."""
MOST_CONFUSIONS = 10
LONGEST_NAME = 60
HIGHEST = 760
ZERO_WIDTH = "\u200b"
LARGEST_COUNT = 2**53
"""Of pictures; JavaScript has no larger whole numbers."""


class Confusion(NamedTuple):
    """Pictures of one class that were taken for another one."""

    label: str
    answer: str
    times: int
    share: float
    """Of all pictures of that class."""


class Outcome(NamedTuple):
    """What the test event tells, seen to be whole."""

    classes: list[str]
    accuracies: list[float | None]
    """0 to 1, by class; None where the test part has no picture of it."""
    confusion: list[list[int]]
    """confusion[i][j] counts the pictures of class i that were taken for class j."""


def read_outcome(test: Event | None, started: Event | None) -> Outcome | None:
    """Return what was tested, or None where nothing was, or it is not told as expected."""
    test, classes = test or {}, (started or {}).get("classes")
    accuracies, confusion = test.get("class_accuracies"), test.get("confusion")
    if not (isinstance(classes, list) and isinstance(accuracies, list) and isinstance(confusion, list)):
        return None
    rows_fit = all(
        isinstance(row, list)
        and len(row) == len(classes)
        and all(type(cell) is int and 0 <= cell <= LARGEST_COUNT for cell in row)
        for row in confusion
    )
    known = all(one is None or (isinstance(one, int | float) and 0 <= one <= 1) for one in accuracies)
    fits = len(classes) == len(accuracies) == len(confusion) > 0
    return Outcome([str(name) for name in classes], accuracies, confusion) if fits and rows_fit and known else None


def confusions(outcome: Outcome) -> list[Confusion]:
    """Return the most frequent confusions, the most frequent first."""
    found = [
        Confusion(outcome.classes[one], outcome.classes[other], count, count / sum(row))
        for one, row in enumerate(outcome.confusion)
        for other, count in enumerate(row)
        if count and one != other
    ]
    return sorted(found, key=lambda confusion: confusion.times, reverse=True)[:MOST_CONFUSIONS]


def outcome_figures(outcome: Outcome) -> list[Figure]:
    """Return the bars of the classes and, unless there are very many, the matrix."""
    figures = [_class_accuracies(outcome)]
    if len(outcome.classes) <= MOST_IN_A_MATRIX:
        figures.append(_matrix(outcome))
    return figures


def _class_accuracies(outcome: Outcome) -> Figure:
    known = sorted(
        (accuracy, name)
        for name, accuracy in zip(outcome.classes, outcome.accuracies, strict=True)
        if accuracy is not None
    )
    shown = known[:MOST_BARS]
    trace = {
        **{"type": "bar", "orientation": "h", "marker": {"color": BLUE}},
        "x": [short(accuracy) for accuracy, _ in shown],
        "y": list(range(len(shown))),  # names may be alike once they are cut
        "text": [f"{accuracy:.1%}" for accuracy, _ in shown],
        "customdata": [label(name) for _, name in shown],
        "hovertemplate": "%{customdata}: %{x:.2%}<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "accuracy on the test part"}, "tickformat": ".0%", "range": [0, 1.08]},
        "yaxis": {**_named([name for _, name in shown]), "autorange": "reversed"},
        "hovermode": "closest",
    }
    text = "No class was tested."
    if known:
        (lowest, hardest), (highest, easiest) = known[0], known[-1]
        text = (
            f"{_told(hardest)} was the hardest class ({lowest:.1%}), {_told(easiest)} the easiest ({highest:.1%})."
        )
    if len(known) > len(shown):
        text += f" The {len(shown)} hardest of {len(known)} classes are shown."
    return Figure("classes", "Accuracy by class", text, [trace], layout, _height(outcome), _are_wide(outcome))


def _matrix(outcome: Outcome) -> Figure:
    count, names = len(outcome.classes), _unlike(outcome.classes)
    shares = [[cell / max(1, sum(row)) for cell in row] for row in outcome.confusion]
    trace: dict[str, Any] = {
        **{"type": "heatmap", "x": names, "y": names, "z": [[round(share, 4) for share in row] for row in shares]},
        **{"zmin": 0, "zmax": 1, "colorscale": [[0, "var(--card)"], [1, BLUE]], "xgap": 1, "ygap": 1},
        "customdata": outcome.confusion,
        "hovertemplate": "is %{y}, taken for %{x}: %{customdata}, %{z:.1%} of its class<extra></extra>",
        "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "title": {"text": ""}},
    }
    if count <= MOST_NUMBERED:
        trace |= {"text": outcome.confusion, "texttemplate": "%{text}"}
    worst = confusions(outcome)[:1]
    told = "None was taken for another class."
    if worst:
        one = worst[0]
        taken = f"{_told(one.label)} was taken for {_told(one.answer)}"
        told = f"Most often {taken}: {times(one.times)}, {one.share:.1%} of them."
    text = f"Rows are what a picture is, columns what it was taken for; colours are shares of the row. {told}"
    layout = {
        "xaxis": {"type": "category", "title": {"text": "taken for"}},
        "yaxis": {"type": "category", "title": {"text": "is"}, "autorange": "reversed"},
        "hovermode": "closest",
    }
    return Figure("confusion", "Confusion matrix", text, [trace], layout, _height(outcome), _are_wide(outcome))


def _height(outcome: Outcome) -> int:
    """Return the pixels of both plots, which stand side by side."""
    return min(HIGHEST, 210 + 34 * len(outcome.classes))


def _are_wide(outcome: Outcome) -> bool:
    """Whether the plots stand below each other, where so many names have room."""
    return len(outcome.classes) > MOST_NUMBERED


def _unlike(names: list[str]) -> list[str]:
    """Return names as Plotly shows them, as many as there is room for; those that look alike differ unseen."""
    seen: Counter[str] = Counter()
    unlike = []
    for name in map(label, names):
        unlike.append(name + ZERO_WIDTH * seen[name])
        seen[name] += 1
    return unlike


def _named(names: list[str]) -> dict[str, Any]:
    """Return an axis whose places 0, 1, ... have names."""
    return {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": [label(name) for name in names]}


def _told(name: str) -> str:
    """Return a name in a sentence."""
    return harmless(name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…", one_line=True)
