"""The plots of a run that several machines trained: theirs over each other, and on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lowmem_seq.report.clock import SPENT
from lowmem_seq.report.history import History
from lowmem_seq.report.notes import CLOCKS_AGREE_SECONDS, listed
from lowmem_seq.report.part import Part, Row
from lowmem_seq.report.plots.figure import (
    BLUE,
    CARD,
    GREEN,
    GREY,
    ORANGE,
    RED,
    VIOLET,
    Figure,
    Trace,
    axes,
    clock_text,
    curve,
    first_and_last,
    label,
    short,
    time_unit,
)
from lowmem_seq.report.plots.learning import STEP, learning_figures
from lowmem_seq.report.plots.machine import (
    LANES,
    SPAN_COLOURS,
    SPENT_COLOURS,
    mark_trace,
    memory_figure,
    span_bars,
    spent_figure,
)
from lowmem_seq.report.series import Point
from lowmem_seq.report.shared import SharedRun
from lowmem_seq.units import format_seconds

COLOURS = (BLUE, ORANGE, GREEN, VIOLET, RED, GREY)
DASHES = ("solid", "dash", "dot", "dashdot")
"""After the colours."""
INK = "var(--ink)"
MOST_AREAS = 12
"""Machines with an area of their own; more could not be told apart."""
LANE_HEIGHT = 44
ON_TOP: dict[str, Any] = {
    **{"width": 0.24, "marker": {"color": SPAN_COLOURS["alone"], "line": {"color": CARD, "width": 1.5}}},
}
"""How a bar is drawn on another one."""


class Drawn(NamedTuple):
    """A machine whose folder is there."""

    label: str
    """As Plotly shows it."""
    name: str
    """As a sentence has it."""
    history: History
    part: Part
    style: dict[str, Any]
    """Of its lines."""


def drawn_of(shared: SharedRun) -> list[Drawn]:
    """Return the machines whose folders are there, in the order of the table."""
    return [
        Drawn(label(one.label), one.label, one.reading.history, one.reading.part, _style(index))
        for index, one in enumerate(shared.machines)
        if one.reading is not None
    ]


def colours_of(shared: SharedRun) -> list[str]:
    """Return the colour of each machine, as CSS has it."""
    return [_style(index)["color"] for index, _ in enumerate(shared.machines)]


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "dash": DASHES[index // len(COLOURS) % len(DASHES)], "width": 2}


def samples_figure(shared: SharedRun) -> Figure | None:
    """Return how many samples each machine had done when, one above the other."""
    rows = max((one.part.rows for one in shared.readings if one.part.told is shared.told), key=len, default=[])
    if shared.told is None or len(rows) < 2:
        return None
    areas = [one for one in shared.machines if one.figures["machine"] in shared.told.by_machine][:MOST_AREAS]
    data = [
        _area(label(one.label), rows, str(one.figures["machine"]), _style(shared.machines.index(one))["color"])
        for one in areas
    ]
    told = [f"{one.label} {one.figures['share']:.1%}" for one in areas if one.figures["share"] is not None]
    text = f"{shared.told.accepted:,} of {shared.told.total:,} samples are in the common weights" + (
        f": {', '.join(told)}." if told else "."
    )
    layout = axes("", "samples accepted", hoverformat=",")
    layout["xaxis"] = {"type": "date"}
    return Figure("samples", "Who did how much", text, data, layout, 320, is_wide=True)


def _area(name: str, rows: Sequence[Row], machine: str, colour: str) -> Trace:
    counts = [row.by_machine[machine].accepted if machine in row.by_machine else 0 for row in rows]
    return {
        **{"type": "scatter", "mode": "lines", "name": name, "stackgroup": "machines"},
        **{"x": [clock_text(row.at) for row in rows], "y": counts},
        "line": {"color": colour, "width": 1.5},
    }


def shared_learning(drawn: Sequence[Drawn], lead: History) -> list[Figure]:
    """Return the plots of learning: the training loss of each machine, and all else as the lead knows it."""
    figures = learning_figures(lead)
    losses = [_scaled(one, "train_loss", lead) for one in drawn if one.history.by_step["train_loss"]]
    if len(losses) < 2:
        return figures
    return [_loss(figure, losses, drawn, lead) if figure.name == "loss" else figure for figure in figures]


def _scaled(one: Drawn, name: str, lead: History) -> Trace:
    """Return a curve over the steps of the lead, where another machine's have another number of samples."""
    batches = (lead.effective_batch, one.history.effective_batch)
    unit = batches[0] / batches[1] if all(batches) else 1.0
    return curve(f"{one.label} training", one.history.by_step[name], "", unit, line=one.style)


