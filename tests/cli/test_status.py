from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.checkpoint.store import bytes_on_disk
from lowmem_seq.cli.watch import in_a_line
from lowmem_seq.data.pack import Pack
from lowmem_seq.files import write_text
from lowmem_seq.report.status import read_status
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes
from tests.builders import NEEDS_LINKS, end, make_run, start_python, tiny_config
from tests.checkpoint.builders import save_step
from tests.cli.conftest import CommandLine, Ended
from tests.cli.test_start import IMPORTED, assert_refused
from tests.report.builders import (
    crash,
    finish,
    form_world,
    pause,
    pause_for,
    record_memory,
    restart,
    save,
    start_session,
    stop,
    tell,
    train_to,
    validate,
)

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands, and a disk with room."""
    monkeypatch.setattr(time, "time", lambda: NOW)
    monkeypatch.setattr("lowmem_seq.report.status.free_bytes", lambda folder: 78_300_000_000)


def write_story(run: RunFolder) -> int:
    """A run that was restarted, and is in the middle of its second session; return its checkpoints' bytes."""
    start_session(run, at=NOW - 9000)
    train_to(run, 20, at=NOW - 8000)
    validate(run, 20, accuracy=0.612, seconds=20.0)
    restart(run, "the trainer was ended by SIGKILL, for want of memory")
    start_session(run, step=20, at=NOW - 600)
    train_to(run, 40, loss=1.25, rate=4.0, wall_seconds=1520.0, at=NOW - 80)
    saved = [save_step(run, step) for step in (20, 40)]
    save(run, 40, seconds=20.0, at=NOW - 75)
    record_memory(run, 612_000_000, 705_000_000, at=NOW - 7)
    return sum(bytes_on_disk(checkpoint) for checkpoint in saved)


def lines_of(ended: Ended) -> list[str]:
    """What a panel says, without its frame; the command must have gone well."""
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("next: ")) <= 80
    assert lines[0].startswith("╭─")
    assert lines[-2].startswith("╰─")
    return [line.strip("│ ") for line in lines[1:-2]] + [lines[-1]]


def row(ended: Ended, label: str) -> str:
    (line,) = [line for line in lines_of(ended) if line.startswith(f"{label}  ")]
    return line.removeprefix(label).strip()


def test_a_run_that_runs_is_told_in_a_panel(
    command_line: CommandLine, run: RunFolder, present: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    size = format_bytes(write_story(run))
    with run.locked():
        ended = command_line("status", "run")
    assert lines_of(ended) == [
        "run        run, tiny, 0.00M parameters",
        "state      running, last event 7 s ago",
        "step       40 of 60 (67%), epoch 4 of 6",
        "━━━━━━━━━━━━━━━━━━━━━━━━━━╸",
        "time       25 min 20 s so far",
        "time left  about 2 min 18 s",
        "learning   train loss 1.2500, last validation accuracy 61.20%",
        "speed      4.0 images/s (most recent)",
        "RAM        612 MB now (seen 7 s ago), peak 705 MB, cap 1.00 GB",
        "saved      step 40, 1 min 15 s ago",
        "restarts   1; the last time the trainer was ended by SIGKILL, for want of",
        "memory",
        f"disk       78.3 GB free; 2 checkpoints, {size}",
        "next: nothing to do; Ctrl-C in its own terminal saves and stops it",
    ]


def test_a_run_that_stands_tells_no_present_memory_and_no_time_left(
    command_line: CommandLine, run: RunFolder, present: None
) -> None:
    write_story(run)
    ended = command_line("status", str(run.path))
    assert row(ended, "state") == "crashed: the trainer ended without a word, last event 7 s ago"
    assert row(ended, "RAM") == "peak 705 MB, cap 1.00 GB"
    assert "time left" not in ended.out


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("the trainer was ended by SIGKILL", "the trainer was ended by SIGKILL"),
        ("the cap of 150 MB is too small.", "the cap of 150 MB is too small"),
        ("left at once on a second signal", "left at once on a second signal"),
    ],
)
def test_a_cause_is_told_as_it_stands(
    command_line: CommandLine, run: RunFolder, present: None, cause: str, told: str
) -> None:
    start_session(run, at=NOW)
    tell(run, "session_ended", at=NOW - 7, state="crashed", cause=cause)
    assert row(command_line("status", str(run.path)), "state") == f"crashed: {told}, last event 7 s ago"


