from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowmem_seq.report.summary import UNKNOWN, summarise
from lowmem_seq.report.table import markdown_table
from lowmem_seq.runs.folder import RunFolder, create_run
from tests.builders import tiny_config
from tests.cli.conftest import CommandLine


def test_json_is_one_object_a_run_with_every_key(command_line: CommandLine, run: RunFolder) -> None:
    code, out, err = command_line("report", str(run.path), str(run.path), "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told == [summarise(run)] * 2
    assert told[0].keys() == UNKNOWN.keys()


def test_markdown_is_the_table_and_nothing_else(command_line: CommandLine, run: RunFolder) -> None:
    assert command_line("report", str(run.path), "--markdown") == (0, markdown_table([summarise(run)]), "")


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_without_a_name_every_run_under_runs_is_listed(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    for name in ("first", "second"):
        create_run(Path("runs") / name, tiny_config())
    ended = command_line("report")
    assert ended.code == 0
    assert "first" in ended.out
    assert "second" in ended.out
    assert max(len(line) for line in ended.out.splitlines()) <= int(width)
