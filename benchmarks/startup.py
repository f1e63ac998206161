"""From the command to the first optimizer step: `python -m benchmarks.startup`, a table in docs/results.md.

`lowmem-seq train small --data shapes --steps 1` is run with the dataset packed and the plan remembered, and timed
from the moment its process is asked for to the moment its first step is recorded. Its run folder says when each
part of it ended. What the trainer's own part is made of, a process tells that opens the same run, and does the same
step, with its calls timed. Then the commands that must answer at once, to their end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from lowmem_seq.files import write_json
from lowmem_seq.runs.folder import RunFolder, open_run

RESULTS = ROOT / "docs" / "startup.json"
PROGRAM = [sys.executable, "-m", "lowmem_seq"]
MOST_SECONDS = 5.0
"""From the command to the first step's end."""
TRAIN = ("train", "small", "--data", "shapes", "--steps", "1", "--quiet")
PARTS = (
    "command: interpreter, imports, run folder",
    "dataset found packed, by a process of its own",
    "plan taken from what is remembered",
    "trainer: interpreter, imports, model, data",
    "first step",
)
TRAINER_PARTS = (
    "interpreter",
    "import torch",
    "import accelerate",
    "other imports",
    "data opened",
    "Accelerator made",
    "model drawn",
    "optimizer and the rest",
    "first step",
)
AT_ONCE = ("--help", "train --help", "status", "report --json")
"""Commands that must not import torch; the last two are given a run's folder."""
CHILD = "import sys; from benchmarks.startup import tell_trainer_parts; tell_trainer_parts(*sys.argv[1:])"


def run_and_time(run: RunFolder, *arguments: str) -> dict[str, float]:
    """Train, and return the seconds that each part took until the first step was recorded.

    Args:
        run: a folder that is not there yet.
        arguments: of `lowmem-seq`, but for the run's folder.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    began = time.time()
    command = [*PROGRAM, *arguments, "--run-dir", str(run.path)]
    subprocess.run(command, capture_output=True, check=True)
    return parts_of(run, began)


def parts_of(run: RunFolder, began: float) -> dict[str, float]:
    """Return the seconds of each part of a run's start, from a moment in seconds since 1970 on."""
    at: dict[str, float] = {}
    for event in run.events:
        at.setdefault(event["event"], event["time_unix_seconds"])
    packed = run.data_file.stat().st_mtime
    ends = (at["session_opened"], packed, at["planned"], at["session_started"], at["train"])
    return dict(zip(PARTS, (end - start for start, end in pairwise((began, *ends))), strict=True))


def tell_trainer_parts(run_path: str, began: str) -> None:
    """Open a run as its trainer does, do its first step, and print the seconds that each part took."""
    at = [float(began), time.time()]
    import torch  # noqa: F401

    at.append(time.time())
    import accelerate  # noqa: F401

    at.append(time.time())
    from lowmem_seq.channel import Channel
    from lowmem_seq.training import session

    at.append(time.time())
    inside: dict[str, float] = {}
    for what, name in zip(TRAINER_PARTS[4:7], ("open_data", "make_accelerator", "make_model"), strict=True):
        setattr(session, name, timed(getattr(session, name), what, inside))
    run = open_run(Path(run_path))
    training = session.open_training(run, session.read_plan(run), Channel(listen=False))
    opened = time.time()
    training.train_step()
    spans = dict(zip(TRAINER_PARTS, (end - start for start, end in pairwise(at)), strict=False))
    rest = opened - at[-1] - sum(inside.values())
    print(json.dumps({**spans, **inside, TRAINER_PARTS[7]: rest, TRAINER_PARTS[8]: time.time() - opened}))


