"""Whether a long run holds more and more: `python -m benchmarks.slope --minutes 30`, a table in docs/results.md.

A preset trains under a cap, validates and saves as it always does, and the resident memory of the supervisor and of
its trainer is read from outside, fifty times a second. The first fifth is left out as warm-up.

Of each 10 s the lower tenth counts, and the slope is that of the least-squares line through the medians of six
equal blocks of these: a micro-batch, a validation or a save lifts or lowers what is held for a moment, which must
not count, while what it leaves behind for good must. There are so few blocks because what is held now is much like
what was held a minute ago, and only blocks that are longer than that (4 of 30 minutes) have errors of their own,
from which Student's t gives the interval.

On simulated half hours (tests/benchmarks/test_slope.py) the interval at 95 % held the true slope in 95 % of 3,000
draws where noise was forgotten at once, in 91 % where it lasted 100 s, and in 81 % where it lasted 5 minutes; a
bootstrap over blocks of 4 minutes in 82, 79 and 49 % of 100 draws.

A result goes to docs/slope.json; while there is one of this machine and command that is as long, it is only shown,
and `--again` measures anew.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.kills import PROGRAM
from benchmarks.overhead import started, wait_for
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.picture import look
from benchmarks.watched import told
from lowmem_seq.errors import StoppedError
from lowmem_seq.files import make_folder, read_json, write_json
from lowmem_seq.memory.leak import line
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes, format_seconds

DATA_FILE = ROOT / "docs" / "slope.json"
PLACE = ROOT / "runs" / "slope"
MOST_BYTES_AN_HOUR = 10**6
"""What the promise allows."""
SAMPLE_SECONDS = 0.02
WINDOW_SECONDS = 10.0
LOWER = 0.1
"""Share of a window's looks that lie below what counts: the median flips between two levels within a step."""
WARM_UP = 0.2
"""Share of the time that is left out: the first save by the clock, after 5 of 30 minutes, lies in it."""
BLOCKS = 6
STUDENT = 2.776
"""Student's t at 95 %, both sides, for six points and a line."""
FEWEST_MINUTES = 2.0
MORE_STEPS_THAN_TIME = 1_000_000
PARTS = ("supervisor", "trainer", "tree")
DISTURBANCES = ("setting_changed", "trainer_restarted", "out_of_memory")
"""Events after which it is no more the same process, or computes in another way; `told` gives their causes."""


@dataclass(frozen=True)
class Slope:
    """How fast what is held grows, and the interval at 95 %."""

    bytes_an_hour: float
    least: float
    most: float

    @property
    def width(self) -> float:
        """How much is left open."""
        return self.most - self.least


def slope_of(held: Sequence[float], seconds_each: float) -> Slope:
    """Return the slope of what was held in windows that followed each other, see above.

    Args:
        held: a figure for each window, at least one for each block; those that are left over at the start are
            left out.
        seconds_each: how long a window is.
    """
    size = len(held) // BLOCKS
    medians = [statistics.median(held[end - size : end]) for end in range(len(held), len(held) % BLOCKS, -size)]
    hours = size * seconds_each / 3600
    slope, error = line([(-place * hours, median) for place, median in enumerate(medians)])
    return Slope(slope, slope - STUDENT * error, slope + STUDENT * error)


