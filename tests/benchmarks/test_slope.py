from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import page, slope
from benchmarks.page import machine
from benchmarks.slope import (
    BLOCKS,
    MOST_BYTES_AN_HOUR,
    PARTS,
    WINDOW_SECONDS,
    Windows,
    broken_promises,
    disturbances,
    slope_of,
    stored,
    table,
    train,
    verdict,
)

COUNT = 144
"""Windows of half an hour that are judged by."""
HOURS = np.arange(COUNT) * WINDOW_SECONDS / 3600
MB = 1e6
BASE = 500 * MB
DRAWS = 400
LINUX = pytest.mark.skipif(sys.platform == "win32", reason="Windows can't ask a process to stop so")
Held = npt.NDArray[np.float64]


def growing(mb_an_hour: float) -> Held:
    """What is held by a process that grows and does nothing else."""
    return BASE + mb_an_hour * MB * HOURS


def slow_noise(draws: np.random.Generator, windows: float) -> Held:
    """Noise of 1 MB that is forgotten over so many windows (0: at once)."""
    kept = np.exp(-1 / windows) if windows else 0.0
    fresh = draws.normal(size=COUNT + 200) * MB * np.sqrt(1 - kept**2)
    held = np.empty_like(fresh)
    held[0] = fresh[0]
    for place in range(1, len(held)):
        held[place] = kept * held[place - 1] + fresh[place]
    return np.asarray(held[200:])


def coverage(windows: float) -> float:
    """The share of draws in which the interval holds the true slope of 1 MB/h."""
    draws = np.random.default_rng(0)
    found = [slope_of(list(growing(1.0) + slow_noise(draws, windows)), WINDOW_SECONDS) for _ in range(DRAWS)]
    return statistics.fmean(one.least <= MB <= one.most for one in found)


@pytest.mark.parametrize("mb_an_hour", [-3.0, 0.0, 1.0, 40.0])
def test_the_slope_of_a_line_is_found_exactly(mb_an_hour: float) -> None:
    found = slope_of(list(growing(mb_an_hour)), WINDOW_SECONDS)
    assert found.bytes_an_hour == pytest.approx(mb_an_hour * MB, abs=1.0)
    assert found.width < 1.0


def test_a_leak_of_two_megabytes_an_hour_is_seen_through_noise() -> None:
    noise = np.random.default_rng(1).normal(size=COUNT) * 0.1 * MB
    found = slope_of(list(growing(2.0) + noise), WINDOW_SECONDS)
    assert found.least > MOST_BYTES_AN_HOUR
    assert found.most < 3 * MB
    steady = slope_of(list(growing(0.0) + noise), WINDOW_SECONDS)
    assert steady.least < 0 < steady.most < MOST_BYTES_AN_HOUR


