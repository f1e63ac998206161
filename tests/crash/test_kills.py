"""A sample of what `make soak` does a thousand times: SIGKILL at random moments, and the same bits in the end."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.kills import VICTIMS, Outcome, copy_before_first_step, differences, lost_steps, train_under_fire
from benchmarks.page import machine
from lowmem_seq.runs.folder import RunFolder
from tests.sessions import EVERY, rewound, story

KILLS = 4
FEWEST_KILLS = 2
ATTEMPTS = 3
"""Where something slowed the undisturbed run down, kills come too far apart: a run may end before the second."""


def under_fire(undisturbed: Path, folder: Path, seed: int) -> Outcome:
    """Train a run that is killed up to KILLS times; every resume must work, and the end must be the same."""
    settings = ("checkpoint.keep=2", "machine.max_restarts=100")
    draws = random.Random(seed)
    for attempt in range(ATTEMPTS):
        run = copy_before_first_step(undisturbed, folder / f"run-{attempt}", *settings)
        outcome = train_under_fire(run, undisturbed, draws, KILLS)
        assert outcome.failures == []
        assert outcome.differing == []
        assert outcome.most_steps_lost <= EVERY
        assert sum(outcome.kills.values()) <= KILLS
        if sum(outcome.kills.values()) >= FEWEST_KILLS:
            break
    assert sum(outcome.kills.values()) >= FEWEST_KILLS
    return outcome


@story
def test_a_run_killed_at_random_ends_with_the_bits_of_an_undisturbed_one(undisturbed: Path, folder: Path) -> None:
    assert under_fire(undisturbed, folder, seed=3).kills["trainer"] > 0


@story
def test_another_run_killed_at_other_moments_does_so_too(undisturbed: Path, folder: Path) -> None:
    under_fire(undisturbed, folder, seed=4)


# What the soak would say if something were wrong.


def test_a_difference_in_a_file_or_a_figure_is_found(undisturbed: Path, tmp_path: Path) -> None:
    run = rewound(undisturbed, tmp_path / "run", 60)
    (run / "model.safetensors").write_bytes((undisturbed / "model.safetensors").read_bytes())
    RunFolder(run).events.append("test", step=60, test_loss=0.5)
    weights = run / "checkpoints" / "step-00000060" / "optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert differences(run, undisturbed) == ["('test', 60)", "step-00000060/optimizer.safetensors"]


@pytest.mark.parametrize(
    ("events", "most", "failures"),
    [
        ([("session_started", 0), ("checkpoint", 5), ("session_started", 5), ("checkpoint", 10)], 0, 0),
        ([("session_started", 0), ("checkpoint", 15), ("train", 20), ("session_started", 15)], 5, 0),
        ([("session_started", 0), ("checkpoint", 15), ("train", 20), ("session_started", 20)], 0, 0),
        ([("session_started", 0), ("checkpoint", 10), ("session_started", 5)], 5, 1),
        ([("session_started", 0), ("checkpoint", 10), ("train", 20), ("session_started", 10)], 10, 1),
        ([("session_started", 0), ("train", 20), ("session_started", 0), ("session_started", 0)], 20, 1),
    ],
)
def test_lost_steps_are_counted(run: RunFolder, events: list[tuple[str, int]], most: int, failures: int) -> None:
    for kind, step in events:
        run.events.append(kind, step=step)
    lost, told = lost_steps(run, every=5)
    assert (lost, len(told)) == (most, failures)


def test_a_checkpoint_that_a_kill_broke_is_a_failure_and_a_recovered_one_is_none(run: RunFolder) -> None:
    run.events.append("checkpoint_recovered", message="step-00000005 was whole and ...: recovered")
    assert lost_steps(run, every=5) == (0, [])
    run.events.append("checkpoint_passed_over", message="step-00000005 does not verify (...)")
    assert lost_steps(run, every=5) == (0, ["step-00000005 does not verify (...)"])


def test_the_soak_counts_what_went_wrong_and_says_so() -> None:
    state = {"runs": 1, "equal_runs": 1, "kills": dict.fromkeys(VICTIMS, 1), "most_steps_lost": 3, "failures": []}
    state |= {"seconds": 1.0, "every_steps": 5, "command": "lowmem-seq train tiny", "machine": machine()}
    state["commits"] = ["0123abc", "89def01+"]
    soak.add(state, Outcome(Counter(trainer=5), most_steps_lost=4, differing=["final weights"]), 2.0)
    soak.add(state, Outcome(Counter(both=1), failures=["ended with code 1: no"]), 2.0)
    assert state["failures"] == ["run 2 differs: final weights", "run 3: ended with code 1: no"]
    assert "| tiny | 9 | 6, 1, 2 | 2 | 4 (5) | 3 | **1** |" in soak.table({"tiny": state}).splitlines()
    assert "- tiny, n = 9, at 0123abc, 89def01+: `lowmem-seq train tiny`; " in soak.table({"tiny": state})
