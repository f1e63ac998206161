from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.report.facts import environment_rows, predicted_and_actual, repeating_command, tiles
from lowmem_seq.report.history import History
from lowmem_seq.report.summary import UNKNOWN
from lowmem_seq.runs.folder import RunFolder

KNOWN = {
    **UNKNOWN,
    **{"step": 30, "total_steps": 60, "epoch": 3.0, "val_accuracy": 0.5, "val_loss": 1.25, "sessions": 2},
    **{"images_per_second": 90.0, "wall_seconds": 75.0, "peak_tree_bytes": 600, "cap_bytes": 1000},
    **{"images_seen": 1200, "device": "cpu", "precision": "fp32", "restarts": 1},
}


def under_caps(*seen: tuple[int, int, int]) -> History:
    """What each look at the memory saw: held now, at the peak of its session, and the cap."""
    history = History()
    for tree, peak, cap in seen:
        history.take({"event": "memory", "tree_bytes": tree, "peak_tree_bytes": peak, "cap_bytes": cap})
    return history


def test_tiles_tell_what_is_known_and_nothing_else() -> None:
    told = {tile.title: (tile.value, tile.note, tile.share) for tile in tiles(KNOWN, under_caps((500, 600, 1000)))}
    assert told == {
        "validation accuracy": ("50.00%", "loss 1.2500", 0.5),
        "steps": ("30 of 60", "epoch 3", 0.5),
        "time": ("1 min 15 s", "in 1 session", None),
        "images/s": ("90", "cpu, fp32", None),
        "peak RAM": ("600 B", "60% of the cap of 1.00 KB", 0.6),
        "restarts": ("1", "", None),
    }
    assert tiles(UNKNOWN, History()) == []


@pytest.mark.parametrize(
    ("seen", "words", "share"),
    [
        ([], "", None),
        ([(100, 100, 1000), (900, 950, 1000), (10, 950, 1000)], "95% of the cap of 1.00 KB", 0.95),
        ([(1900, 1900, 2000), (500, 500, 1000)], "at most 95% of the cap of the time", 0.95),
        ([(500, 500, 1000), (1000, 1000, 2000), (100, 100, 1000)], "at most 50% of the cap of the time", 0.5),
        ([(1900, 1900, 2000), (1100, 1100, 1000)], "at most 110% of the cap of the time", 1.0),
    ],
)
def test_memory_is_held_against_the_cap_that_it_was_under(
    seen: list[tuple[int, int, int]], words: str, share: float | None
) -> None:
    told = {tile.title: tile for tile in tiles(KNOWN, under_caps(*seen))}["peak RAM"]
    assert (told.note, told.share) == (words, share)


@pytest.mark.parametrize(("state", "note"), [("running", "at the present speed"), ("paused", "once it goes on")])
def test_a_run_that_goes_on_tells_the_time_left(state: str, note: str) -> None:
    told = {tile.title: tile for tile in tiles({**KNOWN, "state": state, "eta_seconds": 3700.0}, History())}
    assert told["time left"] == ("time left", "about 1 h 01 min", note, None)


def test_a_test_counts_more_than_a_validation_and_that_more_than_training() -> None:
    trained = {**UNKNOWN, "train_loss": 2.0}
    assert tiles(trained, History()) == [("training loss", "2.0000", "", None)]
    tested = {**KNOWN, "test_accuracy": 0.6, "test_loss": 1.0}
    assert tiles(tested, History())[0] == ("test accuracy", "60.00%", "loss 1.0000", 0.6)


def trained_twice() -> History:
    """20 steps of 40 images by one plan, and 30, ten of them done again, by another one."""
    history = History()
    figures = {"train_loss": 1.0, "learning_rate": 0.1}
    started = {"event": "session_started", "effective_batch": 40, "train_images": 400}
    for at, event in (
        (0.0, {"event": "planned"}),
        (10.0, {**started, "step": 0}),
        (20.0, {"event": "train", "step": 20, "images_per_second": 200.0, **figures}),
        (20.0, {"event": "memory", "tree_bytes": 900, "peak_tree_bytes": 900, "cap_bytes": 1000}),
        (30.0, {"event": "planned"}),
        (30.0, {**started, "step": 10}),
        (45.0, {"event": "train", "step": 40, "images_per_second": 90.0, **figures}),
        (45.0, {"event": "memory", "tree_bytes": 500, "peak_tree_bytes": 600, "cap_bytes": 1000}),
    ):
        history.take({"time_unix_seconds": at, **event})
    return history


def test_what_was_predicted_stands_beside_what_came_of_that_plan() -> None:
    plan = {"predicted_peak_bytes": 500, "predicted_images_per_second": 100.0}
    assert predicted_and_actual(plan, trained_twice()) == [
        ("peak RAM", "500 B", "600 B", "+20.0%"),
        ("images/s", "100", "90", "-10.0%"),
        ("time to train on 1,200 images", "12 s", "15 s", "+25.0%"),
    ]


@pytest.mark.parametrize("plan", [{}, {"predicted_peak_bytes": "much", "predicted_images_per_second": 0}])
def test_without_a_plan_nothing_is_compared(plan: dict[str, Any]) -> None:
    assert predicted_and_actual(plan, trained_twice()) == []


def test_before_anything_was_trained_nothing_is_compared() -> None:
    assert predicted_and_actual({"predicted_images_per_second": 100.0}, History()) == []


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/x/__main__.py", "train", "tiny", "--seed", "1"], "lowmem-seq train tiny --seed 1"),
        (["x", "train", "tiny", "--run-dir", "r", "--quiet"], "lowmem-seq train tiny --quiet"),
        (["x", "train", "tiny", "--run-dir=r", "--quiet"], "lowmem-seq train tiny --quiet"),
        (["x", "train", "a b; rm -r /"], "lowmem-seq train 'a b; rm -r /'"),
    ],
)
def test_the_command_that_repeats_it_is_the_one_it_was_begun_with(words: list[str], command: str) -> None:
    assert repeating_command(RunFolder(Path("runs/one")), {"command": words}) == command


@pytest.mark.parametrize("environment", [None, {}, {"command": "train"}, {"command": ["x"]}, {"command": ["x", 1]}])
def test_where_that_is_not_known_its_settings_are_trained(environment: dict[str, Any] | None) -> None:
    run = RunFolder(Path("runs/my run"))
    assert shlex.split(repeating_command(run, environment)) == ["lowmem-seq", "train", str(run.config_file)]


def test_the_environment_is_told_a_line_each() -> None:
    told = environment_rows(
        {"format_version": 1, "packages": {"torch": "2.13", "timm": None}, "memory_bytes": 8 * 10**9, "command": []}
    )
    assert told == [("torch", "2.13"), ("memory", "8.00 GB")]
