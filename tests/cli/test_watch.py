from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from lowmem_seq.cli import watch as module
from lowmem_seq.cli.watch import (
    SECONDS_BETWEEN_LINES,
    SECONDS_TO_BEGIN,
    Watched,
    await_beginning,
    draw,
    print_lines,
    show_live,
)
from lowmem_seq.runs.folder import RunFolder
from tests.cli.conftest import CommandLine
from tests.cli.test_start import assert_refused
from tests.report.builders import (
    finish,
    pause,
    record_memory,
    restart,
    start_session,
    tell,
    train_to,
    validate,
)

NOW = 1_800_000_000.0
Act = Callable[[], None]


def screen(width: int = 100, height: int = 50, color: bool = False) -> Console:
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        color_system="truecolor" if color else None,
    )


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def text_of(watched: Watched, width: int = 100, height: int = 50) -> str:
    """What the screen shows, without colours."""
    console = screen(width, height)
    console.print(draw(watched, console, NOW, with_keys=True))
    return said(console)


def one_after_the_other(*acts: Act) -> Callable[[float], str]:
    """A pause in which the next thing happens; after the last, q is pressed."""
    left: Iterator[Act] = iter(acts)

    def wait(seconds: float) -> str:
        act = next(left, None)
        if act is None:
            return "q"
        act()
        return ""

    return wait


def write_story(run: RunFolder) -> None:
    """A run that was restarted, and has shrunk since."""
    start_session(run, at=NOW - 9000)
    for step, loss in ((2, 2.0), (4, 1.5), (6, 1.0)):
        train_to(run, step, loss=loss, rate=40.0, at=NOW - 9000 + step)
        record_memory(run, 400_000_000 + step * 50_000_000, 705_000_000, at=NOW - 9000 + step)
    validate(run, 6, accuracy=0.5)
    validate(run, 7, accuracy=0.625)
    restart(run, "the trainer was ended by SIGKILL")
    start_session(run, step=6, at=NOW - 600)
    train_to(run, 8, loss=0.9, rate=40.0, at=NOW - 80)
    change = {"micro_batch_before": 16, "workers_before": 2, "recomputed_layers_before": 0}
    tell(run, "setting_changed", **change, micro_batch=8, workers=2, recomputed_layers=0, cause="memory is short")
    record_memory(run, 612_000_000, 705_000_000, at=NOW - 7)


def test_the_screen_shows_how_the_run_stands_and_what_happened(run: RunFolder) -> None:
    write_story(run)
    with run.locked():
        watched = Watched(run)
    shown = text_of(watched)
    for told in (
        "running, last event 7 s ago",
        "8 of 60 (13%)",
        "train loss 0.9000, last validation accuracy 62.50%",
        "█▅▁▁ loss",
        "▁█ validation accuracy",
        "612 MB now (seen 7 s ago), peak 705 MB, cap 1.00 GB",
        "61% of the cap",
        "▅▅▆▅ of the cap, over time",
        "the trainer was ended by SIGKILL; another one starts in 1 s",
        "training went on after step 6, with micro-batch 16",
        "computes smaller: micro-batch 16 -> 8 (memory is short)",
        "q ends watching, not the run",
    ):
        assert told in shown
    assert "about " in shown


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_it_fits_any_width(run: RunFolder, width: int) -> None:
    write_story(run)
    with run.locked():
        shown = text_of(Watched(run), width)
    assert {len(line) for line in shown.splitlines()} == {min(width, 100)}


def test_where_the_screen_is_low_the_figures_stay(run: RunFolder) -> None:
    write_story(run)
    with run.locked():
        watched = Watched(run)
    assert "SIGKILL; another" in text_of(watched, height=30)
    low = text_of(watched, height=20)
    assert "SIGKILL; another" not in low
    assert "8 of 60" in low


def test_it_follows_the_run_and_ends_with_it(run: RunFolder) -> None:
    start_session(run)
    console = screen()
    holds = run.locked()
    holds.__enter__()

    def end() -> None:
        finish(run)
        holds.__exit__(None, None, None)

    watched = Watched(run)
    acts = (lambda: train_to(run, 20, loss=1.75), lambda: pause(run), end)
    assert show_live(watched, console, one_after_the_other(*acts)) is False
    shown = said(console)
    assert "20 of 60" in shown
    assert "paused: the checkpoint of step 40 can't be written: No space left on device" in shown
    assert "finished" in shown
    assert "accuracy 60.00%" in shown