def timed(call: Callable[..., Any], what: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Return the same function, which adds up its time."""

    def timed_call(*arguments: Any) -> Any:
        began = time.time()
        try:
            return call(*arguments)
        finally:
            seconds[what] = seconds.get(what, 0.0) + time.time() - began

    return timed_call


def trainer_parts(run: RunFolder) -> dict[str, float]:
    """Return what a process tells that opens a run as its trainer does."""
    plan = run.read_json(run.plan_file)
    assert plan is not None
    told = subprocess.run(
        [sys.executable, "-c", CHILD, str(run.path), str(time.time())],
        env={**os.environ, **plan["environment"]},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    ).stdout
    parts: dict[str, float] = json.loads(told)
    return parts


def answer(command: str, run: RunFolder) -> list[str]:
    """Return the arguments of a command that must answer at once."""
    return [*command.split(), *([] if "--help" in command else [str(run.path)])]


def seconds_to_answer(arguments: list[str]) -> float:
    """Return how long a command takes to its end."""
    began = time.perf_counter()
    subprocess.run([*PROGRAM, *arguments], capture_output=True, check=True)
    return time.perf_counter() - began


def large_imports(*command: str) -> list[str]:
    """Return which of the large libraries are imported by a command of Python's."""
    traced = [sys.executable, "-X", "importtime", *command]
    told = subprocess.run(traced, capture_output=True, check=True, encoding="utf-8").stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines()}
    return sorted(imported & {"torch", "torchvision", "accelerate"})


def collect(runs: int) -> dict[str, Any]:
    """Measure all, turn by turn."""
    found: dict[str, Any] = {"starts": [], "trainers": [], "answers": {command: [] for command in AT_ONCE}}
    with tempfile.TemporaryDirectory(prefix="startup-", ignore_cleanup_errors=True) as place:
        first = RunFolder(Path(place) / "run-0")
        run_and_time(first, *TRAIN)  # it packs and plans, where that was not done before
        for number in range(1, runs + 1):
            found["starts"].append(run_and_time(RunFolder(Path(place) / f"run-{number}"), *TRAIN))
            found["trainers"].append(trainer_parts(first))
            for command, times in found["answers"].items():
                times.append(seconds_to_answer(answer(command, first)))
        found["imports"] = {command: large_imports(*PROGRAM[1:], *answer(command, first)) for command in AT_ONCE}
    return {"machine": machine(), "commit": commit(), **found}


def rows(title: str, parts: tuple[str, ...], found: list[dict[str, float]]) -> list[str]:
    """Return a table of parts and their sum: median, shortest, longest."""
    lines = [f"| {title} | median | shortest | longest |", "|---|---:|---:|---:|"]
    lines += [f"| {part} | {spread([one[part] for one in found])} |" for part in parts]
    return [*lines, f"| **all** | {spread([sum(one.values()) for one in found], '**')} |"]


def spread(seconds: list[float], emphasis: str = "") -> str:
    """Return median, shortest and longest as cells."""
    cells = (statistics.median(seconds), min(seconds), max(seconds))
    return " | ".join(f"{emphasis}{one:.2f} s{emphasis}" for one in cells)


def page(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = [
        *rows(f"`lowmem-seq {' '.join(TRAIN)}`", PARTS, results["starts"]),
        "",
        *rows("the trainer's part, in a process of its own", TRAINER_PARTS, results["trainers"]),
        "",
        "| command, to its end | median | shortest | longest | imports of torch, torchvision, accelerate |",
        "|---|---:|---:|---:|---|",
    ]
    for command, times in results["answers"].items():
        large = ", ".join(results["imports"][command]) or "none"
        lines.append(f"| `{command}` | {spread(times)} | {large} |")
    return "\n".join(
        [
            *lines,
            "",
            f"`python -m benchmarks.startup` at {results['commit']}; n = {len(results['starts'])} of each; "
            f"{describe_machine(results['machine'])}.",
        ]
    )


def broken_promises(results: dict[str, Any]) -> list[str]:
    """Return what of the promises does not hold, in words."""
    longest = max(sum(one.values()) for one in results["starts"])
    broken = [f"a first step took {longest:.2f} s"] if longest > MOST_SECONDS else []
    return broken + [
        f"{command} imports {', '.join(large)}" for command, large in results["imports"].items() if large
    ]


def main() -> None:
    """Measure, and write the page and docs/startup.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    results = collect(options.runs)
    print(page(results))
    if not options.print_only:
        write_json(RESULTS, results)
        put_between_marks("startup", page(results))
    for fault in broken_promises(results):
        print(f"NOT GOOD: {fault}")


if __name__ == "__main__":
    main()
