"""Whole sessions on a laptop that is unplugged, or that may train in some hours only."""

from __future__ import annotations

import json
import signal
import sys
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest

from benchmarks.kills import copy_before_first_step, differences
from tests.plugged import program
from tests.sessions import Session, events, lowmem_seq, resume_to_the_end, story, wait_until

PAUSED_TREE_BYTES = 60 * 10**6
"""What a paused run holds at the most: its supervisor, and nothing of torch."""


def plugged(run: Path, plug: Path, *flags: str) -> Session:
    """`lowmem-seq resume` of a run on a laptop whose plug is in as long as there is that file."""
    return Session("resume", run.name, *flags, cwd=run.parent, program=program(plug))


def told(run: Path) -> dict[str, object]:
    """What `status --json` tells of a run."""
    answer: dict[str, object] = json.loads(lowmem_seq("status", run.name, "--json", cwd=run.parent).stdout)
    return answer


@story
def test_a_run_that_pauses_on_battery_holds_little_and_ends_with_the_same_bits(
    undisturbed: Path, folder: Path
) -> None:
    run, plug = copy_before_first_step(undisturbed, folder / "run").path, folder / "plug"
    plug.touch()
    with plugged(run, plug, "--pause-on-battery") as session:
        for pauses in (1, 2):
            wait_until(lambda: len(events(run, "session_started")) == pauses, "a trainer")  # noqa: B023
            wait_until(lambda: events(run, "checkpoint")[pauses:], "a checkpoint")  # noqa: B023
            plug.unlink()
            wait_until(lambda: len(events(run, "paused")) == pauses, "a pause")  # noqa: B023
            assert not session.has_trainer
            tree = [
                psutil.Process(session.process.pid),
                *psutil.Process(session.process.pid).children(recursive=True),
            ]
            assert sum(process.memory_info().rss for process in tree) < PAUSED_TREE_BYTES
            plug.touch()
        said = session.ended(0)
    assert differences(run, undisturbed) == []
    assert "pausing: this machine runs on battery; saving the last complete step" in said
    assert "paused: this machine runs on battery; the run goes on when it is plugged in" in said
    assert [event["state"] for event in events(run, "session_ended")] == ["stopped", "stopped", "finished"]
    assert len(events(run, "unpaused")) == 2
    assert events(run, "trainer_restarted") == []
    assert events(run, "planned") == []  # the plan that was there is followed after each pause


@story
def test_ctrl_c_while_a_run_is_paused_ends_it_and_a_resume_without_the_flag_finishes_it(
    undisturbed: Path, folder: Path
) -> None:
    run, plug = copy_before_first_step(undisturbed, folder / "run").path, folder / "plug"
    with plugged(run, plug, "--pause-on-battery") as session:
        session.wait_for_words("paused: this machine runs on battery")
        status = told(run)
        assert (status["state"], status["cause"]) == ("paused", "this machine runs on battery")
        assert isinstance(status["paused_unix_seconds"], float)
        session.stopped()
    assert told(run)["state"] == "stopped"
    assert events(run, "session_started") == []
    resume_to_the_end(run, "--no-pause-on-battery")
    assert differences(run, undisturbed) == []


@story
def test_outside_of_its_hours_a_run_says_until_when_it_waits(undisturbed: Path, folder: Path) -> None:
    run = copy_before_first_step(undisturbed, folder / "run").path
    later = datetime.now() + timedelta(hours=2)
    hours = f"{later:%H}:30-{later + timedelta(hours=1):%H}:30"
    with plugged(run, folder / "no plug", "--only-between", hours) as session:
        session.wait_for_words(f"outside of {hours}; the run goes on at")
        assert f"{later:%H}:30" in session.said
        assert not session.has_trainer
        assert told(run)["goes_on_unix_seconds"] == events(run, "paused")[0]["until_unix_seconds"]
        session.stopped()
    assert events(run, "session_started") == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has priority classes")
@story
def test_in_the_background_the_trainer_has_a_lower_priority(undisturbed: Path, folder: Path) -> None:
    run = copy_before_first_step(undisturbed, folder / "run").path
    with plugged(run, folder / "no plug", "--background") as session:
        assert session.trainer().nice() == 10
        session.process.send_signal(signal.SIGINT)
        said = session.ended(4)  # whenever that is: others go first
    assert "in the background: at a lower priority" in said
