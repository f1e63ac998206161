from __future__ import annotations

import csv
import io
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


def test_csv_is_one_line_a_run_under_the_keys(command_line: CommandLine, run: RunFolder) -> None:
    code, out, err = command_line("report", str(run.path), "--csv")
    assert (code, err) == (0, "")
    (told,) = csv.DictReader(io.StringIO(out))
    assert list(told)[: len(UNKNOWN) - 1] == [key for key in UNKNOWN if key != "machines"]
    assert told["machine"] == told["samples_accepted"] == ""
    assert (told["run"], told["state"], told["test_loss"]) == (str(run.path), "crashed", "")


def test_of_one_run_the_page_is_written_into_its_folder(command_line: CommandLine, run: RunFolder) -> None:
    code, out, err = command_line("report", str(run.path))
    assert (code, err) == (0, "")
    assert out.endswith(f"page: {run.page_file}\n")
    assert run.page_file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_html_writes_one_page_of_all_and_says_where(command_line: CommandLine, run: RunFolder) -> None:
    assert command_line("report", str(run.path), str(run.path), "--html", "all.html") == (0, "page: all.html\n", "")
    assert "<h1>2 runs</h1>" in Path("all.html").read_text(encoding="utf-8")
    assert not run.page_file.exists()
    assert command_line("report", str(run.path), "--html", "one.html").code == 0
    assert "<bdi>run</bdi>" in Path("one.html").read_text(encoding="utf-8")


def test_printing_formats_write_no_page(command_line: CommandLine, run: RunFolder) -> None:
    for flag in ("--json", "--markdown", "--csv"):
        assert command_line("report", str(run.path), flag).code == 0
    assert not run.page_file.exists()


@pytest.mark.parametrize("flags", [["--json", "--csv"], ["--html", "x.html", "--markdown"]])
def test_formats_exclude_each_other(command_line: CommandLine, run: RunFolder, flags: list[str]) -> None:
    code, out, err = command_line("report", str(run.path), *flags)
    assert (code, out) == (2, "")
    assert "exclude each other" in err
    assert not Path("x.html").exists()


@pytest.mark.parametrize(("file", "said"), [(".", "is a folder"), ("none/x.html", "can't be written to")])
def test_a_page_that_can_t_be_written_is_an_error(
    command_line: CommandLine, run: RunFolder, file: str, said: str
) -> None:
    code, _, err = command_line("report", str(run.path), "--html", file)
    assert code == 2
    assert said in err
    assert "--html report.html" in err


def test_a_run_whose_folder_can_t_be_written_is_told_all_the_same(
    command_line: CommandLine, run: RunFolder
) -> None:
    run.page_file.mkdir()
    code, out, _ = command_line("report", str(run.path))
    assert code == 0
    assert "crashed" in out
    assert f"page: lowmem-seq report {run.path} --html FILE" in out