def _loss(figure: Figure, losses: Sequence[Trace], drawn: Sequence[Drawn], lead: History) -> Figure:
    told = [
        f"{one.name} {first_and_last(series)[0].y:.3f} to {first_and_last(series)[1].y:.3f}"
        for one in drawn
        if (series := one.history.by_step["train_loss"])
    ]
    others = [trace for trace in figure.data if trace["name"] != "training"]
    validated = [
        trace | {"line": {"color": INK, "width": 2}, "marker": trace["marker"] | {"color": INK}}
        if trace["name"] == "validation"
        else trace | {"marker": trace["marker"] | {"color": RED}}
        for trace in others
    ]
    text = f"Training loss of each machine on its own samples: {'; '.join(told)}."
    best = min(lead.by_step["val_loss"], key=lambda point: point.y, default=None)
    if best is not None:
        text += f" Validation loss of the common weights was lowest, {best.y:.3f}, at step {best.x:,.0f}."
    layout = axes(STEP, "loss", rangemode="normal", hoverformat=".4f")
    return replace(figure, text=text, data=[*losses, *validated], layout=layout)


def shared_machines(drawn: Sequence[Drawn]) -> list[Figure]:
    """Return the memory of each machine under its own cap, and the speeds of all over each other."""
    memories = [
        replace(figure, name=f"memory-{index}", title=f"{figure.title}: {one.name}", is_wide=False, height=300)
        for index, one in enumerate(drawn)
        if (figure := memory_figure(one.history)) is not None
    ]
    return [*memories, *_speed(drawn)]


def _speed(drawn: Sequence[Drawn]) -> list[Figure]:
    rates = [(one, list(one.history.by_time["images_per_second"])) for one in drawn]
    data = [_rates(one, points) for one, points in rates if points]
    if not data:
        return []
    layout = axes("", "images/s", hoverformat=",.0f")
    layout["xaxis"] = {"type": "date"}
    text = "What each machine trained, by the clock; evaluations, saves and waiting for work are left out."
    return [Figure("speed", "Speed", text, data, layout, is_wide=True)]


def _rates(one: Drawn, points: Sequence[Point]) -> Trace:
    """Return a curve by the clock, with a gap where the machine did not train."""
    began = [span.begin for span in one.history.clock.spans if span.what == "training"]
    kept: list[Point | None] = []
    for before, point in zip([points[0], *points], points, strict=False):
        away = any((before.at or 0.0) < at <= (point.at or 0.0) for at in began)
        kept += [None, point] if away else [point]
    return {
        **{"type": "scatter", "mode": "lines", "name": one.label, "line": one.style},
        "x": [None if point is None else clock_text(point.at) for point in kept],
        "y": [None if point is None else short(point.y) for point in kept],
    }


def shared_timeline(shared: SharedRun, drawn: Sequence[Drawn]) -> Figure | None:
    """Return what went on when on each machine, by the clock, with what happened there on top."""
    spans = [(one.label, span) for one in drawn for span in one.history.clock.spans]
    if not spans:
        return None
    alone = [(one.label, span) for one in drawn for span in one.part.spells.spans(one.part.heard_at)]
    data = []
    for what in SPAN_COLOURS:
        chosen = [(lane, span) for lane, span in (*spans, *alone) if span.what == what]
        if chosen:
            data.append({**span_bars(what, chosen), **(ON_TOP if what == "alone" else {})})
    data += _happened(drawn)
    begin, end = min(span.begin for _, span in spans), max(span.end for _, span in spans)
    text = f"From {clock_text(begin)} to {clock_text(end)}. {_told_alone(drawn)} {_told_clocks(shared)}"
    layout = {
        "xaxis": {"type": "date"},
        "yaxis": {
            **{"type": "category", "categoryorder": "array", "fixedrange": True},
            "categoryarray": [one.label for one in reversed(drawn)],
        },
        **{"barmode": "overlay", "hovermode": "closest", "bargap": 0.35},
    }
    return Figure("timeline", "Timeline", text, data, layout, 170 + LANE_HEIGHT * len(drawn), is_wide=True)


