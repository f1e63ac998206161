from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lowmem_seq.report.summary import UNKNOWN, Summary
from lowmem_seq.report.table import COLUMNS, NOT_KNOWN, csv_table, data_name, markdown_table, rows, terminal_table

FINISHED: Summary = {
    **UNKNOWN,
    "run": "/runs/small-20260102-030405",
    "name": "small",
    "state": "finished",
    "data": "/home/me/pictures/cats and dogs.zip",
    "classes": ["cat", "dog"],
    "parameters": 7_612_345,
    "epoch": 35.99,
    "test_loss": 0.51234,
    "test_accuracy": 0.91236,
    "images_per_second": 1234.5,
    "wall_seconds": 3725.0,
    "peak_tree_bytes": 1_234_567_890,
}
HOSTILE = [
    "a|b",
    "<script>",
    "[link](x)",
    "*bold*_x_`y`",
    "two\nlines",
    "two\rlines",
    "\x1b[31mred",
    "\u2028",
    "\\|",
]


def summary(**changes: Any) -> Summary:
    return {**FINISHED, **changes}


def shown(summaries: list[Summary], width: int) -> list[str]:
    """The lines of the table in a terminal of this width."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(terminal_table(summaries, width))
    return file.getvalue().splitlines()


def cells(line: str) -> list[str]:
    """The cells of a Markdown row; an escaped bar ends none."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("shapes", "shapes"),
        ("/home/ann/photos", "photos"),
        ("C:\\Users\\ann\\photos.zip", "photos.zip"),
        (None, ""),
    ],
)
def test_data_are_told_by_their_name_on_whatever_system_they_lie(source: str | None, name: str) -> None:
    assert data_name(summary(data=source)) == name


def test_a_row_tells_a_run_in_figures_with_units() -> None:
    assert rows([FINISHED]) == [
        [
            "small-20260102-030405",
            "small",
            "7.61M",
            "cats and dogs.zip, 2 classes",
            "35.99",
            "0.5123",
            "91.24%",
            "1,234",
            "1 h 02 min",
            "1.23 GB",
            "finished",
        ]
    ]


def test_what_is_not_known_is_said_so() -> None:
    (row,) = rows([{**UNKNOWN, "run": "runs/x", "state": "crashed"}])
    assert row == ["x", *[NOT_KNOWN] * (len(COLUMNS) - 2), "crashed"]


def test_a_zero_is_a_figure() -> None:
    (row,) = rows([summary(test_accuracy=0.0, test_loss=0.0, epoch=0.0, wall_seconds=0.0)])
    assert row[4:7] == ["0", "0.0000", "0.00%"]
    assert row[8] == "0 s"


def test_the_folder_where_one_stands_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert rows([summary(run=".")])[0][0] == tmp_path.name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_one_cell_of_markdown(name: str) -> None:
    table = markdown_table([summary(run=f"runs/{name}", name=name, data=name), FINISHED])
    lines = table.splitlines()
    assert len(lines) == 4
    assert table.endswith("\n")
    assert {len(cells(line)) for line in lines} == {len(COLUMNS)}
    for mark in ("<", "*", "_", "`", "["):
        assert re.search(rf"(?<!\\)(?:\\\\)*{re.escape(mark)}", lines[2]) is None


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_name_stays_one_line_of_markdown(name: str) -> None:
    table = markdown_table([summary(name=name)])
    assert len(table.splitlines()) == 3
    assert len(cells(table.splitlines()[2])) == len(COLUMNS)


def test_markdown_names_and_aligns_the_columns() -> None:
    first, second, third = markdown_table([FINISHED]).splitlines()
    assert cells(first) == [title for title, _ in COLUMNS]
    assert cells(second) == ["---:" if side == "right" else "---" for _, side in COLUMNS]
    assert cells(third)[-1] == "finished"


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("count", [1, 2])
def test_a_hostile_name_reaches_the_terminal_as_plain_text(name: str, count: int) -> None:
    text = "\n".join(shown([summary(name=name)] * count, 200))
    assert "\x1b" not in text
    assert "\r" not in text
    if name.isprintable():
        assert name in text


def test_a_hostile_class_reaches_the_terminal_as_plain_text() -> None:
    hostile = summary(classes=["\x1b[2J\x9bcat", "dog"], class_accuracies=[0.5, 0.75])
    assert [line.strip() for line in shown([hostile], 200)[-2:]] == ["50.00%   [2J cat", "75.00%  dog"]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_table_fits_the_terminal_and_tells_the_accuracy(width: int, count: int) -> None:
    lines = shown([FINISHED] * count, width)
    assert max(cell_len(line) for line in lines) <= width
    assert sum("91.24%" in line for line in lines) == count


def test_all_columns_are_shown_where_there_is_room_and_for_one_run_always() -> None:
    wide = shown([FINISHED] * 2, 200)
    assert all(title in wide[0] + wide[1] for title, _ in COLUMNS)
    narrow = "\n".join(shown([FINISHED], 60))
    assert all(title in narrow for title, _ in COLUMNS)


def test_at_80_columns_no_row_of_usual_runs_is_broken() -> None:
    lines = shown([FINISHED] * 3, 80)
    assert sum("small-20260102-030405" in line for line in lines) == 3


def test_csv_has_the_figures_as_they_are() -> None:
    (told,) = csv.DictReader(io.StringIO(csv_table([FINISHED])))
    assert (told["parameters"], told["test_accuracy"], told["val_loss"]) == ("7612345", "0.91236", "")
    assert json.loads(told["classes"]) == ["cat", "dog"]


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@x", "a\nb", 'quo"te', "com,ma"])
def test_a_hostile_name_is_one_cell_of_csv_and_no_formula(name: str) -> None:
    (told,) = csv.DictReader(io.StringIO(csv_table([summary(name=name, wall_seconds=-1.5)])))
    assert told["name"].lstrip("'").replace(" ", "\n") == name
    assert not told["name"].startswith(("=", "+", "-", "@"))
    assert told["wall_seconds"] == "-1.5"
