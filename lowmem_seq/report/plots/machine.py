"""What the machine did: memory under its cap, speed, what went on when, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowmem_seq.report.clock import SPENT, Span
from lowmem_seq.report.facts import told_share_of_cap
from lowmem_seq.report.history import History, Mark
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
    paragraph,
    short,
    time_unit,
    times,
)
from lowmem_seq.report.series import Point
from lowmem_seq.units import format_bytes, format_rate, format_seconds

THE_RUN = "the run"
"""The lane of a timeline that tells what a run of one machine was at."""
SPAN_COLOURS = {"training": BLUE, "starting": GREY, "paused": ORANGE, "alone": VIOLET}
SPENT_COLOURS = {"training": BLUE, "evaluation": GREEN, "saving": VIOLET, "waiting": ORANGE, "starting": GREY}
LANES: dict[str, tuple[str, str, str]] = {
    "died": ("died", "x", RED),
    "memory": ("memory ran out", "hexagon", RED),
    "smaller": ("computes smaller", "triangle-down", ORANGE),
    "larger": ("computes larger", "triangle-up", GREEN),
    "machines": ("other machines", "diamond", VIOLET),
    "ended": ("ended", "square", GREY),
}
"""What the timeline marks: its name, and the shape and colour of the mark. The memory's plot marks two alike."""


def machine_figures(history: History) -> list[Figure]:
    """Return the plots of memory and speed, as far as they are known."""
    figures = (memory_figure(history), _speed(history))
    return [figure for figure in figures if figure is not None]


def memory_figure(history: History) -> Figure | None:
    """Return what was held under the cap, with each change of setting."""
    held, peaks, caps = (history.by_time[f"{name}_bytes"] for name in ("tree", "peak_tree", "cap"))
    if not held:
        return None
    unit_seconds, unit = time_unit(history.clock.alive_seconds)
    highest = max(point.y for point in (*held, *peaks))
    scale, bytes_name = (1e9, "GB") if max((highest, *(point.y for point in caps))) >= 1e9 else (1e6, "MB")
    dashed = {"color": RED, "width": 2, "dash": "dash", "shape": "hv"}
    dotted = {"color": GREY, "width": 2, "dash": "dot", "shape": "hv"}
    data = [
        curve("held", held, BLUE, unit_seconds, scale, fill="tozeroy", fillcolor="var(--blue-fill)"),
        curve("highest of the session", peaks, GREY, unit_seconds, scale, line=dotted),
        curve("cap", caps, RED, unit_seconds, scale, line=dashed),
        *_changes(list(history.marks), list(held), unit_seconds, scale),
    ]
    told = [f"All processes of the run held {format_bytes(round(highest))} at the most", told_share_of_cap(history)]
    text = f"{', '.join(filter(None, told))}. "
    layout = axes(f"{unit} that the run was alive", f"resident memory, {bytes_name}", hoverformat=".4~g")
    layout["shapes"] = _session_lines(history, unit_seconds)
    return Figure("memory", "Memory under its cap", text + _told_changes(history), data, layout, 320, is_wide=True)


def _changes(marks: Sequence[Mark], held: list[Point], unit_seconds: float, scale: float) -> list[Trace]:
    """Return a trace of the shrinks and one of the grows, on the curve of what was held."""
    traces = []
    for kind in ("smaller", "larger"):
        chosen = [mark for mark in marks if mark.kind == kind]
        places = [short(mark.seconds / unit_seconds) for mark in chosen]
        heights = [short(_height_at(held, mark.seconds) / scale) for mark in chosen]
        traces += [mark_trace(kind, places, heights, [mark.text for mark in chosen])] if chosen else []
    return traces


