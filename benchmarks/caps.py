"""Whether `--max-ram` holds: real runs over a grid of presets and caps, watched from outside every 5 ms or less.

`python -m benchmarks.caps` trains each preset of the grid for a few steps under each cap: every second run with an
empty cache, so that the planner's probes are watched too, the next one with what that one found. Each runs in a
control group, whose anonymous memory and kills the system counts by itself; half of these groups have a limit,
which lies above the cap, so that it is not the group which makes the run behave. The outcome goes to docs/caps.json
and into docs/results.md.

It may be done in pieces: `--minutes` or `--runs` ends a piece after the run that is under way, and the next call
goes on from runs/caps/state.json. A run that broke the promise stays under runs/caps; the exit code is 1 then.
Delete runs/caps to begin anew, on another machine or after a change of the code.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.groups import available
from benchmarks.outside import LONGEST_SECONDS
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.watched import TOO_SMALL, kills, problems, train_watched
from lowmem_seq.files import building_folder, make_folder, read_json, write_json
from lowmem_seq.units import format_bytes, parse_bytes

DATA_FILE = ROOT / "docs" / "caps.json"
PLACE = ROOT / "runs" / "caps"
STATE_FILE = PLACE / "state.json"
PICTURES = PLACE / "pictures"
TRAIN_PICTURES, TEST_PICTURES, SIDE = 160, 16, 224


@dataclass(frozen=True)
class Trained:
    """How a preset is trained here: few steps of 128 images, each with all that a step has."""

    data: str
    steps: int
    every: int
    caps: tuple[str, ...]
    runs_a_cap: int


GRID = {
    "small": Trained("shapes", 40, 10, ("600MB", "1GB", "2GB", "4GB", "6GB"), 12),
    "sequencer2d_s": Trained(str(PICTURES), 2, 1, ("1GB", "2GB", "4GB", "6GB"), 5),
    "sequencer2d_l": Trained(str(PICTURES), 2, 1, ("1.8GB", "2GB", "4GB", "6GB"), 5),
}
"""100 runs. 160 pictures are for training at 224x224, 16 for the test: evaluation is slow there."""


@dataclass(frozen=True)
class Case:
    """A preset under a cap."""

    preset: str
    cap: str

    @property
    def name(self) -> str:
        """As the command line takes it."""
        return f"{self.preset}@{self.cap}"

    @property
    def command(self) -> list[str]:
        """The arguments of `lowmem-seq`, but for the cap and the run's folder."""
        one = GRID[self.preset]
        length = ("--steps", str(one.steps), "--checkpoint-every", f"{one.every}steps")
        batch = ("--effective-batch", "128", "--quiet")
        return ["train", self.preset, "--data", one.data, *batch, *length]


CASES = tuple(Case(preset, cap) for preset, one in GRID.items() for cap in one.caps)


@dataclass(frozen=True)
class Turn:
    """One run of a case."""

    case: Case
    number: int
    fresh: bool
    """Whether nothing is remembered: the planner measures. What it finds is there for the next run of the case."""
    limited: bool
    """Whether its control group has a limit."""

    @property
    def folder(self) -> Path:
        """Where its run lies."""
        return PLACE / self.case.name / f"run-{self.number:02d}"