def _happened(drawn: Sequence[Drawn]) -> list[Trace]:
    """Return a trace of marks for each kind of happening, on the machines' own lanes."""
    traces: list[Trace] = []
    for kind in LANES:
        chosen = [
            (one, happening)
            for one in drawn
            for happening in one.history.happenings
            if happening.kind == kind and happening.at is not None
        ]
        if chosen:
            times = [clock_text(happening.at) for _, happening in chosen]
            texts = [
                f"{one.name}, {at}: {happening.text}" for at, (one, happening) in zip(times, chosen, strict=True)
            ]
            traces.append(mark_trace(kind, times, [one.label for one, _ in chosen], texts))
    return traces


def _told_alone(drawn: Sequence[Drawn]) -> str:
    told = [
        f"{one.name} for {format_seconds(one.part.spells.seconds(one.part.heard_at))}"
        for one in drawn
        if one.part.spells.count
    ]
    return (
        f"Alone, without another machine: {listed(told)}." if told else "No machine that is shown was ever alone."
    )


def _told_clocks(shared: SharedRun) -> str:
    """Return whether the machines' clocks agree, as far as that is known."""
    others = [one for one in shared.machines if one.reading is not None and not one.figures["host"]]
    ahead = [one.figures["clock_ahead_seconds"] for one in others]
    if len([one for one in shared.machines if one.reading is not None]) < 2:
        return "Times are those of this machine's clock."
    known = [seconds for seconds in ahead if seconds is not None]
    if any(abs(seconds) > CLOCKS_AGREE_SECONDS for seconds in known):
        return "The machines' clocks differ, as is said above: each lane has the times of its own clock."
    if len(known) < len(ahead):
        return "Each lane has the times of its own clock; whether they agree is not known."
    return f"Each lane has the times of its own clock; they agree within {CLOCKS_AGREE_SECONDS:.0f} s."


def shared_spent(drawn: Sequence[Drawn]) -> Figure | None:
    """Return where each machine's own time went, a bar a machine."""
    spent = [(one, one.history.clock.spent) for one in drawn if any(one.history.clock.spent.values())]
    if len(spent) < 2:
        return spent_figure(spent[0][0].history) if spent else None
    unit_seconds, unit = time_unit(max(sum(seconds.values()) for _, seconds in spent))
    data: list[Trace] = [
        {
            **{"type": "bar", "orientation": "h", "name": what, "marker": {"color": SPENT_COLOURS[what]}},
            **{"y": [one.label for one, _ in spent], "x": [short(of[what] / unit_seconds) for _, of in spent]},
            "text": [f"{one.label}, {what}: {format_seconds(of[what])}" for one, of in spent],
            **{"textposition": "none", "hovertemplate": "%{text}<extra></extra>"},
        }
        for what in SPENT
        if any(of[what] for _, of in spent)
    ]
    told = [
        f"{one.name} trained for {format_seconds(of['training'])} of {format_seconds(sum(of.values()))}"
        for one, of in spent
    ]
    layout = {
        "xaxis": {"title": {"text": unit}},
        "yaxis": {
            **{"type": "category", "categoryorder": "array", "fixedrange": True},
            "categoryarray": [one.label for one, _ in reversed(spent)],
        },
        **{"barmode": "stack", "hovermode": "closest", "bargap": 0.35},
    }
    text = f"{'; '.join(told)}."
    return Figure(
        "spent", "Each machine's own time", text, data, layout, 150 + LANE_HEIGHT * len(spent), is_wide=True
    )