def test_q_ends_the_watching_alone(run: RunFolder) -> None:
    start_session(run)
    with run.locked():
        assert show_live(Watched(run), screen(), one_after_the_other()) is True


def test_without_a_terminal_there_is_a_line_a_minute_and_what_happens(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    write_story(run)
    holds = run.locked()
    holds.__enter__()
    watched = Watched(run)
    console = Console(file=io.StringIO(), width=80)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if clock[0] == 30:
            validate(run, 10, accuracy=0.75)
        if clock[0] == 3 * SECONDS_BETWEEN_LINES + 10:
            finish(run)
            holds.__exit__(None, None, None)

    print_lines(watched, console, sleep)
    lines = said(console).splitlines()
    assert [line[8:].strip().split(",")[0] for line in lines] == [
        "running",
        "epoch 1: validation accuracy 75.00%",
        *["running"] * 3,
        "epoch 6: validation accuracy 50.00%",
        "test accuracy 60.00%",
        "finished",
    ]
    assert "step 8 of 60 (13%), epoch 0.8 of 6" in lines[0]
    assert "train loss 0.9000" in lines[0]
    assert "40 images/s" in lines[0]
    assert "RAM 612 MB of 1.00 GB" in lines[0]
    assert lines[0].endswith(" left")


def test_a_run_that_was_only_just_made_is_waited_for(run: RunFolder) -> None:
    watched = Watched(run)
    slept: list[float] = []
    with contextlib.ExitStack() as holding:

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                holding.enter_context(run.locked())
                tell(run, "session_opened", supervisor_pid=1)

        await_beginning(watched, sleep)
        assert watched.goes_on
    assert len(slept) == 3


def test_a_run_that_never_begins_is_told_as_it_stands(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watched = Watched(run)

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    await_beginning(watched, sleep)
    assert not watched.goes_on
    assert clock[0] == pytest.approx(SECONDS_TO_BEGIN, abs=0.2)


def test_a_run_that_is_over_is_told_once_with_what_to_type_next(command_line: CommandLine, run: RunFolder) -> None:
    start_session(run)
    finish(run)
    ended = command_line("watch", str(run.path))
    assert (ended.code, ended.err) == (0, "")
    line, next_step = ended.out.splitlines()
    assert "finished, step 60 of 60" in line
    assert next_step.startswith("next: lowmem-seq report ")


def test_ctrl_c_ends_the_watching_alone(
    command_line: CommandLine, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    start_session(run)
    monkeypatch.setattr(module, "print_lines", interrupt)
    with run.locked():
        ended = command_line("watch", str(run.path))
    assert (ended.code, ended.out) == (0, "watching ended; the run goes on\n")


def test_an_odd_event_among_those_that_are_only_told_does_not_end_it(run: RunFolder) -> None:
    start_session(run)
    tell(run, "setting_kept")
    tell(run, "refused", name=["x"])
    tell(run, "setting_changed", micro_batch=8)
    tell(run, "config_changed", changes=[1])
    assert [told.text for _, told in Watched(run).happened] == ["training began, with micro-batch 16"]


def test_no_text_of_the_folder_reaches_the_terminal_as_a_command(run: RunFolder) -> None:
    start_session(run)
    tell(run, "setting_kept", cause="\x1b]0;title\x07 [bold]odd")
    shown = text_of(Watched(run))
    assert "[bold]odd" in shown
    assert all(mark.isprintable() or mark == "\n" for mark in shown)


def test_where_there_is_no_run_it_is_said(command_line: CommandLine, tmp_path: Path) -> None:
    assert_refused(command_line("watch", str(tmp_path)), 2, "there is no run in", "lowmem-seq report")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_colours_are_left_out_where_they_are_not_wanted(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    write_story(run)
    console = Console(file=io.StringIO(), width=80, height=50, force_terminal=True)
    console.print(draw(Watched(run), console, time.time(), with_keys=False))
    assert "\x1b[3" not in said(console)