def turns(cases: Sequence[Case]) -> Iterator[Turn]:
    """Yield the runs of the grid, case after case in turn; all four kinds of run come in each case."""
    for number in range(max(GRID[case.preset].runs_a_cap for case in cases)):
        for case in cases:
            place = CASES.index(case) if case in CASES else 0
            if number < GRID[case.preset].runs_a_cap:
                yield Turn(case, number, fresh=number % 2 == 0, limited=(number // 2 + place) % 2 == 1)


def make_pictures() -> None:
    """Draw the pictures that the presets for 224x224 are trained on, unless they are there."""
    if not PICTURES.exists():
        draw_pictures(PICTURES, TRAIN_PICTURES, TEST_PICTURES)


def draw_pictures(place: Path, train_count: int, test_count: int) -> None:
    """Write so many JPEG files of coarse and of fine noise, as train/CLASS/file and test/CLASS/file."""
    draws = np.random.default_rng(0)
    with building_folder(place) as folder:
        for part, count in (("train", train_count), ("test", test_count)):
            for number in range(count):
                kind = folder / part / ("coarse", "fine")[number % 2]
                make_folder(kind)
                cells = (4, 32)[number % 2]
                noise = draws.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((SIDE, SIDE)).save(kind / f"{number:03d}.jpg", quality=90)


def train(turn: Turn, no_groups: str | None) -> dict[str, Any]:
    """Do one run under watch; return what was seen."""
    shutil.rmtree(turn.folder, ignore_errors=True)  # of a piece that was broken off
    make_folder(turn.folder)
    cache = turn.folder.parent / "cache"
    if turn.fresh:
        shutil.rmtree(cache, ignore_errors=True)
    told = {"case": turn.case.name, "run": turn.number, "fresh": turn.fresh, "limited": turn.limited}
    seen = train_watched(turn.case.command, turn.case.cap, turn.folder, cache, no_groups, turn.limited)
    return {**told, "commit": commit(), **seen}


def begin() -> dict[str, Any]:
    """Return the outcome so far, or that of no run at all.

    Raises:
        SystemExit: the runs so far were made elsewhere, or with other versions.
    """
    make_folder(PLACE)
    here = {"machine": machine(), "swap_bytes": psutil.swap_memory().total, "no_groups": available()}
    if not STATE_FILE.exists():
        return {**here, "runs": []}
    state: dict[str, Any] = read_json(STATE_FILE)
    differing = [key for key, value in here.items() if state[key] != value]
    if differing:
        raise SystemExit(f"{STATE_FILE} is of another {' and '.join(differing)}; delete {PLACE} to begin anew")
    return state


def measure(cases: Sequence[Case], minutes: float, most_runs: int) -> tuple[dict[str, Any], int]:
    """Do the runs that are left, until the time is over; return the outcome so far, and how many are left."""
    ends = time.monotonic() + 60 * minutes
    state = begin()
    make_pictures()
    done = {(one["case"], one["run"]) for one in state["runs"]}
    left = [turn for turn in turns(cases) if (turn.case.name, turn.number) not in done]
    count = 0
    for turn in left[:most_runs]:
        if time.monotonic() > ends:
            break
        state["runs"].append(one := train(turn, state["no_groups"]))
        count += 1
        write_json(STATE_FILE, state)
        if not problems(one):
            shutil.rmtree(turn.folder)
        print(line(one), *broken_promises({"runs": [one]}), sep="\n  ", flush=True)
    return state, len(left) - count


def broken_promises(state: dict[str, Any]) -> list[str]:
    """Return in words what went wrong in all runs so far."""
    return [f"{one['case']}, run {one['run']}: {words}" for one in state["runs"] for words in problems(one)]


def line(one: dict[str, Any]) -> str:
    """Return one run in a line for people."""
    kind = f"{'fresh' if one['fresh'] else 'remembered'}{', in a group with a limit' if one['limited'] else ''}"
    ended = f"refused, would take {one['smallest_cap']}" if one["exit_code"] == TOO_SMALL else "trained"
    largest = max(one["highest_held"], key=one["highest_held"].get, default="nobody").partition(" (")[0]
    median, longest = 1e3 * one["interval_median_seconds"], 1e3 * one["interval_longest_seconds"]
    return (
        f"{one['case']} run {one['run']} ({kind}): {ended if one['exit_code'] in (0, TOO_SMALL) else 'FAILED'} in "
        f"{one['seconds']:.0f} s; {one['count']:,} samples every {median:.1f} ms (longest {longest:.0f} ms), "
        f"{one['above']} above; {format_bytes(one['highest_bytes'])}, {one['highest_bytes'] / one['cap_bytes']:.1%}"
        f" of the cap, most by the {largest}; {setting_words(one)}, {one['images_per_second'] or 0:,.1f} images/s"
    )


def setting_words(one: dict[str, Any]) -> str:
    """Return what a run was computed with at its end: micro-batch x workers, recomputed layers, allocator."""
    setting = one["setting"]
    if not setting:
        return "-"
    recomputed = f" r{setting['recomputed_layers']}" if setting["recomputed_layers"] else ""
    return f"{setting['micro_batch']}x{setting['workers']}{recomputed} {one['allocator']}"


def table(state: dict[str, Any]) -> str:
    """Return the outcome as Markdown."""
    lines = [
        "| case | runs (fresh, with a limit) | trained, refused | samples | above the cap | highest sum, of cap "
        "| highest anonymous memory, of cap | peak of training, of predicted | kills | swapped out | settings "
        "| images/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    names = dict.fromkeys([*(case.name for case in CASES), *(one["case"] for one in state["runs"])])
    for name in names:
        runs = [one for one in state["runs"] if one["case"] == name]
        if runs:
            lines.append(f"| {' | '.join(_row(name, runs))} |")
    runs = state["runs"]
    longest = max((one["interval_longest_seconds"] for one in runs), default=0.0)
    median = statistics.median(one["interval_median_seconds"] for one in runs) if runs else 0.0
    late = sum(one["late_seconds"] for one in runs) / max(1e-9, sum(one["seconds"] for one in runs))
    swap = "has no swap" if not state["swap_bytes"] else f"has {format_bytes(state['swap_bytes'])} of swap"
    groups = "" if state["no_groups"] is None else f" No control groups: {state['no_groups']}."
    commits = ", ".join(dict.fromkeys(str(one["commit"]) for one in runs))
    return "\n".join(
        [
            *lines,
            "",
            f"n = {len(runs)} runs, {sum(one['count'] for one in runs):,} samples: one every {1e3 * median:.1f} ms "
            f"(median), the longest interval {1e3 * longest:.0f} ms; {late:.2%} of the time lies in intervals over "
            f"{1e3 * LONGEST_SECONDS:.0f} ms. This machine {swap}.{groups} Settings are micro-batch x workers, "
            "recomputed layers (r), allocator.",
            "",
            f"`python -m benchmarks.caps`, at {commits}; {describe_machine(state['machine'])}.",
        ]
    )


def _row(name: str, runs: list[dict[str, Any]]) -> list[str]:
    cap = runs[0]["cap_bytes"]
    refused = [one for one in runs if one["exit_code"] == TOO_SMALL]
    trained = [one for one in runs if one["exit_code"] == 0]
    named = ", ".join(sorted({str(one["smallest_cap"]) for one in refused}))
    past = sum(one["above_on_purpose"] for one in runs)
    anonymous = max(one["highest_beside_bytes"] for one in runs)
    met = [one["own_peak_bytes"] / one["predicted_peak_bytes"] for one in trained if one["own_peak_bytes"]]
    rates = [one["images_per_second"] for one in trained if one["images_per_second"]]
    settings = dict.fromkeys(setting_words(one) for one in trained)
    swapped = [one["swapped_out_bytes"] for one in runs if one["swapped_out_bytes"] is not None]
    return [
        name,
        f"{len(runs)} ({sum(one['fresh'] for one in runs)}, {sum(one['limited'] for one in runs)})",
        f"{len(trained)}, {len(refused)}" + (f" (names {named})" if refused else ""),
        f"{sum(one['count'] for one in runs):,}",
        f"**{sum(one['above'] for one in runs)}**" + (f" (and {past} to name a cap)" if past else ""),
        f"{max(one['highest_bytes'] for one in runs) / cap:.1%}",
        f"{anonymous / cap:.1%}" if anonymous else "-",
        f"{max(met):.1%}" if met else "-",
        str(sum(kills(one) for one in runs)),
        format_bytes(sum(swapped)) if swapped else "-",
        ", ".join(settings) or "-",
        f"{statistics.median(rates):,.4g}" if rates else "-",
    ]


def parse_case(text: str) -> Case:
    """Return the case that a word such as small@600MB means."""
    preset, _, cap = text.partition("@")
    if preset not in GRID or not cap:
        raise argparse.ArgumentTypeError(f"{text!r} is no case; the presets are {', '.join(GRID)}")
    parse_bytes(cap)
    return Case(preset, cap)


def main() -> None:
    """Do a piece of the grid, and write what came of all pieces so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="after which this piece ends")
    parser.add_argument("--runs", type=int, default=1000, help="after so many runs this piece ends")
    parser.add_argument("--case", type=parse_case, nargs="*", default=CASES, help="only these: small@600MB")
    parser.add_argument("--print-only", action="store_true", help="leave docs as they are")
    options = parser.parse_args()
    state, left = measure(options.case, options.minutes, options.runs)
    text = table(state)
    print(text)
    if not options.print_only:
        write_json(DATA_FILE, state)
        put_between_marks("caps", text)
    if left:
        print(f"{left} runs are left: the same command goes on from here")
    broken = broken_promises(state)
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
