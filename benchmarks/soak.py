"""Short runs killed at random moments, a thousand times: `python -m benchmarks.soak --preset tiny --kills 700`.

Each run is a copy of one that was left alone, as it was before its first step. It is killed (trainer, supervisor,
or both at once) and gone on with until it comes through; then its files and figures are compared with the other's.
The outcome goes to docs/soak.json and into docs/results.md.

It may be done in pieces: `--minutes` ends a piece after the run that is under way, and the next call goes on from
runs/soak/PRESET.json. A run that went wrong stays under runs/soak/PRESET. Delete runs/soak to begin anew, on
another machine or after a change of the code.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kills import PROGRAM, VICTIMS, Outcome, copy_before_first_step, figures, train_under_fire
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from lowmem_seq.files import make_folder, read_json, write_json

DATA_FILE = ROOT / "docs" / "soak.json"
PLACE = ROOT / "runs" / "soak"


@dataclass(frozen=True)
class Soaked:
    """What is killed: a preset on the embedded shapes, with every kind of random draw."""

    steps: int
    every: int
    kills_a_run: int
    flags: tuple[str, ...]


MIXED = ("augmentation.mixup=0.3", "augmentation.cutmix=0.3", "augmentation.colour=0.2", "recipe.ema_decay=0.9")
SOAKED = {
    "tiny": Soaked(60, 5, 8, ("--micro-batch", "16", "--max-ram", "1GB", "--set", "machine.threads=1")),
    "small": Soaked(30, 3, 6, ("--micro-batch", "64", "--max-ram", "2GB", "--set", "model.dropout=0.1")),
}
"""Tiny has dropout by itself. Both have drop path by themselves."""


def command(preset: str) -> list[str]:
    """The arguments of `lowmem-seq` that train the run which is left alone."""
    one = SOAKED[preset]
    length = ["--steps", str(one.steps), "--checkpoint-every", f"{one.every}steps"]
    mixed = [word for setting in MIXED for word in ("--set", setting)]
    return ["train", preset, "--data", "shapes", *length, *one.flags, *mixed]


def train_undisturbed(preset: str) -> Path:
    """Return the run that is left alone, trained now if it hasn't been."""
    run = PLACE / preset / "undisturbed"
    if ("test", SOAKED[preset].steps) not in figures(run):
        shutil.rmtree(run, ignore_errors=True)
        subprocess.run([*PROGRAM, *command(preset), "--run-dir", str(run)], check=True)
    return run


def begin(preset: str) -> dict[str, Any]:
    """Return the outcome so far, or that of no run at all.

    Raises:
        SystemExit: the runs so far were made elsewhere, or with other versions.
    """
    file = PLACE / f"{preset}.json"
    one = SOAKED[preset]
    here = {"machine": machine(), "command": "lowmem-seq " + " ".join(command(preset))}
    if not file.exists():
        make_folder(PLACE)
        counts = {"runs": 0, "equal_runs": 0, "kills": dict.fromkeys(VICTIMS, 0), "most_steps_lost": 0}
        saved = {"steps": one.steps, "every_steps": one.every, "commits": [commit()]}
        return {**here, **saved, **counts, "failures": [], "seconds": 0.0}
    state: dict[str, Any] = read_json(file)
    differing = [key for key, value in here.items() if state[key] != value]
    if differing:
        raise SystemExit(f"{file} is of another {' and '.join(differing)}; delete {PLACE} to begin anew")
    state["commits"] = list(dict.fromkeys([*state["commits"], commit()]))
    return state


def add(state: dict[str, Any], outcome: Outcome, seconds: float) -> None:
    """Count one run more."""
    state["runs"] += 1
    for victim, count in outcome.kills.items():
        state["kills"][victim] += count
    state["most_steps_lost"] = max(state["most_steps_lost"], outcome.most_steps_lost)
    state["failures"] += [f"run {state['runs']}: {words}" for words in outcome.failures]
    if outcome.differing:
        state["failures"].append(f"run {state['runs']} differs: {', '.join(outcome.differing)}")
    state["equal_runs"] += not outcome.differing and not outcome.failures
    state["seconds"] += seconds


def soak(preset: str, kills: int, minutes: float) -> dict[str, Any]:
    """Kill runs until there were so many kills in all, or the time is over; return the outcome so far."""
    ends = time.monotonic() + 60 * minutes
    state = begin(preset)
    if sum(state["kills"].values()) < kills:
        undisturbed = train_undisturbed(preset)
    while (left := kills - sum(state["kills"].values())) > 0 and time.monotonic() < ends:
        began = time.monotonic()
        folder = PLACE / preset / f"run-{state['runs'] + 1:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a piece that was broken off
        run = copy_before_first_step(undisturbed, folder / "run", "machine.max_restarts=1000")
        draws = random.Random(state["runs"])
        outcome = train_under_fire(run, undisturbed, draws, min(left, SOAKED[preset].kills_a_run))
        add(state, outcome, time.monotonic() - began)
        if not outcome.failures and not outcome.differing:
            shutil.rmtree(folder)
        write_json(PLACE / f"{preset}.json", state)
        done, failed = sum(state["kills"].values()), len(state["failures"])
        print(f"{preset}: {done} of {kills} kills, {state['runs']} runs, {failed} failures", flush=True)
    return state


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the outcome as Markdown."""
    lines = [
        "| preset | SIGKILLs | of the trainer, the supervisor, both | resumes that failed | most steps done again "
        "(saved every) | runs compared | equal in every bit |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for preset, one in results.items():
        kills = one["kills"]
        cells = (
            preset,
            f"{sum(kills.values()):,}",
            ", ".join(str(kills[victim]) for victim in VICTIMS),
            str(len(one["failures"])),
            f"{one['most_steps_lost']} ({one['every_steps']})",
            str(one["runs"]),
            f"**{one['equal_runs']}**",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for preset, one in results.items():
        kills_total = sum(one["kills"].values())
        commits = ", ".join(str(name) for name in one["commits"])
        lines.append(
            f"- {preset}, n = {kills_total:,}, at {commits}: `{one['command']}`; {describe_machine(one['machine'])}"
        )
    return "\n".join(lines)


def main() -> None:
    """Do a piece of the soak, and write what came of all pieces so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, choices=SOAKED)
    parser.add_argument("--kills", type=int, default=1000, help="how many there shall be when all pieces are done")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which this piece ends")
    options = parser.parse_args()
    state = soak(options.preset, options.kills, options.minutes)
    results = read_json(DATA_FILE) if DATA_FILE.exists() else {}
    results[options.preset] = state
    results = {preset: results[preset] for preset in SOAKED if preset in results}
    write_json(DATA_FILE, results)
    put_between_marks("soak", table(results))
    if sum(state["kills"].values()) < options.kills:
        print("not all of it yet: the same command goes on from here")
    if state["failures"]:
        sys.exit("\n".join(state["failures"]))


if __name__ == "__main__":
    main()