def mark_trace(kind: str, places: list[Any], heights: list[Any], texts: list[str]) -> Trace:
    """Return marks of one kind, which say what happened when they are pointed at."""
    name, symbol, colour = LANES[kind]
    return {
        **{"type": "scatter", "mode": "markers", "name": name, "cliponaxis": False, "x": places, "y": heights},
        "marker": {"symbol": symbol, "size": 11, "color": colour, "line": {"width": 1, "color": CARD}},
        "text": [paragraph(text) for text in texts],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _height_at(held: list[Point], seconds: float) -> float:
    """Return what was held when it was last looked at before."""
    before = [point.y for point in held if point.x <= seconds]
    return before[-1] if before else held[0].y


def _told_changes(history: History) -> str:
    smaller, larger = history.counts["smaller"], history.counts["larger"]
    if not smaller + larger:
        return "It computed with one setting all the time."
    return f"It went to a smaller setting {times(smaller)}, to a larger one {times(larger)}."


def _session_lines(history: History, unit_seconds: float) -> list[dict[str, Any]]:
    """Return an upright line where each session after the first was opened."""
    return [
        {
            **{"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1},
            **{"x0": short(seconds / unit_seconds), "x1": short(seconds / unit_seconds)},
            "line": {"color": GREY, "width": 1, "dash": "dot"},
        }
        for seconds in history.clock.session_starts
    ]


def _speed(history: History) -> Figure | None:
    rates = history.by_time["images_per_second"]
    if not rates:
        return None
    unit_seconds, unit = time_unit(history.clock.alive_seconds)
    text = f"The median speed was {format_rate(history.rates.value or 0.0)}; evaluations and saves are left out."
    layout = axes(f"{unit} that the run was alive", "images/s", hoverformat=",.0f")
    layout["shapes"] = _session_lines(history, unit_seconds)
    return Figure("speed", "Speed", text, [curve("images/s", rates, BLUE, unit_seconds)], layout, is_wide=True)


def timeline_figure(history: History) -> Figure | None:
    """Return what went on when, by the clock: sessions, pauses, and a lane for each kind of happening."""
    spans = history.clock.spans
    if not spans:
        return None
    data = [span_bars(what, [(THE_RUN, span) for span in spans if span.what == what]) for what in SPAN_COLOURS]
    data = [trace for trace in data if trace["x"]]
    for kind, (name, _, _) in LANES.items():
        chosen = [one for one in history.happenings if one.kind == kind and one.at is not None]
        if chosen:
            texts = [f"{clock_text(one.at)}: {one.text}" for one in chosen]
            marks = mark_trace(kind, [clock_text(one.at) for one in chosen], [name] * len(chosen), texts)
            data.append({**marks, "showlegend": False})  # its lane has its name
    lanes = [THE_RUN, *dict.fromkeys(lane for trace in data for lane in trace["y"] if lane != THE_RUN)]
    sessions = len(history.clock.session_starts) + 1
    text = (
        f"From {clock_text(spans[0].begin)} to {clock_text(spans[-1].end)}, in {sessions} "
        f"session{'s' * (sessions > 1)}; its trainer died {times(history.counts['died'])}."
    )
    layout = {
        "xaxis": {"type": "date"},
        "yaxis": {"categoryorder": "array", "categoryarray": lanes[::-1], "fixedrange": True},
        **{"barmode": "overlay", "hovermode": "closest", "bargap": 0.3},
    }
    return Figure("timeline", "Timeline", text, data, layout, 150 + 34 * len(lanes), is_wide=True)


def span_bars(what: str, spans: Sequence[tuple[str, Span]]) -> Trace:
    """Return when something went on, each stretch in a lane; Plotly takes their lengths in milliseconds."""
    return {
        **{"type": "bar", "orientation": "h", "name": what, "marker": {"color": SPAN_COLOURS[what]}},
        **{"y": [lane for lane, _ in spans], "base": [clock_text(span.begin) for _, span in spans]},
        "x": [short((span.end - span.begin) * 1000) for _, span in spans],
        "text": [
            f"{what} from {clock_text(span.begin)} for {format_seconds(span.end - span.begin)}" for _, span in spans
        ],
        **{"textposition": "none", "hovertemplate": "%{text}<extra></extra>"},
    }


def spent_figure(history: History) -> Figure | None:
    """Return where the run's own time went, as one bar."""
    spent, total = history.clock.spent, sum(history.clock.spent.values())
    if not total:
        return None
    unit_seconds, unit = time_unit(total)
    data: list[Trace] = [
        {
            **{"type": "bar", "orientation": "h", "name": what, "marker": {"color": SPENT_COLOURS[what]}},
            **{"y": [""], "x": [short(spent[what] / unit_seconds)]},
            "text": [f"{what}: {format_seconds(spent[what])}, {spent[what] / total:.1%}"],
            **{"textposition": "none", "hovertemplate": "%{text}<extra></extra>"},
        }
        for what in SPENT
        if spent[what]
    ]
    told = [
        f"{what} took {format_seconds(spent[what])} ({spent[what] / total:.1%})" for what in SPENT if spent[what]
    ]
    layout = {
        "xaxis": {"title": {"text": unit}},
        "yaxis": {"fixedrange": True, "showticklabels": False},
        **{"barmode": "stack", "hovermode": "closest"},
    }
    text = f"Of {format_seconds(total)}, {'; '.join(told)}."
    return Figure("spent", "The run's own time", text, data, layout, 170, is_wide=True)
