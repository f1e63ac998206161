"""Small on datasets of 2,000 to 2,000,000 pictures: the second part of `python -m benchmarks.scaling`.

Each is a real `lowmem-seq train` of a fixed number of steps, with the dataset packed and the plan remembered,
watched from outside. The packs are sparse files (benchmarks/synthetic.py); the largest is also written to the disk,
and the system made to forget it, so that each picture that is read comes from the disk.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kills import PROGRAM
from benchmarks.scaling_picture import Line, Panel
from benchmarks.synthetic import as_source, forget, make_pack, using_cache
from benchmarks.watched import problems, train_watched
from lowmem_seq.files import make_folder
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes


@dataclass(frozen=True)
class Dataset:
    """A number of training pictures, and whether they are on the disk."""

    images: int
    written: bool = False

    @property
    def key(self) -> str:
        """Its name in docs/scaling.json, and for people."""
        return f"{self.images:,}" + (", from the disk" if self.written else "")


DATASETS = (
    *(Dataset(images) for images in (2_000, 20_000, 200_000, 2_000_000)),
    Dataset(2_000_000, written=True),
)
IMAGE_SIZE = 32
CAP = "2GB"
STEPS = 100
VALIDATION_IMAGES = 200
"""Of all datasets, so that no run evaluates more than another."""
FLAGS = ("--micro-batch", "64", "--set", "machine.threads=1", "--set", "machine.lstm_path=native")
"""What a plan for one dataset might choose otherwise than one for another. One core, so one worker: the peaks of
two meet or don't, and their sum differs by 3 % from run to run; that of one by 0.3 %."""
MOST_GROWTH = 0.03
"""By what share the highest memory may pass that of the smallest dataset."""
LEAST_SPEED = 0.95
"""What of the smallest dataset's images/s must be reached."""
MOST_START_SECONDS = 5.0
FIGURES = ("images_per_second", "highest_bytes", "start_seconds")


def measure_dataset(dataset: Dataset, place: Path) -> dict[str, Any]:
    """Train on a dataset of this size, and return what was seen; its plan is made before, where there is none.

    Raises:
        subprocess.CalledProcessError: it could not be planned.
    """
    cache = place / "cache"
    make_folder(place)
    with using_cache(cache), tempfile.TemporaryDirectory(prefix="run-", dir=place) as folder:
        pack = make_pack(dataset.images, IMAGE_SIZE, dataset.written)
        fraction = f"data.validation_fraction={VALIDATION_IMAGES / dataset.images:f}"
        flags = ("--data", as_source(pack), "--set", fraction, *FLAGS)
        subprocess.run([*PROGRAM, "plan", "small", *flags, "--max-ram", CAP], capture_output=True, check=True)
        forget(pack)
        train = ("train", "small", *flags, "--steps", str(STEPS), "--quiet")
        seen = train_watched(train, CAP, Path(folder), cache, "not asked for")
        times = times_of(RunFolder(Path(folder) / "run"))
    kept = ("setting", "allocator", "highest_bytes", "highest_held")
    return {**{key: seen[key] for key in kept}, **times, "problems": problems(seen)}


def times_of(run: RunFolder) -> dict[str, float]:
    """Return how long a run took to begin, and its images/s once the first steps are over."""
    events = list(run.events)
    at = {event["event"]: event["time_unix_seconds"] for event in reversed(events)}  # the first of each kind
    rates = [event["images_per_second"] for event in events if event["event"] == "train"]
    return {
        "start_seconds": at["session_started"] - at["session_opened"],
        "images_per_second": statistics.median(rates[1:]),
    }


def medians(results: dict[str, Any]) -> list[tuple[Dataset, dict[str, float]]]:
    """Return the datasets that were measured, with the medians of their figures."""
    told = []
    for dataset in DATASETS:
        runs = results.get(dataset.key)
        if runs:
            told.append((dataset, {name: statistics.median(one[name] for one in runs) for name in FIGURES}))
    return told


def dataset_table(results: dict[str, Any]) -> list[str]:
    """Return the table of the datasets."""
    lines = [
        "| training pictures | images/s | highest memory of all processes | seconds until the first step begins |",
        "|---:|---:|---:|---:|",
    ]
    for dataset, told in medians(results):
        speed, start = f"{told['images_per_second']:,.0f}", f"{told['start_seconds']:.2f}"
        lines.append(f"| {dataset.key} | {speed} | {format_bytes(int(told['highest_bytes']))} | {start} |")
    return lines


def broken_datasets(results: dict[str, Any]) -> list[str]:
    """Return what does not hold of the promises about datasets, in words."""
    broken = [
        f"{key} pictures: {problem}" for key, runs in results.items() for one in runs for problem in one["problems"]
    ]
    settings = {str((one["setting"], one["allocator"])) for runs in results.values() for one in runs}
    if len(settings) > 1:
        broken.append(f"datasets were not trained on with one setting: {', '.join(sorted(settings))}")
    told = medians(results)
    for dataset, one in told:
        least = told[0][1]
        growth = one["highest_bytes"] / least["highest_bytes"] - 1
        speed = one["images_per_second"] / least["images_per_second"]
        if growth > MOST_GROWTH:
            broken.append(f"{dataset.key} pictures: {growth:.1%} more memory than for {told[0][0].key}")
        if speed < LEAST_SPEED:
            broken.append(f"{dataset.key} pictures: {speed:.0%} of the images/s of {told[0][0].key}")
        if one["start_seconds"] > MOST_START_SECONDS:
            broken.append(f"{dataset.key} pictures: {one['start_seconds']:.1f} s until the first step begins")
    return broken


def dataset_panel(results: dict[str, Any]) -> Panel:
    """Return what is drawn of the datasets: images/s, each with its memory."""
    told = [(dataset, one) for dataset, one in medians(results) if not dataset.written]
    sizes = [dataset.images for dataset, _ in told]
    speeds = [one["images_per_second"] for _, one in told]
    notes = [format_bytes(int(one["highest_bytes"])) for _, one in told]
    return Panel(
        "training pictures, with peak memory",
        [Line("native", sizes, speeds, notes)],
        [dataset.images for dataset, _ in told],
    )
