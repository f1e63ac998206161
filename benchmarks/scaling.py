"""How cost grows with the work: `python -m benchmarks.scaling`, in pieces that can be repeated until all is done.

Micro-batch, image size and depth: Small on one core with one of them changed, each point measured by the planner's
own probe in a process of its own, with both ways to compute LSTMs, on random pixels. Beside the images/s stand the
floating-point operations of an image, forward and backward (benchmarks/work.py), and the time that each takes.

Dataset size: `lowmem-seq train small` on packs of 2,000 to 2,000,000 pictures (benchmarks/dataset_sizes.py).

Rounds take turns over all points, so that what else the machine does falls on all alike. What is measured stands
in docs/scaling.json, and is not measured again; delete an entry to have it measured anew. The picture needs
matplotlib: pip install matplotlib.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dataset_sizes import DATASETS, broken_datasets, dataset_panel, dataset_table, measure_dataset
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.probing import make_config, probe
from benchmarks.scaling_picture import Line, Panel, draw
from benchmarks.synthetic import CLASSES, make_pack, using_cache
from benchmarks.work import training_flops
from lowmem_seq.config import RunConfig, Sequencer2DConfig
from lowmem_seq.files import read_json, write_json
from lowmem_seq.memory.environment import usable_allocators
from lowmem_seq.memory.plan import Means, Setting

DATA_FILE = ROOT / "docs" / "scaling.json"
PICTURE = ROOT / "docs" / "scaling.svg"
PLACE = ROOT / "runs" / "scaling"
"""Where packs and plans lie until all is measured: up to 6.3 GB."""
PRESET = "small"
WORKERS = 1
"""On one core: two workers' peaks meet or don't, and the time of an operation would be that of two."""
PROBED_IMAGES = 512
SWEEPS = {
    "micro-batch": (1, 2, 4, 8, 16, 32, 64, 128),
    "image size": (32, 48, 64, 96, 128, 224),
    "depth": (1, 2, 4, 8, 16),
}
"""Depth counts the layers of each of the two stages."""
EXPECTED = "if time grew as the work"
TITLES = {
    "micro-batch": "images at once",
    "image size": "pixels a side",
    "depth": "layers a stage",
}
MICRO_BATCHES = {"image size": 16, "depth": 64}
"""What is fixed where something else changes: 64 pictures of 224 pixels would need more memory than most have."""
MOST_EXCESS = 0.25
"""By what share the time of an operation may pass the least one at less work."""


@dataclass(frozen=True)
class Point:
    """A value of a sweep, and how LSTMs are computed."""

    sweep: str
    value: int
    lstm_path: str

    @property
    def key(self) -> str:
        """Its name in docs/scaling.json."""
        return f"{self.sweep} {self.value} {self.lstm_path}"

    @property
    def config(self) -> RunConfig:
        """Small, with one thing changed."""
        changes = [f"machine.threads={WORKERS}"]
        if self.sweep == "image size":
            changes.append(f"data.image_size={self.value}")
        if self.sweep == "depth":
            changes.append(f"model.layers=[{self.value}, {self.value}]")
        return make_config(PRESET, *changes)

    @property
    def micro_batch(self) -> int:
        """Images that a worker computes at once."""
        return MICRO_BATCHES.get(self.sweep, self.value)

    @property
    def flops(self) -> int:
        """What training on an image takes."""
        config = self.config
        assert isinstance(config.model, Sequencer2DConfig)
        return training_flops(config.model, config.data.image_size, CLASSES)

    @property
    def work(self) -> int:
        """What grows along the sweep: the operations of a micro-batch."""
        return self.micro_batch * self.flops


PATHS = ("native", "torch")
"""How LSTMs are computed: by our function with compiled cells, and by nn.LSTM."""
POINTS = [Point(sweep, value, path) for sweep, values in SWEEPS.items() for value in values for path in PATHS]


def measure_point(point: Point, place: Path) -> dict[str, Any] | None:
    """Return what a process of its own measures; None where it takes more than it may."""
    config = point.config
    setting, means = Setting(point.micro_batch, WORKERS), Means(usable_allocators()[0], point.lstm_path)
    with using_cache(place / "cache"):
        told = probe(config, make_pack(PROBED_IMAGES, config.data.image_size, written=True), setting, means)
    return None if told is None else dict(told["measured"])


def rate(measured: Sequence[dict[str, Any] | None]) -> float | None:
    """Return the median images/s of a point; None where it took more than it may."""
    rates = [one["images_per_second"] for one in measured if one is not None]
    return statistics.median(rates) if rates else None


def picoseconds(point: Point, images_per_second: float) -> float:
    """Return the time that one operation takes."""
    return 1e12 / (images_per_second * point.flops)


def rates(results: dict[str, Any], sweep: str, path: str) -> list[tuple[Point, float]]:
    """Return the points of a sweep that were measured, with their images/s."""
    wanted = [point for point in POINTS if (point.sweep, point.lstm_path) == (sweep, path)]
    found = [(point, rate(results["points"].get(point.key, ()))) for point in wanted]
    return [(point, one) for point, one in found if one is not None]


def sweep_table(results: dict[str, Any], sweep: str) -> list[str]:
    """Return the table of a sweep; the faster way to compute LSTMs, which the planner takes, is set in bold."""
    by_path = [{point.value: (point, one) for point, one in rates(results, sweep, path)} for path in PATHS]
    names = " | ".join(f"{path}: images/s | ps an operation" for path in PATHS)
    lines = [f"| {sweep} | GFLOP an image | {names} |", "|---:|---:|" + "---:|---:|" * len(PATHS)]
    for value in SWEEPS[sweep]:
        found = [points[value] for points in by_path if value in points]
        if not found:
            continue
        best = max(speed for _, speed in found)
        cells = [str(value), f"{Point(sweep, value, PATHS[0]).flops / 1e9:.3g}"]
        for points in by_path:
            cells += told_point(*points[value], best) if value in points else ["-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def told_point(point: Point, speed: float, best: float) -> list[str]:
    """Return images/s and the time of an operation as cells."""
    told = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
    return [f"**{told}**" if speed == best else told, f"{picoseconds(point, speed):.2f}"]


def page(results: dict[str, Any]) -> str:
    """Return the picture and the tables as Markdown."""
    lines = ["![images/s against micro-batch, image size, depth and dataset size](scaling.svg)", ""]
    for sweep in SWEEPS:
        lines += [*sweep_table(results, sweep), ""]
    lines += [*dataset_table(results["datasets"]), ""]
    rounds = max(len(one) for one in (*results["points"].values(), *results["datasets"].values()))
    foot = f"at {results['commit']}; medians of n = {rounds}; {describe_machine(results['machine'])}"
    return "\n".join([*lines, f"`python -m benchmarks.scaling` {foot}."])


def broken_promises(results: dict[str, Any]) -> list[str]:
    """Return what of the promises does not hold, in words: an operation must not cost more where there are more."""
    broken = []
    for sweep in SWEEPS:
        for path in PATHS:
            least = float("inf")
            for point, speed in sorted(rates(results, sweep, path), key=lambda one: one[0].work):
                taken = picoseconds(point, speed)
                if taken > (1 + MOST_EXCESS) * least:
                    broken.append(f"{point.key}: {taken:.2f} ps an operation, and {least:.2f} at less work")
                least = min(least, taken)
    return broken + broken_datasets(results["datasets"])


def panels(results: dict[str, Any]) -> list[Panel]:
    """Return what is drawn: a panel for each sweep, and one for the datasets."""
    drawn = []
    for sweep, values in SWEEPS.items():
        lines = []
        for path in PATHS:
            found = rates(results, sweep, path)
            lines.append(Line(path, [point.value for point, _ in found], [speed for _, speed in found]))
        first = rates(results, sweep, PATHS[0])
        if sweep in MICRO_BATCHES and first:  # an image is more work there
            start, speed = first[0]
            expected = [speed * start.flops / point.flops for point, _ in first]
            lines.append(Line(EXPECTED, [point.value for point, _ in first], expected, is_expected=True))
        drawn.append(Panel(TITLES[sweep], lines, list(values)))
    return [*drawn, dataset_panel(results["datasets"])]


def missing(results: dict[str, Any], rounds: int, parts: list[str]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield part and key of what is not measured often enough, round after round, with what measures it."""
    for number in range(rounds):
        for point in POINTS if "points" in parts else ():
            if len(results["points"].get(point.key, ())) <= number:
                yield "points", point.key, functools.partial(measure_point, point, PLACE)
        for dataset in DATASETS if "datasets" in parts else ():
            if len(results["datasets"].get(dataset.key, ())) <= number:
                yield "datasets", dataset.key, functools.partial(measure_dataset, dataset, PLACE)


