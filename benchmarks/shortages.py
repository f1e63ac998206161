"""Allocations that fail in every phase of a step, a hundred times: `python -m benchmarks.shortages --failures 100`.

Each run is a copy of one that was left alone, as it was before its first step. In its trainers the allocator fails
at steps and in phases drawn at random, under a limit that leaves no room (benchmarks/faults.py). The run must come
through; where the state was whole no complete step may be lost; and its weights, optimizer and figures must be, bit
for bit, those of a run that nobody disturbed and that used the same settings at the same steps
(benchmarks/replay.py).

Pieces, state and outcome are as in benchmarks/soak.py: runs/shortages, docs/shortages.json, docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults import KEEP_THE_STEP, PHASES
from benchmarks.kills import PROGRAM, copy_before_first_step
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.replay import differences_from_replay
from benchmarks.soak import SOAKED, train_undisturbed
from lowmem_seq.files import make_folder, read_json, write_json
from lowmem_seq.runs.folder import RunFolder

DATA_FILE = ROOT / "docs" / "shortages.json"
PLACE = ROOT / "runs" / "shortages"
PRESET = "tiny"
FAULTS_A_RUN = 4
"""Each makes the micro-batch smaller: 16, 8, 4, 2, 1."""
INSTALL = f"import sys\nsys.path.append({str(ROOT)!r})\nfrom benchmarks.faults import install\ninstall()\n"


@dataclass
class Outcome:
    """What became of one run."""

    struck: Counter[str] = field(default_factory=Counter)
    """How often an allocation failed in each phase."""
    saved: int = 0
    """How often the last complete step was safe on the disk before the process ended."""
    failures: list[str] = field(default_factory=list)


def train_with_faults(run: RunFolder, faults: list[str], folder: Path) -> Outcome:
    """Train a run in which these allocations fail, to its end, and compare it with a replay.

    Args:
        run: before its first step.
        faults: `phase@step`, see benchmarks/faults.py.
        folder: empty; for what the faults and the replay need.
    """
    done = folder / "done"
    done.mkdir()
    (folder / "sitecustomize.py").write_text(INSTALL, encoding="utf-8")
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path, "FAULTS": ",".join(faults), "FAULTS_DONE": str(done)}
    ended = subprocess.run(
        [*PROGRAM, "resume", str(run.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
        encoding="utf-8",
        check=False,
    )
    struck = sorted(mark.name for mark in done.iterdir())
    outcome = Outcome(Counter(name.partition("@")[0] for name in struck))
    if ended.returncode != 0:
        outcome.failures.append(f"ended with code {ended.returncode}: {ended.stdout.strip()}")
        return outcome
    outcome.failures += [f"{fault} did not strike" for fault in faults if fault not in struck]
    _look_at_losses(run, outcome)
    replayed = _replay_elsewhere(run, folder / "replayed")
    outcome.failures += [f"differs from its replay: {name}" for name in differences_from_replay(run.path, replayed)]
    return outcome


def _look_at_losses(run: RunFolder, outcome: Outcome) -> None:
    """See that where the state was whole, the next trainer began after that very step."""
    saved_step = None
    told = 0
    for event in run.events:
        if event["event"] == "out_of_memory":
            told += 1
            outcome.saved += event["saved"]
            saved_step = event["step"] if event["saved"] else None
        elif event["event"] == "session_started" and saved_step is not None:
            if event["step"] != saved_step:
                outcome.failures.append(
                    f"step {saved_step} was saved, and the next one began after {event['step']}"
                )
            saved_step = None
    if told != sum(outcome.struck.values()):
        outcome.failures.append(f"{sum(outcome.struck.values())} allocations failed, and {told} were told of")
    kept = sum(outcome.struck[phase] for phase in KEEP_THE_STEP)
    if outcome.saved < kept:
        outcome.failures.append(f"{kept} failures left the state whole, and {outcome.saved} steps were saved")


def _replay_elsewhere(run: RunFolder, to: Path) -> Path:
    """Replay a run in a process of its own, which has the trainer's threads."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.replay import replay; "
        "from lowmem_seq.runs.folder import RunFolder; replay(RunFolder(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    environment = {**os.environ, **read_json(run.plan_file)["environment"]}
    command = [sys.executable, "-c", code, str(run.path), str(to)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return to


def draw_faults(draws: random.Random, undisturbed: Path, count: int) -> list[str]:
    """Return so many different faults, at moments that the run comes by."""
    one = SOAKED[PRESET]
    validated = [event["step"] for event in RunFolder(undisturbed).events if event["event"] == "validation"]
    steps = {
        "opening": [0],
        "evaluation": validated,
        "save": list(range(one.every, one.steps, one.every)),
        "final weights": [one.steps],
    }
    faults: dict[str, None] = {}
    while len(faults) < count:
        phase = draws.choice(PHASES)
        faults[f"{phase}@{draws.choice(steps.get(phase, range(one.steps)))}"] = None
    return list(faults)


def soak(failures: int, minutes: float) -> dict[str, Any]:
    """Let allocations fail until there were so many in all, or the time is over; return the outcome so far."""
    ends = time.monotonic() + 60 * minutes
    file = PLACE / "outcome.json"
    begun = {"machine": machine(), "commits": [], "runs": 0, "struck": {}, "saved": 0, "failures": []}
    make_folder(PLACE)
    state: dict[str, Any] = read_json(file) if file.exists() else begun
    if state["machine"] != begun["machine"]:
        raise SystemExit(f"{file} is of another machine; delete {PLACE} to begin anew")
    undisturbed = train_undisturbed(PRESET)
    while (left := failures - sum(state["struck"].values())) > 0 and time.monotonic() < ends:
        folder = PLACE / f"run-{state['runs'] + 1:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a piece that was broken off
        run = copy_before_first_step(undisturbed, folder / "run", "machine.max_restarts=1000")
        faults = draw_faults(random.Random(state["runs"]), undisturbed, min(left, FAULTS_A_RUN))
        outcome = train_with_faults(run, faults, folder)
        state["runs"] += 1
        state["saved"] += outcome.saved
        state["struck"] = dict(Counter(state["struck"]) + outcome.struck)
        state["failures"] += [f"run {state['runs']} ({', '.join(faults)}): {words}" for words in outcome.failures]
        state["commits"] = list(dict.fromkeys([*state["commits"], commit()]))
        if not outcome.failures:
            shutil.rmtree(folder)
        write_json(file, state)
        print(json.dumps({key: state[key] for key in ("runs", "struck", "failures")}), flush=True)
    return state


def table(state: dict[str, Any]) -> str:
    """Return the outcome as Markdown."""
    struck = state["struck"]
    lines = [
        "| failures in | " + " | ".join(PHASES) + " | all |",
        "|---|" + "---:|" * (len(PHASES) + 1),
        "| n | " + " | ".join(str(struck.get(phase, 0)) for phase in PHASES) + f" | {sum(struck.values())} |",
        "",
        f"{state['runs']} runs of {PRESET}, all compared with their replays; {state['saved']} times the last "
        f"complete step was saved by the process whose allocation failed; what went wrong: "
        f"**{len(state['failures'])}**.",
        "",
        f"At {', '.join(str(name) for name in state['commits'])}; {describe_machine(state['machine'])}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Do a piece, and write what came of all pieces so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failures", type=int, default=100, help="how many there shall be after all pieces")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which this piece ends")
    options = parser.parse_args()
    state = soak(options.failures, options.minutes)
    write_json(DATA_FILE, state)
    put_between_marks("shortages", table(state))
    if state["failures"]:
        sys.exit("\n".join(state["failures"]))


if __name__ == "__main__":
    main()