@pytest.mark.parametrize("jump", [80.0, -80.0])
def test_validations_and_saves_change_nothing(jump: float) -> None:
    noise = np.random.default_rng(2).normal(size=COUNT) * 0.02 * MB
    held = growing(0.0) + noise
    held[::5] += jump * MB  # a validation about every 50 s
    held[COUNT // 2 : COUNT // 2 + 3] += 2 * jump * MB  # a long save
    found = slope_of(list(held), WINDOW_SECONDS)
    assert abs(found.bytes_an_hour) < 0.2 * MB
    assert found.width < 0.5 * MB


def test_what_stays_after_a_jump_widens_the_interval() -> None:
    held = growing(0.0)
    held[COUNT // 2 :] += 5 * MB
    found = slope_of(list(held), WINDOW_SECONDS)
    assert found.bytes_an_hour > 5 * MB
    assert found.least < found.bytes_an_hour - 5 * MB


@pytest.mark.parametrize(("windows", "least"), [(0.0, 0.91), (10.0, 0.86), (30.0, 0.74)])
def test_the_interval_holds_the_slope_as_often_as_it_says(windows: float, least: float) -> None:
    assert least <= coverage(windows) <= 0.985


def test_windows_that_make_no_whole_block_are_left_out_at_the_start() -> None:
    held = list(growing(1.0)[: 6 * BLOCKS])
    assert slope_of([9e9, 0.0, *held], WINDOW_SECONDS) == slope_of(held, WINDOW_SECONDS)


def test_of_a_window_that_has_ended_the_lower_tenth_counts() -> None:
    windows = Windows()
    for look in range(20):
        windows.add(look / 2, 10.0, [1.0, 7.0, 3.0, 100.0][look] if look < 4 else 50.0)
    assert windows.troughs["tree"] == []
    windows.add(10.0, 11.0, 60.0)
    windows.add(19.0, 11.0, 70.0)
    windows.add(20.5, 11.0, 20.0)
    assert windows.troughs == {"supervisor": [10.0, 11.0], "trainer": [7.0, 60.0], "tree": [17.0, 71.0]}
    assert windows.highest_bytes == {"supervisor": 11.0, "trainer": 100.0, "tree": 110.0}
    assert windows.count == 23


def result(mb_an_hour: float, noise_mb: float = 0.0, **run: Any) -> dict[str, Any]:
    """A result of a trainer that grows so, beside a supervisor that doesn't."""
    noise = np.random.default_rng(3).normal(size=COUNT) * noise_mb * MB
    trainer = [2e9] * (COUNT // 4) + list(growing(mb_an_hour) + noise)  # a start that is left out
    supervisor = [40 * MB] * len(trainer)
    tree = [one + 40 * MB for one in trainer]
    quiet: dict[str, list[str]] = {"setting_changed": [], "trainer_restarted": [], "out_of_memory": []}
    setting = {"micro_batch": 64, "workers": 2, "recomputed_layers": 7}
    return {
        "machine": machine(),
        "commit": "abc1234",
        "command": "lowmem-seq train small --data shapes --max-ram 2GB --steps 1000000",
        "minutes": 30.0,
        "samples": 90_000,
        "troughs": dict(zip(PARTS, (supervisor, trainer, tree), strict=True)),
        "highest_bytes": {"supervisor": 41e6, "trainer": 2e9, "tree": 2.04e9},
        "events": {"validation": 30, "checkpoint": 8, "leak_noticed": 0},
        "first_validation_seconds": 50.0,
        "steps": 9000,
        "run": {**quiet, "setting": setting, "allocator": "keep", **run},
    }


def test_the_table_tells_the_slope_of_each_process_after_the_warm_up() -> None:
    lines = table(result(1.5)).splitlines()
    assert lines[2] == "| supervisor | 40.0 MB | 40.0 MB | 41.0 MB | +0.00 (+0.00 to +0.00) |"
    assert lines[3] == "| trainer | 500 MB | 501 MB | 2.00 GB | +1.50 (+1.50 to +1.50) |"
    assert lines[4] == "| **both** | 540 MB | 541 MB | 2.04 GB | +1.50 (+1.50 to +1.50) |"
    assert lines[6] == (
        "The promise is at most 1 MB/h: it is broken. One run of 30 minutes (micro-batch 64 x 2, keep, 7 layers "
        "recomputed): 9,000 steps, 30 validations, 8 saves; n = 144 windows of 10 s, of 90,000 looks in all; the "
        "first 6 min 00 s are left out as warm-up."
    )


@pytest.mark.parametrize(
    ("came", "words"),
    [
        (350.0, "warm-up."),
        (370.0, "warm-up, and **the first validation came after it**, at 6 min 10 s."),
        (None, "warm-up, and **no validation came at all**."),
    ],
)
def test_a_validation_that_came_too_late_to_be_left_out_is_told(came: float | None, words: str) -> None:
    assert table({**result(0.0), "first_validation_seconds": came}).splitlines()[6].endswith(f"left out as {words}")


@pytest.mark.parametrize(
    ("mb_an_hour", "noise_mb", "words"),
    [
        (0.2, 0.05, "it holds."),
        (0.2, 2.0, "nothing speaks against it, though the interval reaches beyond; the interval is "),
        (3.0, 0.05, "it is broken."),
        (20.0, 2.0, "it is broken; the interval is "),
    ],
)
def test_the_verdict_says_what_the_interval_allows_to_say(mb_an_hour: float, noise_mb: float, words: str) -> None:
    assert verdict(result(mb_an_hour, noise_mb)).startswith(f"The promise is at most 1 MB/h: {words}")


def test_growth_and_a_leak_that_the_run_noticed_break_the_promise() -> None:
    assert broken_promises(result(0.5)) == []
    assert broken_promises(result(1.5)) == ["memory grows by +1.50 (+1.50 to +1.50) MB/h, and 1 are allowed"]
    noticed = result(0.5)
    noticed["events"]["leak_noticed"] = 1
    assert broken_promises(noticed) == ["the run itself noticed a leak"]


def test_a_run_that_changed_its_setting_is_no_measurement() -> None:
    assert disturbances(result(0.0)) == []
    assert disturbances(result(0.0, setting_changed=["memory was calm"])) == ["setting_changed: memory was calm"]


@pytest.mark.parametrize(
    ("change", "minutes", "is_taken"),
    [
        ({}, 30.0, True),
        ({}, 45.0, False),
        ({"machine": {"processor": "another"}}, 30.0, False),
        ({"command": "lowmem-seq train tiny"}, 30.0, False),
    ],
)
def test_only_a_result_of_this_machine_and_command_that_is_long_enough_is_taken(
    change: dict[str, Any], minutes: float, is_taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slope, "DATA_FILE", tmp_path / "slope.json")
    command = ["train", "small", "--data", "shapes", "--max-ram", "2GB", "--steps", "1000000"]
    assert stored(command, minutes) is None
    (tmp_path / "slope.json").write_text(json.dumps({**result(0.0), **change}), encoding="utf-8")
    assert (stored(command, minutes) is not None) == is_taken


TRAINS = """
import signal, sys, time
from pathlib import Path
from lowmem_seq.runs.events import EventLog

run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run.mkdir(parents=True)
events = EventLog(run / "events.jsonl")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
held = bytearray(b"x") * 50_000_000
setting = {"micro_batch": 8, "workers": 1, "recomputed_layers": 0}
events.append("session_started", **setting, step=0, allocator="default")
events.append("train", step=20, images_per_second=100.0)
events.append("validation", step=20)
time.sleep(0.0 if code == 1 else 60.0)
sys.exit(1)
"""
"""A program that holds 50 MB, and tells what a run tells."""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has a program train that ends with this code when it is asked to stop (1: by itself), its windows short."""
    monkeypatch.setattr(slope, "PLACE", tmp_path / "slope")
    monkeypatch.setattr(slope, "WINDOW_SECONDS", 0.1)

    def ends_with(code: int) -> None:
        monkeypatch.setattr(slope, "PROGRAM", [sys.executable, "-c", f"code = {code}\n{TRAINS}"])

    return ends_with


@LINUX
def test_a_run_is_read_from_outside_from_its_first_session_on(program: Callable[[int], None]) -> None:
    program(4)
    seen = train(["train", "tiny"], minutes=0.02)
    assert seen["command"] == "lowmem-seq train tiny"
    assert seen["events"] == {"validation": 1, "checkpoint": 0, "leak_noticed": 0}
    assert (seen["steps"], seen["run"]["allocator"]) == (20, "default")
    assert 0 <= seen["first_validation_seconds"] < 1
    assert len(seen["troughs"]["supervisor"]) >= 6
    assert all(50 * MB < held < 150 * MB for held in seen["troughs"]["supervisor"][1:])
    assert set(seen["troughs"]["trainer"]) == {0.0}
    assert seen["troughs"]["tree"] == seen["troughs"]["supervisor"]


@LINUX
def test_a_run_that_did_not_stop_as_asked_is_no_measurement(program: Callable[[int], None]) -> None:
    program(10)
    with pytest.raises(RuntimeError, match="asked to stop, the run ended with code 10"):
        train(["train", "tiny"], minutes=0.01)


@LINUX
def test_a_run_that_ended_too_early_is_no_measurement(program: Callable[[int], None]) -> None:
    program(1)
    with pytest.raises(RuntimeError, match="the run ended with code 1"):
        train(["train", "tiny"], minutes=1.0)


def test_what_is_measured_already_is_shown_and_written_and_a_broken_promise_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = "<!-- slope: begin -->\nNot measured yet.\n<!-- slope: end -->\n"
    (tmp_path / "results.md").write_text(marks, encoding="utf-8")
    (tmp_path / "slope.json").write_text(json.dumps(result(5.0)), encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(slope, "DATA_FILE", tmp_path / "slope.json")
    monkeypatch.setattr(slope, "train", None)  # is not called
    monkeypatch.setattr(sys, "argv", ["slope"])
    with pytest.raises(SystemExit, match=r"memory grows by \+5\.00"):
        slope.main()
    assert table(result(5.0)) in capsys.readouterr().out
    assert table(result(5.0)) in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_the_page_of_results_has_a_place_for_it() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for name in ("slope", "least"):
        assert text.count(f"<!-- {name}: begin -->") == text.count(f"<!-- {name}: end -->") == 1
