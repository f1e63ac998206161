"""Loss, accuracy and learning rate over the optimizer steps."""

from __future__ import annotations

from typing import Any

from lowmem_seq.report.history import History
from lowmem_seq.report.plots.figure import (
    ACCURACY,
    BLUE,
    GREY,
    ORANGE,
    VIOLET,
    Figure,
    Trace,
    axes,
    curve,
    first_and_last,
)
from lowmem_seq.report.series import Point, Series

STEP = "optimizer step"


def learning_figures(history: History) -> list[Figure]:
    """Return the plots of what is known."""
    figures = (_loss(history), _accuracy(history), _learning_rate(history))
    return [figure for figure in figures if figure is not None]


def _loss(history: History) -> Figure | None:
    train, validated, tested = (history.by_step[f"{part}_loss"] for part in ("train", "val", "test"))
    if not train and not validated:
        return None
    told = []
    if train:
        first, last = first_and_last(train)
        told.append(f"Training loss went from {first.y:.3f} to {last.y:.3f} within {last.x:,.0f} steps.")
    if validated:
        best = min(validated, key=lambda point: point.y)
        told.append(f"Validation loss was lowest, {best.y:.3f}, {_at(history, best)}.")
    data = [curve("training", train, GREY), *_evaluations(validated, tested)]
    return Figure("loss", "Loss", " ".join(told), data, axes(STEP, "loss", rangemode="normal", hoverformat=".4f"))


def _accuracy(history: History) -> Figure | None:
    validated, tested = history.by_step["val_accuracy"], history.by_step["test_accuracy"]
    if not validated and not tested:
        return None
    told = []
    if validated:
        best = max(validated, key=lambda point: point.y)
        told.append(f"Validation accuracy was highest, {best.y:.2%}, {_at(history, best)}.")
    if tested:
        last = first_and_last(tested)[1]
        told.append(f"On the test part it was {last.y:.2%} {_at(history, last)}.")
    layout = axes(STEP, "accuracy", rangemode="normal", **ACCURACY)
    return Figure("accuracy", "Accuracy", " ".join(told), _evaluations(validated, tested), layout)


def _evaluations(validated: Series, tested: Series) -> list[Trace]:
    dots: dict[str, Any] = {"mode": "lines+markers", "marker": {"size": 5, "color": BLUE}}
    star: dict[str, Any] = {"mode": "markers", "marker": {"size": 13, "symbol": "star", "color": ORANGE}}
    star["cliponaxis"] = False
    data = [curve("validation", validated, BLUE, **dots)] if validated else []
    return [*data, *([curve("test", tested, ORANGE, **star)] if tested else [])]


def _learning_rate(history: History) -> Figure | None:
    rates = history.by_step["learning_rate"]
    if not rates:
        return None
    highest, last = max(rates, key=lambda point: point.y), first_and_last(rates)[1]
    text = f"The learning rate was highest, {highest.y:.2g}, {_at(history, highest)}, and {last.y:.2g} at the end."
    layout = axes(STEP, "learning rate", exponentformat="power", hoverformat=".3g")
    return Figure("learning-rate", "Learning rate", text, [curve("learning rate", rates, VIOLET)], layout)


def _at(history: History, point: Point) -> str:
    epochs = history.epochs_per_step
    return f"at step {point.x:,.0f}" + ("" if epochs is None else f" (epoch {point.x * epochs:.1f})")
