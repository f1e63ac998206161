"""Runs as a table: for the terminal and as Markdown, from the same rows."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from lowmem_seq.report.summary import Summary
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
NOT_KNOWN = "–"


def rows(summaries: list[Summary]) -> list[list[str]]:
    """Return a row of text for each run, in the order of COLUMNS."""
    return [
        [
            Path(str(one["run"])).name,
            one["name"] or NOT_KNOWN,
            NOT_KNOWN if one["parameters"] is None else f"{one['parameters'] / 1e6:.2f}M",
            _data(one),
            NOT_KNOWN if one["epoch"] is None else f"{one['epoch']:.4g}",
            NOT_KNOWN if one["test_loss"] is None else f"{one['test_loss']:.4f}",
            NOT_KNOWN if one["test_accuracy"] is None else f"{one['test_accuracy']:.2%}",
            NOT_KNOWN if one["images_per_second"] is None else f"{one['images_per_second']:,.0f}",
            NOT_KNOWN if one["wall_seconds"] is None else format_seconds(one["wall_seconds"]),
            NOT_KNOWN if one["peak_tree_bytes"] is None else format_bytes(one["peak_tree_bytes"]),
            one["state"],
        ]
        for one in summaries
    ]


def _data(summary: Summary) -> str:
    name = Path(summary["data"] or NOT_KNOWN).name
    return name if not summary["classes"] else f"{name}, {len(summary['classes'])} classes"


def terminal_table(summaries: list[Summary]) -> Table:
    """Return the table for a terminal; every name is shown as plain text."""
    table = Table(header_style="bold")
    for title, side in COLUMNS:
        table.add_column(title, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows(summaries):
        table.add_row(*(Text(cell) for cell in row))
    return table


def markdown_table(summaries: list[Summary]) -> str:
    """Return the table as GitHub Markdown, names escaped."""
    lines = [
        "| " + " | ".join(title for title, _ in COLUMNS) + " |",
        "| " + " | ".join("---:" if side == "right" else "---" for _, side in COLUMNS) + " |",
    ]
    lines += ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows(summaries)]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
