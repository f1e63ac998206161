"""How true the time left is: `python -m benchmarks.time_left [RUN_DIR...]`, a table in docs/results.md.

Events are replayed one by one. After each the estimate is compared with the active time that was then left: of a
simulated run (simulated.py) at the speed of that moment, which is known; of a finished run whose folder is given,
with what it took in the end.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.simulated import STORIES, Story, Trainer
from lowmem_seq.files import write_json
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.runs.time_left import TimeLeft
from lowmem_seq.units import format_seconds

RESULTS = ROOT / "docs" / "time-left.json"
FIRST_PART = 0.1
"""Share of a run that may pass before the time left must be true."""
LAST_PART = 0.01
LAST_SECONDS = 30.0
"""Of what is left in the end, a hundredth or half a minute, the error counts as one of the whole of it."""
SECONDS_AFTER_A_CHANGE = 300.0
SECONDS_BETWEEN_LOOKS = 60.0


@dataclass(frozen=True)
class Look:
    """What was told, and what was true, at one moment."""

    at_seconds: float
    """Of active time."""
    told_seconds: float
    true_seconds: float
    whole_seconds: float

    @property
    def error(self) -> float:
        """How far it was off, as a share of what was true."""
        return abs(self.told_seconds - self.true_seconds) / max(
            self.true_seconds, LAST_PART * self.whole_seconds, LAST_SECONDS
        )


@dataclass(frozen=True)
class Judged:
    """How true the time left of one run was, after the first tenth."""

    name: str
    whole_seconds: float
    looks: int
    median_error: float
    largest_error: float
    """More than five minutes after any change of speed, where one is known of."""


def look_at(story: Story, seconds_between: float = SECONDS_BETWEEN_LOOKS) -> list[Look]:
    """Return what the time left was told to be over a simulated run, and what was true."""
    trainer, estimate = Trainer(story), TimeLeft(story.config)
    estimate.take(trainer.start())
    looks: list[tuple[float, float, float]] = []
    for event in trainer.go():
        estimate.take(event)
        told, at = estimate.seconds(), trainer.active_seconds
        is_due = not looks or at - looks[-1][0] >= seconds_between
        if event["event"] == "train" and told is not None and is_due:
            looks.append((at, told, trainer.seconds_left()))
    return [Look(*look, trainer.active_seconds) for look in looks]


def look_back_at(run: RunFolder) -> list[Look]:
    """Return what the time left was told to be over a finished run, and what it came to.

    Work that was lost with a trainer is in neither: `wall_seconds` goes on from a checkpoint as the run does.

    Raises:
        ValueError: it isn't finished.
    """
    events = list(run.events)
    ends = [event for event in events if event["event"] == "session_ended"]
    if not ends or ends[-1]["state"] != "finished":
        raise ValueError(f"{run.path} is not finished")
    began = next(event["time_unix_seconds"] for event in events if event["event"] == "session_started")
    estimate = TimeLeft(run.config)
    waited = 0.0
    looks: list[tuple[float, float]] = []
    for event in events:
        estimate.take(event)
        told = estimate.seconds()
        if event["event"] == "unpaused":
            waited += float(event["seconds"])
        elif event["event"] == "train" and told is not None:
            clock = event.get("wall_seconds", event["time_unix_seconds"] - began)  # releases before wrote none
            looks.append((clock - waited, told))
    whole = float(ends[-1]["wall_seconds"]) - waited
    return [Look(at, told, whole - at, whole) for at, told in looks]


def judge(name: str, looks: list[Look], changes: tuple[float, ...] = ()) -> Judged:
    """Return how true the looks were, those apart that are too near to the start or to a change of speed."""
    whole = looks[-1].whole_seconds
    errors = sorted(
        look.error
        for look in looks
        if look.at_seconds >= FIRST_PART * whole
        and not any(at <= look.at_seconds < at + SECONDS_AFTER_A_CHANGE for at in changes)
    )
    return Judged(name, whole, len(errors), errors[len(errors) // 2], errors[-1])


def judge_story(story: Story, seconds_between: float = SECONDS_BETWEEN_LOOKS) -> Judged:
    """Return how true the time left of a simulated run was."""
    return judge(story.name, look_at(story, seconds_between), tuple(at for at, _ in story.factors))


def judge_run(run: RunFolder) -> Judged:
    """Return how true the time left of a finished run was."""
    looks = look_back_at(run)
    restarts = sum(event["event"] == "trainer_restarted" for event in run.events)
    told = "" if not restarts else f", {restarts} restart{'s' if restarts > 1 else ''}"
    return judge(f"{run.config.name} on {Path(run.config.data.source).stem}{told}", looks)


def table(outcome: dict[str, Any]) -> str:
    """Return the part of docs/results.md that the outcome is told in."""
    lines = [
        "| run | took | median error | largest error |",
        "|---|---:|---:|---:|",
        *(
            f"| {kind}: {one['name']} | {format_seconds(one['whole_seconds'])} | {one['median_error']:.1%} | "
            f"{one['largest_error']:.1%} |"
            for kind in ("simulated", "recorded")
            for one in outcome[kind]
        ),
        "",
        f"`python -m benchmarks.time_left` at {outcome['commit']}; the recorded runs with {outcome['machine']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Judge the simulated runs, and the finished ones that are given, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dirs", nargs="*", type=Path, help="folders of finished runs, of this machine")
    runs = [open_run(path) for path in parser.parse_args().run_dirs]
    outcome = {
        "commit": commit(),
        "machine": describe_machine(machine()),
        "simulated": [asdict(judge_story(story)) for story in STORIES],
        "recorded": [asdict(judge_run(run)) for run in runs],
    }
    write_json(RESULTS, outcome)
    put_between_marks("time left", table(outcome))


if __name__ == "__main__":
    main()
