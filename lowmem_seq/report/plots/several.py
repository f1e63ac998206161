"""Several runs over each other: how they learned by the epoch, and what they held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowmem_seq.report.history import History
from lowmem_seq.report.plots.figure import ACCURACY, Figure, axes, curve, label, time_unit

COLOURS = tuple(f"var(--{name})" for name in ("blue", "orange", "green", "red", "violet", "grey"))
PLOT_HEIGHT, LEGEND_LINE_HEIGHT = 300, 20
DASHES = ("solid", "dash", "dot", "dashdot")
"""After the colours, so that 24 runs are told apart."""
BY_EPOCH = (
    ("val_accuracy", "Validation accuracy", "accuracy", ACCURACY),
    ("train_loss", "Training loss", "loss", {"hoverformat": ".4f"}),
    ("val_loss", "Validation loss", "loss", {"hoverformat": ".4f"}),
)


def comparison_figures(named: Sequence[tuple[str, History]]) -> list[Figure]:
    """Return the plots in which at least one of the runs, each with its name, has a curve."""
    figures = [_by_epoch(named, *settings) for settings in BY_EPOCH]
    return [figure for figure in (*figures, _memory(named)) if figure.data]


def _by_epoch(
    named: Sequence[tuple[str, History]], name: str, title: str, what: str, y_settings: dict[str, Any]
) -> Figure:
    """Return a figure over the epochs: steps of runs with other batches don't compare."""
    data = [
        curve(label(run), history.by_step[name], "", 1 / history.epochs_per_step, line=_style(index))
        for index, (run, history) in enumerate(named)
        if history.by_step[name] and history.epochs_per_step
    ]
    text = f"{title} of {len(data)} of {len(named)} runs by the epoch; the table above has where each came to."
    layout = axes("epoch", what, rangemode="normal", **y_settings)
    return Figure(name.replace("_", "-"), title, text, data, *_legend_below(layout, len(data)))


def _legend_below(layout: dict[str, Any], count: int) -> tuple[dict[str, Any], int]:
    """Return a layout with its legend below, where long names have room, and the height for it and the plot."""
    below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
    return {**layout, "legend": below}, PLOT_HEIGHT + LEGEND_LINE_HEIGHT * -(-count // 2)


def _memory(named: Sequence[tuple[str, History]]) -> Figure:
    unit_seconds, unit = time_unit(max((history.clock.alive_seconds for _, history in named), default=0.0))
    data = [
        curve(label(run), history.by_time["tree_bytes"], "", unit_seconds, 1e9, line=_style(index))
        for index, (run, history) in enumerate(named)
        if history.by_time["tree_bytes"]
    ]
    text = f"Resident memory of {len(data)} of {len(named)} runs; the table above has the peaks."
    layout = axes(f"{unit} that the run was alive", "resident memory, GB", hoverformat=".4~g")
    return Figure("memory", "Memory", text, data, *_legend_below(layout, len(data)))


def _style(index: int) -> dict[str, object]:
    return {"color": COLOURS[index % len(COLOURS)], "dash": DASHES[index // len(COLOURS) % len(DASHES)], "width": 2}
