"""How well the planner predicts memory: the first part of `python -m benchmarks.plans`.

Presets x micro-batches x recomputation off and on, each measured in a process of its own. Each size is then
predicted from the others of its row, as the planner predicts what it has not measured yet.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.probing import make_config, probe
from lowmem_seq.config import RunConfig
from lowmem_seq.memory.environment import usable_allocators
from lowmem_seq.memory.footprint import Facts, held_without_images
from lowmem_seq.memory.plan import Means, Setting
from lowmem_seq.memory.prediction import predict_bytes, with_margin
from lowmem_seq.memory.space import lstm_paths, make_space

SIZES = {
    "tiny": (1, 2, 4, 8, 16, 32),
    "small": (4, 8, 16, 32, 64, 128),
    "small-plus": (4, 8, 16, 32, 64, 128),
    "medium": (4, 8, 16, 32, 64, 128),
    "vanilla": (4, 8, 16, 32, 64, 128),
    "sequencer2d_s": (1, 2, 3, 4, 6, 8),
    "sequencer2d_m": (1, 2, 3, 4, 6, 8),
    "sequencer2d_l": (1, 2, 3, 4, 6, 8),
}
"""Micro-batches that are measured for each preset, with one worker."""
FEWEST_IN_A_ROW = 4
"""Of fewer, the others would be too few to predict one from."""
MEDIAN_ERROR, TAIL_ERROR = 0.05, 0.10
"""What the median and the 95th percentile of the predictions' errors may be."""


@dataclass(frozen=True)
class Case:
    """One measurement in a process of its own."""

    preset: str
    setting: Setting
    means: Means

    @property
    def key(self) -> str:
        """Its name in docs/plans.json."""
        one, means = self.setting, self.means
        told = f"{self.preset} {one.micro_batch}x{one.workers} recompute {one.recomputed_layers}"
        return f"{told} {means.allocator} {means.lstm_path}"


def measure(case: Case, config: RunConfig) -> dict[str, Any] | None:
    """Return what a process of its own measures, with the run's facts; None where it takes more than it may."""
    from lowmem_seq.data.prepare import prepare

    told = probe(config, prepare("shapes", config.data.image_size), case.setting, case.means)
    return None if told is None else {"preset": case.preset, **told}


def layer_count(config: RunConfig) -> int:
    """Return how many layers of a model can be recomputed."""
    return len(make_space(config, no_facts(config, 0), ()).shares)


def no_facts(config: RunConfig, layers: int) -> Facts:
    """Return facts of a run that nobody measured."""
    return Facts("cpu", "fp32", layers, 0, 0, 0, config.data.image_size, 0, 0, 0)


def prediction_cases(presets: list[str]) -> Iterator[Case]:
    """Yield what predictions are judged by."""
    for preset in presets:
        config = make_config(preset)
        layers = layer_count(config)
        means = Means(usable_allocators()[0], lstm_paths(config, "cpu")[0])
        for size in SIZES[preset]:
            for recomputed in (0, layers):
                yield Case(preset, Setting(size, 1, recomputed), means)


def predictions(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each measurement of a row that is long enough, what the others of its row predict of it."""
    rows: dict[tuple[str, int, int, str], list[dict[str, Any]]] = {}
    for one in results.values():
        if one is not None:
            point = one["measured"]
            key = (one["preset"], point["workers"], point["recomputed_layers"], point["allocator"])
            rows.setdefault(key, []).append(one)
    told = []
    for (preset, workers, recomputed, _), row in sorted(rows.items()):
        for one in row if len(row) >= FEWEST_IN_A_ROW else ():
            size, peak = one["measured"]["micro_batch"], one["measured"]["peak_bytes"]
            others = {other["measured"]["micro_batch"]: other["measured"]["peak_bytes"] for other in row}
            del others[size]
            floor = held_without_images(Facts(**one["facts"]), workers)
            expected = predict_bytes(others, size, floor)
            told.append(
                {
                    "preset": preset,
                    "recomputed": recomputed > 0,
                    "micro_batch": size,
                    "peak_bytes": peak,
                    "predicted_bytes": expected,
                    "error": abs(expected - peak) / peak,
                    "passes_the_margin": with_margin(expected) < peak,
                }
            )
    return told


def prediction_table(told: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of predictions."""
    lines = [
        "| preset | recomputation | sizes | median error | 95th percentile | beyond the margin |",
        "|---|---|---|---:|---:|---:|",
    ]
    groups = sorted({(one["preset"], one["recomputed"]) for one in told})
    for preset, recomputed in groups:
        row = [one for one in told if (one["preset"], one["recomputed"]) == (preset, recomputed)]
        sizes = ", ".join(str(one["micro_batch"]) for one in sorted(row, key=lambda one: int(one["micro_batch"])))
        lines.append(f"| {preset} | {'all layers' if recomputed else 'none'} | {sizes} | {_summary(row)} |")
    if told:
        lines.append(f"| **all** | | n = {len(told)} | {_summary(told)} |")
    return lines


def broken_predictions(told: list[dict[str, Any]]) -> list[str]:
    """Return what of the promises about predictions does not hold, in words."""
    if not told:
        return []
    wrong = []
    median, tail = _errors(told)
    if median > MEDIAN_ERROR:
        wrong.append(f"the median error is {median:.1%}")
    if tail > TAIL_ERROR:
        wrong.append(f"the 95th percentile of the errors is {tail:.1%}")
    return wrong + [f"beyond the margin: {one}" for one in told if one["passes_the_margin"]]


def _summary(row: list[dict[str, Any]]) -> str:
    """Return median, 95th percentile and the count of those beyond the margin, as cells."""
    median, tail = _errors(row)
    return f"{median:.1%} | {tail:.1%} | {sum(one['passes_the_margin'] for one in row)}"


def _errors(row: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the median and the 95th percentile of some predictions' errors."""
    errors = sorted(float(one["error"]) for one in row)
    return statistics.median(errors), errors[round(0.95 * (len(errors) - 1))]
