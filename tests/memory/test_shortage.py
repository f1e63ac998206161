"""Allocations that fail in each phase of a real run: it goes on, smaller, and loses no step that could be saved.

`make soak` lets a hundred of them fail.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import shortages
from benchmarks.faults import PHASES
from benchmarks.kills import copy_before_first_step
from benchmarks.page import machine
from benchmarks.replay import settings_of
from benchmarks.shortages import Outcome, train_with_faults
from lowmem_seq.files import read_json, write_json
from lowmem_seq.runs.folder import RunFolder
from tests.sessions import STEPS, STEPS_AN_EPOCH, events, story

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
WHOLE_STEPS = ["forward@3", "backward@12", f"evaluation@{STEPS_AN_EPOCH}", "clipping@52"]
OTHERS = ["opening@0", "optimizer@7", "average@13", "save@50", f"final weights@{STEPS}"]
"""The last ones are late: each halves the micro-batch, and image by image a run takes long."""
FEW_TO_EVALUATE = ("data.classes=[circle, cross]", f"data.validation_fraction={1 - STEPS_AN_EPOCH * 32 / 2_000}")
"""Of 2,000 pictures as many are trained on as ever; image by image an evaluation of the others takes long."""
SETTING = ("micro_batch", "workers", "recomputed_layers", "allocator")


def run_with(faults: list[str], undisturbed: Path, folder: Path) -> RunFolder:
    """A finished run in which these allocations failed, and all went as it should.

    Its plan knows one setting only, so that each failure halves the micro-batch: of several that were measured the
    fastest that needs less is next, and which one that is depends on the moment.
    """
    run = copy_before_first_step(undisturbed, folder / "run", "machine.max_restarts=3", *FEW_TO_EVALUATE)
    plan = read_json(run.plan_file)
    chosen = [point for point in plan["measurements"] if all(point[key] == plan[key] for key in SETTING)]
    write_json(run.plan_file, {**plan, "measurements": chosen})
    (folder / "faults").mkdir()
    outcome = train_with_faults(run, faults, folder / "faults")
    assert outcome.failures == []
    assert outcome.struck == Counter(fault.partition("@")[0] for fault in faults)
    return run


def ends_and_starts(run: RunFolder) -> tuple[list[tuple[int | None, bool]], list[int]]:
    told = [(event["step"], event["saved"]) for event in events(run.path, "out_of_memory")]
    return told, [event["step"] for event in events(run.path, "session_started")]


@pytest.mark.slow
@LINUX
@story
def test_where_the_state_is_whole_the_last_complete_step_is_saved_and_none_is_done_again(
    undisturbed: Path, folder: Path
) -> None:
    run = run_with(WHOLE_STEPS, undisturbed, folder)
    told, starts = ends_and_starts(run)
    assert told == [(3, True), (12, True), (40, True), (52, True)]
    assert starts == [0, 3, 12, 40, 52]
    sizes = {step: setting.micro_batch for step, setting in settings_of(run).steps.items()}
    assert sizes == {0: 16, 3: 8, 12: 4, 40: 2, 52: 1}
    assert all("can't allocate memory" in event["cause"] for event in events(run.path, "out_of_memory"))


@pytest.mark.slow
@LINUX
@story
def test_a_state_between_two_steps_is_never_saved(undisturbed: Path, folder: Path) -> None:
    told, starts = ends_and_starts(run_with(OTHERS, undisturbed, folder))
    assert told == [(None, False), (7, False), (13, False), (50, True), (60, True)]
    assert starts == [0, 5, 10, 50, 60]


def test_every_phase_is_struck() -> None:
    assert {fault.partition("@")[0] for fault in (*WHOLE_STEPS, *OTHERS)} == set(PHASES)


# What would be said if something were wrong.


@pytest.mark.parametrize(
    ("told", "failures"),
    [
        ([("out_of_memory", 5, True), ("session_started", 5, None)], []),
        (
            [("out_of_memory", 5, True), ("session_started", 4, None)],
            ["step 5 was saved, and the next one began after 4"],
        ),
        ([("out_of_memory", 5, False)], ["1 failures left the state whole, and 0 steps were saved"]),
        (
            [],
            ["1 allocations failed, and 0 were told of", "1 failures left the state whole, and 0 steps were saved"],
        ),
    ],
)
def test_a_lost_step_is_found(
    run: RunFolder, told: list[tuple[str, int, bool | None]], failures: list[str]
) -> None:
    for kind, step, saved in told:
        run.events.append(kind, step=step, saved=saved)
    outcome = Outcome(Counter(forward=1))
    shortages._look_at_losses(run, outcome)
    assert outcome.failures == failures


def test_faults_are_drawn_where_a_run_comes_by(run: RunFolder) -> None:
    run.events.append("validation", step=40)
    for seed in range(30):
        faults = shortages.draw_faults(random.Random(seed), run.path, 4)
        assert len(set(faults)) == 4
        assert all(fault == "evaluation@40" for fault in faults if fault.startswith("evaluation"))
    assert faults == shortages.draw_faults(random.Random(29), run.path, 4)


def test_the_table_says_what_went_wrong() -> None:
    state = {"machine": machine(), "commits": ["0123abc"], "runs": 3, "struck": {"forward": 7}, "saved": 7}
    told = shortages.table({**state, "failures": ["run 2: no"]})
    assert "| n | 0 | 7 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 7 |" in told.splitlines()
    assert "what went wrong: **1**." in told
