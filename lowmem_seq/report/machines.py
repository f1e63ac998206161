"""The table of a shared run's machines: a line a figure, a column a machine, and one for all together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from lowmem_seq.report.shared import SharedRun
from lowmem_seq.report.table import escaped
from lowmem_seq.text import harmless
from lowmem_seq.units import format_bytes, format_seconds

NOT_KNOWN = "unknown"
TOGETHER = "together"
Figures = dict[str, Any]
SPACE_BETWEEN = 2


class Line(NamedTuple):
    """A figure of all machines."""

    title: str
    cells: list[str]
    """By machine."""
    together: str
    """Empty where a sum would say nothing."""


def lines_of(shared: SharedRun) -> list[Line]:
    """Return the table, in words; what is not known is said to be so."""
    told = [machine.figures for machine in shared.machines]
    together = _together(shared, told)
    return [
        Line(title, [write(figures) or NOT_KNOWN for figures in told], together.get(title, ""))
        for title, write in LINES
    ]


def _together(shared: SharedRun, told: Sequence[Figures]) -> dict[str, str]:
    accepted = None if shared.told is None else shared.told.accepted
    sent = _sum(told, "bytes_sent")
    return {
        "state": str(shared.summary()["state"]).partition(": ")[0],
        "samples accepted": NOT_KNOWN if accepted is None else f"{accepted:,}",
        "images/s": NOT_KNOWN if shared.images_per_second is None else f"{shared.images_per_second:,.0f}",
        "rounds": NOT_KNOWN if shared.told is None else f"{shared.told.round:,}",
        "bytes sent": NOT_KNOWN if sent is None else format_bytes(sent),
        "bytes a sample": NOT_KNOWN if sent is None or not accepted else format_bytes(round(sent / accepted)),
        "samples discarded": _number(_sum(told, "samples_discarded")) or NOT_KNOWN,
    }


def _sum(told: Sequence[Figures], name: str) -> int | None:
    values = [figures[name] for figures in told]
    return None if None in values else sum(values)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _bytes(value: float | None) -> str:
    return "" if value is None else format_bytes(round(value))


def _seconds(value: float | None) -> str:
    """Return a time; short ones with a tenth, for a stall of a second is one that is felt."""
    return "" if value is None else f"{value:.1f} s" if value < 60 else format_seconds(value)


def _alone(figures: Figures) -> str:
    times = figures["times_alone"]
    if not times:
        return "" if times is None else "never"
    told = {1: "once", 2: "twice"}.get(times, f"{times:,} times")
    return f"{told}, {_seconds(figures['alone_seconds'])}"


def _memory(figures: Figures) -> str:
    peak, cap = figures["peak_tree_bytes"], figures["cap_bytes"]
    if peak is None:
        return ""
    return format_bytes(peak) + (f" of {format_bytes(cap)}, {peak / cap:.0%}" if cap else "")


def _device(figures: Figures) -> str:
    return ", ".join(figures[name] for name in ("device", "precision") if figures[name])


def _state(figures: Figures) -> str:
    return (figures["state"] or "") + (", host" if figures["host"] else "")


LINES: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("state", _state),
    ("device", _device),
    ("samples accepted", lambda one: _number(one["samples_accepted"])),
    ("share of all", lambda one: "" if one["share"] is None else f"{one['share']:.1%}"),
    ("images/s", lambda one: _number(one["images_per_second"])),
    ("rounds", lambda one: _number(one["rounds"])),
    ("bytes sent", lambda one: _bytes(one["bytes_sent"])),
    ("bytes received", lambda one: _bytes(one["bytes_received"])),
    ("bytes a sample", lambda one: _bytes(one["bytes_per_sample"])),
    ("longest stall", lambda one: _seconds(one["longest_stall_seconds"])),
    ("all stalls", lambda one: _seconds(one["stalled_seconds"])),
    ("alone", _alone),
    ("others lost", lambda one: _number(one["peers_lost"])),
    ("samples discarded", lambda one: _number(one["samples_discarded"])),
    ("peak RAM", _memory),
)
"""What stands in each line, and how a machine's figure is written; empty where it is not known."""


def terminal_tables(shared: SharedRun, width: int) -> list[Table]:
    """Return the table for a terminal, in as many pieces as are needed to fit its machines into the width."""
    columns, lines = columns_of(shared)
    widths = [max(map(cell_len, column)) + SPACE_BETWEEN for column in columns]
    room = width - max(len(line.title) for line in lines) - SPACE_BETWEEN
    tables, first = [], 0
    while first < len(columns):
        last = first + 1
        while last < len(columns) and sum(widths[first : last + 1]) <= room:
            last += 1
        tables.append(_piece(lines, columns[first:last]))
        first = last
    return tables


def columns_of(shared: SharedRun) -> tuple[list[list[str]], list[Line]]:
    """Return each machine's name with its cells below, all together last; and the lines that they stand in."""
    lines = lines_of(shared)
    columns = [
        [machine.label, *(line.cells[index] for line in lines)] for index, machine in enumerate(shared.machines)
    ]
    if len(columns) > 1:
        columns.append([TOGETHER, *(line.together for line in lines)])
    return [[harmless(cell, one_line=True) for cell in column] for column in columns], lines


def _piece(lines: Sequence[Line], columns: Sequence[Sequence[str]]) -> Table:
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("machines", style="dim", no_wrap=True)
    for name, *_ in columns:
        table.add_column(Text(name), justify="right", overflow="fold")
    for index, line in enumerate(lines, start=1):
        table.add_row(line.title, *(Text(column[index]) for column in columns))
    return table


def markdown_machines(shared: SharedRun) -> str:
    """Return the table as GitHub Markdown, names escaped."""
    columns, lines = columns_of(shared)
    told = [
        "| machines | " + " | ".join(escaped(name) for name, *_ in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    told += [
        f"| {line.title} | " + " | ".join(escaped(column[index]) for column in columns) + " |"
        for index, line in enumerate(lines, start=1)
    ]
    return "\n".join(told) + "\n"
