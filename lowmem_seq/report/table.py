"""Runs as a table: for the terminal and as Markdown, from the same rows; and as CSV, from the figures."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path, PureWindowsPath

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lowmem_seq.report.shared import UNKNOWN_MACHINE
from lowmem_seq.report.summary import UNKNOWN, Summary
from lowmem_seq.text import harmless
from lowmem_seq.units import format_bytes, format_seconds

COLUMNS = (
    ("run", "left"),
    ("model", "left"),
    ("parameters", "right"),
    ("data", "left"),
    ("epochs", "right"),
    ("test loss", "right"),
    ("test accuracy", "right"),
    ("images/s", "right"),
    ("time", "right"),
    ("peak RAM", "right"),
    ("state", "left"),
)
LEFT_OUT_FIRST = ("model", "parameters", "images/s", "epochs", "data", "peak RAM", "state")
NOT_KNOWN = "-"
FORMULA_MARKS = ("=", "+", "-", "@")
OF_A_MACHINE = {"machine": "machine", "name": "machine_name", "run": "machine_run"}
"""Columns of CSV for figures of a machine whose keys are also those of a run, and mean something else there."""
OF_THE_RUN = ("run", "name", "data")
"""What a machine's line of CSV has of its run."""
CSV_COLUMNS = (
    *(key for key in UNKNOWN if key != "machines"),
    *(OF_A_MACHINE.get(key, key) for key in UNKNOWN_MACHINE if key not in UNKNOWN or key in OF_A_MACHINE),
)


def rows(summaries: list[Summary]) -> list[list[str]]:
    """Return a row of text for each run, in the order of COLUMNS, without control characters."""
    table = [
        [
            Path(str(one["run"])).resolve().name,
            one["name"] or NOT_KNOWN,
            NOT_KNOWN if one["parameters"] is None else f"{one['parameters'] / 1e6:.2f}M",
            _data(one),
            NOT_KNOWN if one["epoch"] is None else f"{one['epoch']:.4g}",
            NOT_KNOWN if one["test_loss"] is None else f"{one['test_loss']:.4f}",
            NOT_KNOWN if one["test_accuracy"] is None else f"{one['test_accuracy']:.2%}",
            NOT_KNOWN if one["images_per_second"] is None else f"{one['images_per_second']:,.0f}",
            NOT_KNOWN if one["wall_seconds"] is None else format_seconds(one["wall_seconds"]),
            NOT_KNOWN if one["peak_tree_bytes"] is None else format_bytes(one["peak_tree_bytes"]),
            _state(one),
        ]
        for one in summaries
    ]
    return [[harmless(cell, one_line=True) for cell in row] for row in table]


def _state(summary: Summary) -> str:
    left = summary["eta_seconds"]
    return f"{summary['state']}" + ("" if left is None else f", about {format_seconds(left)} left")


def data_name(summary: Summary) -> str:
    """Return the name of what was trained on, without the folder it lies in, on whatever system that is."""
    return PureWindowsPath(summary["data"] or "").name  # which knows both kinds of path


def _data(summary: Summary) -> str:
    name = data_name(summary) or NOT_KNOWN
    return name if not summary["classes"] else f"{name}, {len(summary['classes'])} classes"


def terminal_table(summaries: list[Summary], width: int) -> Table:
    """Return the table for a terminal: a column a run for one run, a row a run for several.

    Columns that don't fit into `width` characters are left out, the least telling first. Every name is shown as
    plain text.
    """
    told = rows(summaries)
    if len(told) == 1:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for (title, _), cell in zip(COLUMNS, told[0], strict=True):
            table.add_row(title, Text(cell))
        for name, accuracy in _class_accuracies(summaries[0]):
            table.add_row("", Text(harmless(f"{accuracy}  {name}", one_line=True)))
        return table
    shown = _columns_that_fit(told, width)
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index in shown:
        title, side = COLUMNS[index]
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    for row in told:
        table.add_row(*(Text(row[index]) for index in shown))
    return table


def _class_accuracies(summary: Summary) -> list[tuple[str, str]]:
    """Return the classes with their test accuracies, the hardest first."""
    pairs = zip(summary["classes"] or (), summary["class_accuracies"] or (), strict=False)
    known = sorted((accuracy, name) for name, accuracy in pairs if accuracy is not None)
    return [(name, f"{accuracy:>7.2%}") for accuracy, name in known]


def _columns_that_fit(told: list[list[str]], width: int) -> list[int]:
    widths = [max(len(title), *(len(row[index]) for row in told)) + 2 for index, (title, _) in enumerate(COLUMNS)]
    shown = list(range(len(COLUMNS)))
    for title in LEFT_OUT_FIRST:
        if sum(widths[index] for index in shown) <= width:
            break
        shown.remove([name for name, _ in COLUMNS].index(title))
    return shown


def markdown_table(summaries: list[Summary]) -> str:
    """Return the table as GitHub Markdown, names escaped."""
    lines = [
        "| " + " | ".join(title for title, _ in COLUMNS) + " |",
        "| " + " | ".join("---:" if side == "right" else "---" for _, side in COLUMNS) + " |",
    ]
    lines += ["| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows(summaries)]
    return "\n".join(lines) + "\n"


def csv_table(summaries: list[Summary]) -> str:
    """Return a line for each run, under a line of the keys, which are the JSON's; a list is JSON in its cell.

    Below a run of several machines is a line for each of them.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for one in summaries:
        writer.writerow(_cell(one.get(key)) for key in CSV_COLUMNS)
        for machine in one["machines"] or ():
            told = {OF_A_MACHINE.get(key, key): value for key, value in machine.items()} | {
                key: one[key] for key in OF_THE_RUN
            }
            writer.writerow(_cell(told.get(key)) for key in CSV_COLUMNS)
    return file.getvalue()


def _cell(value: object) -> object:
    """Return a value as a table program takes it: text that begins like a formula gets an apostrophe in front."""
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, str):
        text = harmless(value, one_line=True)
        return f"'{text}" if text.startswith(FORMULA_MARKS) else text
    return value


def escaped(text: str) -> str:
    """Return text as Markdown shows it, letter by letter."""
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return text