def main() -> None:
    """Measure what is missing until the time is over; when all is there, write the page and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that each point is measured")
    parser.add_argument("--minutes", type=float, default=25.0, help="of one piece")
    parser.add_argument("--parts", nargs="*", default=["points", "datasets"], choices=["points", "datasets"])
    parser.add_argument("--data-file", type=Path, default=DATA_FILE)
    parser.add_argument("--redraw", action="store_true", help="measure nothing, write page and picture anew")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    results = read_json(options.data_file) if options.data_file.exists() else {"points": {}, "datasets": {}}
    for part, key, measure in () if options.redraw else missing(results, options.rounds, options.parts):
        if time.monotonic() > until:
            print("time is over; the same command goes on")
            return
        results[part].setdefault(key, []).append(measure())
        write_json(options.data_file, {**results, "machine": machine(), "commit": commit()})
        print(part, key, results[part][key][-1])
    if not options.redraw:
        shutil.rmtree(PLACE, ignore_errors=True)
    results = read_json(options.data_file)
    print(page(results))
    if options.data_file == DATA_FILE:
        put_between_marks("scaling", page(results))
        draw(panels(results), PICTURE)
    for fault in broken_promises(results):
        print(f"NOT GOOD: {fault}")


if __name__ == "__main__":
    main()