def test_before_its_first_event_a_run_tells_what_there_is(
    command_line: CommandLine, run: RunFolder, present: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    assert lines_of(command_line("status", "run")) == [
        "run       run, tiny",
        "state     crashed: the trainer ended without a word",
        "saved     nothing yet",
        "restarts  none",
        "disk      78.3 GB free",
        "next: lowmem-seq resume run",
    ]
    with run.locked():
        assert row(command_line("status", "run"), "state") == "running, the trainer has not begun yet"


def test_a_run_that_is_starting_again_tells_no_present_memory(
    command_line: CommandLine, run: RunFolder, present: None
) -> None:
    write_story(run)
    restart(run, "the trainer was ended by SIGSEGV")
    with run.locked():
        ended = command_line("status", str(run.path))
    assert row(ended, "state") == "running, the trainer has not begun yet, last event 0 s ago"
    assert row(ended, "RAM") == "peak 705 MB, cap 1.00 GB"
    assert row(ended, "restarts") == "2; the last time the trainer was ended by SIGSEGV"


def test_a_finished_run_tells_its_test(command_line: CommandLine, run: RunFolder) -> None:
    start_session(run)
    finish(run)
    ended = command_line("status", str(run.path))
    assert row(ended, "test") == "accuracy 60.00%, loss 1.1000"
    assert row(ended, "time") == "12 s"
    assert row(ended, "step") == "60 of 60 (100%), epoch 6 of 6"


def test_a_time_from_a_clock_that_was_ahead_is_no_negative_age(
    command_line: CommandLine, run: RunFolder, present: None
) -> None:
    start_session(run, at=NOW + 3600)
    assert row(command_line("status", str(run.path)), "state").endswith("last event 0 s ago")


def test_the_ranks_of_engine_mode_are_told_with_their_part_of_a_step(
    command_line: CommandLine, run: RunFolder, present: None
) -> None:
    form_world(run, machine="h\x1b[2Jp")
    start_session(run, at=NOW)
    with run.locked():
        ended = command_line("status", str(run.path))
    first = "0 on h [2Jp: cpu, fp32, 300 images/s, 30 of 40 images a step"
    assert row(ended, "ranks") == first
    lines = lines_of(ended)
    (at,) = [number for number, line in enumerate(lines) if line.endswith(first)]
    assert lines[at + 1] == "1 on mac:    cpu, fp32, 100 images/s, 10 of 40 images a step"


# What to type next.


def stopped(run: RunFolder) -> None:
    start_session(run)
    stop(run, 20)


def finished(run: RunFolder) -> None:
    start_session(run)
    finish(run)


def without_its_checkpoints(run: RunFolder) -> None:
    start_session(run)
    save(run, 20)


@pytest.mark.parametrize(
    ("story", "command"), [(stopped, "resume"), (finished, "report"), (without_its_checkpoints, "verify")]
)
@pytest.mark.parametrize("name", ["a run", "x" * 100])
def test_what_to_type_next_can_be_pasted(
    command_line: CommandLine,
    tmp_path: Path,
    tiny_pack: Pack,
    story: Callable[[RunFolder], None],
    command: str,
    name: str,
) -> None:
    run = make_run(tmp_path / name, tiny_pack, tiny_config())
    story(run)
    last = command_line("status", str(run.path)).out.splitlines()[-1]
    assert last.startswith("next: lowmem-seq ")
    assert shlex.split(last.removeprefix("next: ")) == ["lowmem-seq", command, str(run.path)]


def test_a_full_disk_asks_for_room(command_line: CommandLine, run: RunFolder, present: None) -> None:
    start_session(run, at=NOW)
    pause(run)
    with run.locked():
        ended = command_line("status", str(run.path))
    told = " ".join(ended.out.replace("│", " ").split())
    assert "paused: the checkpoint of step 40 can't be written: No space left on device (5 B are free" in told
    assert "it is tried again in 1 s, and as soon as there is more room" in told
    assert lines_of(ended)[-1] == "next: make room on that disk; the run goes on by itself"


def test_a_run_on_battery_says_since_when_and_what_ends_it(
    command_line: CommandLine, run: RunFolder, present: None
) -> None:
    start_session(run, at=NOW - 3600)
    pause_for(run, "power", at=NOW - 600)
    record_memory(run, 35 * 10**6, 35 * 10**6, at=NOW - 600)
    with run.locked():
        ended = command_line("status", str(run.path))
    told = " ".join(ended.out.replace("│", " ").split())
    assert (
        "paused: this machine runs on battery; the run goes on when it is plugged in "
        "(paused 10 min 00 s ago)" in told
    )
    assert "35.0 MB now (seen 10 min 00 s ago)" in told
    assert lines_of(ended)[-1].startswith("next: nothing to do; the run goes on by itself")


def test_checkpoints_that_are_gone_are_not_called_saved(command_line: CommandLine, run: RunFolder) -> None:
    without_its_checkpoints(run)
    told = row(command_line("status", str(run.path)), "saved")
    assert told == "step 20 was, and no checkpoint lies there now"


# Whatever the terminal is.


@pytest.mark.parametrize("width", ["40", "60", "80", "200"])
def test_nothing_is_cut_at_any_width(
    command_line: CommandLine, tmp_path: Path, tiny_pack: Pack, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    run = make_run(tmp_path / ("long-" * 20), tiny_pack, tiny_config())
    write_story(run)
    crash(run, "the trainer said: " + "word " * 30 + "end")
    monkeypatch.setenv("COLUMNS", width)
    ended = command_line("status", str(run.path))
    lines = [line for line in ended.out.splitlines() if not line.startswith("next: ")]
    assert {len(line) for line in lines} == {min(int(width), 100)}
    assert "…" not in ended.out
    whole = "".join(line.strip("│ ") for line in lines)
    assert run.path.name in whole.replace(" ", "")
    assert ("word" * 30 + "end") in whole.replace(" ", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_no_text_of_the_folder_reaches_the_terminal_as_a_command(
    command_line: CommandLine, tmp_path: Path, tiny_pack: Pack
) -> None:
    run = make_run(tmp_path / "run\x1b]0;title\x07", tiny_pack, tiny_config())
    write_text(run.config_file, run.config.to_yaml().replace("name: tiny", 'name: "ti\\e[31mny"'))
    start_session(run)
    restart(run, "\x1b[2J\x07 [bold]died")
    crash(run, "\x1b]0;title\x07")
    ended = command_line("status", str(run.path))
    assert ended.code == 0
    assert all(mark.isprintable() or mark == "\n" for mark in ended.out)
    assert "[bold]died" in ended.out


# --json


def test_json_is_one_object_with_the_status(command_line: CommandLine, run: RunFolder, present: None) -> None:
    write_story(run)
    with run.locked():
        ended = command_line("status", str(run.path), "--json")
        expected = read_status(run).to_json()
    assert (ended.code, ended.err) == (0, "")
    told = json.loads(ended.out)
    assert told == expected
    assert (told["state"], told["step"], told["saved_step"], told["free_bytes"]) == (
        "running",
        40,
        40,
        78_300_000_000,
    )
    assert told["eta_seconds"] == pytest.approx(137.6)
    assert told["saved_unix_seconds"] == NOW - 75
    assert [one["step"] for one in told["checkpoints"]] == [20, 40]


# Folders that are not as they should be.


def test_a_config_that_is_not_valid_ends_with_2(command_line: CommandLine, run: RunFolder) -> None:
    write_text(run.config_file, run.config.to_yaml() + "surprise: 1\n")
    for arguments in (["status"], ["status", "--json"]):
        assert_refused(command_line(*arguments, str(run.path)), 2, "there is no setting 'surprise'", "known here")


def test_events_that_make_no_sense_end_with_2(command_line: CommandLine, run: RunFolder) -> None:
    tell(run, "memory", tree_bytes=1)
    assert_refused(
        command_line("status", str(run.path)), 2, "is not as expected (KeyError", "restore it from a copy"
    )


def test_where_there_is_no_run_it_is_said(command_line: CommandLine, tmp_path: Path) -> None:
    assert_refused(command_line("status", "nowhere"), 2, "there is no folder nowhere.", "lowmem-seq report")
    assert_refused(command_line("status", str(tmp_path)), 2, f"there is no run in {tmp_path}.", "lowmem-seq report")


@NEEDS_LINKS
def test_a_link_in_the_folder_is_refused(command_line: CommandLine, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (run.path / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    assert_refused(command_line("status", str(run.path)), 2, "is a link", "cp -rL")


@pytest.mark.parametrize(
    ("kind", "figures", "label", "told"),
    [
        ("memory", {"peak_tree_bytes": 5_000_000}, "RAM", "peak 5.00 MB"),
        (
            "memory",
            {"tree_bytes": 3_000_000, "peak_tree_bytes": 5_000_000},
            "RAM",
            "3.00 MB now (seen 7 s ago), peak 5.00 MB",
        ),
        ("test", {"test_accuracy": 0.5}, "test", "accuracy 50.00%"),
        ("test", {"test_loss": 1.0}, "test", "loss 1.0000"),
    ],
)
def test_what_an_event_leaves_out_is_left_out(
    command_line: CommandLine,
    run: RunFolder,
    present: None,
    kind: str,
    figures: dict[str, Any],
    label: str,
    told: str,
) -> None:
    start_session(run, at=NOW - 9)
    tell(run, kind, at=NOW - 7, **figures)
    with run.locked():
        assert row(command_line("status", str(run.path)), label) == told
        assert in_a_line(read_status(run)).startswith("running")


# Starting light.


def test_status_loads_nothing_large(run: RunFolder) -> None:
    save_step(run, 20)
    code, out, _ = end(start_python(IMPORTED, "status", str(run.path)))
    assert code == 0
    assert out.splitlines()[-1] == "imported"
    assert "code 0" in out


@pytest.mark.parametrize("command", ["status", "verify"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_the_command_explains_itself(command_line: CommandLine, command: str, flag: str) -> None:
    ended = command_line(command, flag)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: lowmem-seq {command} [OPTIONS]")
    assert "--json" in ended.out


@pytest.mark.parametrize(
    ("others", "words"), [(0, "no other machine at present"), (1, "1 other machine"), (2, "2 other machines")]
)
def test_other_machines_are_told_while_the_run_goes_on(
    command_line: CommandLine, run: RunFolder, others: int, words: str
) -> None:
    run.events.append("peers_present", others=others)
    with run.locked():
        assert words in command_line("status", str(run.path)).out
    assert words not in command_line("status", str(run.path)).out