class Windows:
    """The lower tenth of what was held, window after window; one that has not ended counts for nothing."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {part: [] for part in PARTS}
        self.troughs: dict[str, list[float]] = {part: [] for part in PARTS}
        self.highest_bytes = dict.fromkeys(PARTS, 0.0)
        self.count = 0

    def add(self, seconds: float, supervisor: float, trainer: float) -> None:
        """Take in what was held at a moment after the start."""
        while seconds >= (len(self.troughs["tree"]) + 1) * WINDOW_SECONDS and self._samples["tree"]:
            for part, held in self._samples.items():
                self.troughs[part].append(sorted(held)[int(LOWER * len(held))])
                held.clear()
        self.count += 1
        for part, held_bytes in zip(PARTS, (supervisor, trainer, supervisor + trainer), strict=True):
            self._samples[part].append(held_bytes)
            self.highest_bytes[part] = max(self.highest_bytes[part], held_bytes)


def train(arguments: Sequence[str], minutes: float) -> dict[str, Any]:
    """Train for so long, counted from the trainer's start; return what was held, and what the run tells.

    Args:
        arguments: of `lowmem-seq`, but for the run's folder.
        minutes: how long.

    Raises:
        RuntimeError: the run ended before, or would not stop.
    """
    shutil.rmtree(PLACE, ignore_errors=True)
    make_folder(PLACE)
    run, windows = RunFolder(PLACE / "run"), Windows()
    with started([*PROGRAM, *arguments, "--run-dir", str(run.path)], terminal=False) as process:
        wait_for(process, lambda: moment_of(run, "session_started") is not None)
        began = moment_of(run, "session_started")
        assert began is not None
        while (seconds := time.time() - began) < 60 * minutes + SAMPLE_SECONDS:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with code {process.returncode}, see {run.path}")
            held = look(process.pid, seconds, None)
            windows.add(seconds, held["supervisor"], held["child"])
            time.sleep(SAMPLE_SECONDS)
        process.terminate()
        if process.wait() != StoppedError.exit_code:
            raise RuntimeError(f"asked to stop, the run ended with code {process.returncode}, see {run.path}")
    counts, validated = Counter(event["event"] for event in run.events), moment_of(run, "validation")
    return {
        "machine": machine(),
        "commit": commit(),
        "command": told_command(arguments),
        "minutes": minutes,
        "samples": windows.count,
        "troughs": windows.troughs,
        "highest_bytes": windows.highest_bytes,
        "events": {kind: counts[kind] for kind in ("validation", "checkpoint", "leak_noticed")},
        "first_validation_seconds": None if validated is None else validated - began,
        "steps": max((event["step"] for event in run.events if event["event"] == "train"), default=0),
        "run": told(run),
    }


def moment_of(run: RunFolder, kind: str) -> float | None:
    """Return when the first event of a kind was, or None."""
    found = (event["time_unix_seconds"] for event in run.events if event["event"] == kind)
    return next(found, None)


def after_warm_up(result: dict[str, Any], part: str) -> list[float]:
    """Return what is judged by, window after window."""
    troughs: list[float] = result["troughs"][part]
    return troughs[round(WARM_UP * len(troughs)) :]


def slopes(result: dict[str, Any]) -> dict[str, Slope]:
    """Return the slope of each part."""
    return {part: slope_of(after_warm_up(result, part), WINDOW_SECONDS) for part in PARTS}


def disturbances(result: dict[str, Any]) -> list[str]:
    """Return in words why the figures are not those of one process that computed in one way; none if they are."""
    return [f"{kind}: {cause}" for kind in DISTURBANCES for cause in result["run"][kind]]


def broken_promises(result: dict[str, Any]) -> list[str]:
    """Return in words what is not as it should be."""
    tree, found = slopes(result)["tree"], []
    if tree.least > MOST_BYTES_AN_HOUR:
        found.append(f"memory grows by {told_slope(tree)} MB/h, and {MOST_BYTES_AN_HOUR / 1e6:g} are allowed")
    if result["events"]["leak_noticed"]:
        found.append("the run itself noticed a leak")
    return found


def late_validation(result: dict[str, Any]) -> str:
    """Return a warning where no validation lay in the warm-up; the first one lifts what Small holds by 13 MB."""
    came = result["first_validation_seconds"]
    if came is None:
        return ", and **no validation came at all**"
    if came > WARM_UP * result["minutes"] * 60:
        return f", and **the first validation came after it**, at {format_seconds(came)}"
    return ""


def told_slope(slope: Slope) -> str:
    """Return a slope in MB/h with its interval."""
    low, middle, high = (size / 1e6 for size in (slope.least, slope.bytes_an_hour, slope.most))
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def verdict(result: dict[str, Any]) -> str:
    """Return what the slope of the whole tree says about the promise."""
    tree, allowed = slopes(result)["tree"], MOST_BYTES_AN_HOUR
    if tree.least > allowed:
        words = "it is broken"
    elif tree.most <= allowed:
        words = "it holds"
    else:
        words = "nothing speaks against it, though the interval reaches beyond"
    wide = f"; the interval is {tree.width / 1e6:.2f} MB/h wide, which is more than the promise itself"
    return f"The promise is at most {allowed / 1e6:g} MB/h: {words}{wide if tree.width > allowed else ''}."


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "| held by | after the warm-up | at the end | the most | slope, MB/h (interval at 95 %) |",
        "|---|---:|---:|---:|---:|",
    ]
    names = {"supervisor": "supervisor", "trainer": "trainer", "tree": "**both**"}
    for part, slope in slopes(result).items():
        held = after_warm_up(result, part)
        first, last, most = (
            format_bytes(round(size)) for size in (held[0], held[-1], result["highest_bytes"][part])
        )
        lines.append(f"| {names[part]} | {first} | {last} | {most} | {told_slope(slope)} |")
    run, events, setting = result["run"], result["events"], result["run"]["setting"]
    count, left_out = len(after_warm_up(result, "tree")), WARM_UP * result["minutes"] * 60
    computed = f"micro-batch {setting['micro_batch']} x {setting['workers']}, {run['allocator']}"
    if setting["recomputed_layers"]:
        computed += f", {setting['recomputed_layers']} layers recomputed"
    return "\n".join(
        [
            *lines,
            "",
            f"{verdict(result)} One run of {result['minutes']:g} minutes ({computed}): {result['steps']:,} steps, "
            f"{events['validation']} validations, {events['checkpoint']} saves; n = {count} windows of "
            f"{WINDOW_SECONDS:g} s, of {result['samples']:,} looks in all; the first {format_seconds(left_out)} "
            f"are left out as warm-up{late_validation(result)}.",
            "",
            f"`python -m benchmarks.slope`: `{result['command']}`, at {result['commit']}; "
            f"{describe_machine(result['machine'])}.",
        ]
    )


def stored(arguments: Sequence[str], minutes: float) -> dict[str, Any] | None:
    """Return the result that is there, if it is of this machine and command, and as long."""
    if not DATA_FILE.exists():
        return None
    result: dict[str, Any] = read_json(DATA_FILE)
    same = result["machine"] == machine() and result["command"] == told_command(arguments)
    return result if same and result["minutes"] >= minutes else None


def told_command(arguments: Sequence[str]) -> str:
    """Return a command as it is typed."""
    return " ".join(["lowmem-seq", *arguments])


def main() -> None:
    """Measure, or show what was measured, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help=f"of training, at least {FEWEST_MINUTES:g}")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--max-ram", default="2GB")
    parser.add_argument("--again", action="store_true", help="also where there is a result")
    parser.add_argument("--print-only", action="store_true", help="measure, and leave docs as they are")
    options = parser.parse_args()
    if options.minutes < FEWEST_MINUTES:
        parser.error(f"{options.minutes:g} minutes tell nothing")
    flags = ["--data", options.data, "--max-ram", options.max_ram, "--steps", str(MORE_STEPS_THAN_TIME)]
    arguments = ["train", options.preset, *flags]
    result = None if options.again or options.print_only else stored(arguments, options.minutes)
    if result is None:
        result = train(arguments, options.minutes)
        if causes := disturbances(result):
            sys.exit("\n".join(["this was not one process that computed in one way:", *causes]))
    print(table(result))
    if not options.print_only:
        write_json(DATA_FILE, result)
        put_between_marks("slope", table(result))
    if broken := broken_promises(result):
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
