"""How good the planner is: `python -m benchmarks.plans`, in pieces that can be repeated until all is done.

Accuracy: presets x micro-batches x recomputation off and on, each measured in a process of its own. Each size is
then predicted from the others of its row, as the planner predicts what it has not measured yet.

Use: under each cap, everything that the planner may choose from is measured, and the fastest that fits is compared
with what the planner chose in its 20 or 60 seconds.

What is measured stands in docs/plans.json, and is not measured again; delete an entry to have it measured anew.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.page import ROOT, describe_machine, machine, put_between_marks
from lowmem_seq.config import RunConfig, load_preset, override, validate
from lowmem_seq.data.cache import cache_folder
from lowmem_seq.files import TEMPORARY_MARK, read_json, write_json
from lowmem_seq.memory.environment import training_environment, usable_allocators
from lowmem_seq.memory.footprint import Facts, held_without_images
from lowmem_seq.memory.plan import Measurement, Setting
from lowmem_seq.memory.prediction import predict_bytes, with_margin
from lowmem_seq.memory.remembered import Knowledge, Request
from lowmem_seq.memory.search import SHARE_OF_BUDGET
from lowmem_seq.memory.space import Space, even_sizes, make_space, usable_cores
from lowmem_seq.runs.folder import create_run
from lowmem_seq.supervisor.child import Child

DATA_FILE = ROOT / "docs" / "plans.json"
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
CAPS = {
    "small": ("600MB", "800MB", "1GB", "2GB"),
    "sequencer2d_s": ("1GB", "2GB", "4GB", "6GB"),
    "sequencer2d_l": ("2GB", "4GB", "6GB"),
}
MOST_BYTES = 8 * 10**9
"""What a probing process may hold here; a size that needs more is left out."""
BEST_SHARE = 0.95
"""What a plan's speed must be of the best that an exhaustive search finds."""
MEDIAN_ERROR, TAIL_ERROR = 0.05, 0.10
"""What the median and the 95th percentile of the predictions' errors may be."""


@dataclass(frozen=True)
class Case:
    """One measurement in a process of its own."""

    preset: str
    setting: Setting
    allocator: str

    @property
    def key(self) -> str:
        """Its name in docs/plans.json."""
        one = self.setting
        return f"{self.preset} {one.micro_batch}x{one.workers} recompute {one.recomputed_layers} {self.allocator}"


def make_config(preset: str) -> RunConfig:
    """Return a preset on the embedded shapes, with a bound that nothing here meets."""
    settings = load_preset(preset)
    override(settings, "data.source=shapes")
    return validate(settings)


def measure(case: Case, config: RunConfig) -> dict[str, Any] | None:
    """Return what a process of its own measures, with the run's facts; None where it takes more than it may."""
    from lowmem_seq.data.prepare import prepare

    cores = usable_cores(None)
    with tempfile.TemporaryDirectory(prefix=f"plans{TEMPORARY_MARK}", dir=cache_folder()) as place:
        run = create_run(Path(place) / "run", config)
        pack = prepare("shapes", config.data.image_size)
        record = {"format_version": 1, "source": "shapes", "pack": str(pack.folder)}
        write_json(run.data_file, {**record, "fingerprint": pack.fingerprint})
        request = Request(MOST_BYTES, (case.allocator,), case.allocator, 600.0, case.setting)
        child = Child(
            "lowmem_seq.training.probe",
            str(run.path),
            *(json.dumps(asdict(request)), json.dumps(Knowledge().to_json())),
            environment=training_environment(cores, case.allocator),
        )
        said = [message for message in child.messages(1.0) if message is not None]
        if child.wait() != 0:
            return None
    told = {one["event"]: {key: value for key, value in one.items() if key != "event"} for one in said}
    names = [one.name for one in fields(Measurement)]
    return {
        "preset": case.preset,
        "facts": told["facts"],
        "measured": {name: told["measured"][name] for name in names},
    }


def accuracy_cases(presets: list[str]) -> Iterator[Case]:
    """Yield what the accuracy of predictions is judged by."""
    for preset in presets:
        layers = layer_count(make_config(preset))
        for size in SIZES[preset]:
            for recomputed in (0, layers):
                yield Case(preset, Setting(size, 1, recomputed), usable_allocators()[0])


def use_cases(preset: str) -> Iterator[Case]:
    """Yield what a plan may choose: even sizes, all numbers of workers, some layers recomputed, each allocator."""
    config = make_config(preset)
    layers = layer_count(config)
    space = Space(no_facts(config, layers), config.recipe.effective_batch, usable_cores(None), None, (), ())
    for workers in space.workers:
        for size in even_sizes(config.recipe.effective_batch, workers):
            if size < min(SIZES[preset]) or size > 2 * max(SIZES[preset]):
                continue
            for recomputed in sorted({0, layers // 4, layers // 2, layers}):
                for allocator in usable_allocators():
                    yield Case(preset, Setting(size, workers, recomputed), allocator)


def layer_count(config: RunConfig) -> int:
    """Return how many layers of a model can be recomputed."""
    return len(make_space(config, no_facts(config, 0), ()).shares)


def no_facts(config: RunConfig, layers: int) -> Facts:
    """Return facts of a run that nobody measured."""
    return Facts("cpu", "fp32", layers, 0, 0, 0, config.data.image_size, 0, 0, 0)


def plan_under(preset: str, cap: str) -> dict[str, Any]:
    """Return the plan that the command makes, measured afresh, and the seconds that it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "lowmem_seq", "plan", preset, "--data", "shapes", "--max-ram", cap]
    done = subprocess.run([*command, "--fresh", "--json"], capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        return {"refused": done.stderr.strip(), "seconds": time.monotonic() - began}
    told = json.loads(done.stdout)
    kept = (
        *("micro_batch", "workers", "recomputed_layers", "allocator", "cap_bytes", "others_bytes"),
        *("predicted_peak_bytes", "images_per_second"),
    )
    return {**{key: told[key] for key in kept}, "seconds": time.monotonic() - began}


def predictions(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each measurement of a row of at least four, what the others of its row predict of it."""
    rows: dict[tuple[str, int, int, str], list[dict[str, Any]]] = {}
    for one in results.values():
        if one is not None:
            point = one["measured"]
            key = (one["preset"], point["workers"], point["recomputed_layers"], point["allocator"])
            rows.setdefault(key, []).append(one)
    told = []
    for (preset, workers, recomputed, _), row in sorted(rows.items()):
        for one in row if len(row) >= 4 else ():
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


def uses(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each cap, the plan beside the best of all that was measured and fits."""
    told = []
    for key, plan in results["plans"].items():
        preset, _, cap = key.partition(" under ")
        if "refused" in plan:
            continue
        budget = plan["cap_bytes"] - plan["others_bytes"]
        points = [one["measured"] for one in results["use"].values() if one is not None and one["preset"] == preset]
        fitting = [point for point in points if point["peak_bytes"] <= SHARE_OF_BUDGET * budget]
        if not fitting:
            continue
        best = max(fitting, key=lambda point: float(point["images_per_second"]))
        chosen = Case(
            preset, Setting(plan["micro_batch"], plan["workers"], plan["recomputed_layers"]), plan["allocator"]
        )
        same = results["use"].get(chosen.key)  # by the same stick, where the choice is one of those
        rate = plan["images_per_second"] if same is None else same["measured"]["images_per_second"]
        told.append(
            {
                "preset": preset,
                "cap": cap,
                "plan": plan,
                "share_of_cap": plan["predicted_peak_bytes"] / plan["cap_bytes"],
                "best": best,
                "share_of_best": rate / best["images_per_second"],
                "measured": len(points),
            }
        )
    return told


def page(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = [
        "| preset | recomputation | sizes | median error | 95th percentile | beyond the margin |",
        "|---|---|---|---:|---:|---:|",
    ]
    told = predictions(results["accuracy"])
    groups = sorted({(one["preset"], one["recomputed"]) for one in told})
    for preset, recomputed in groups:
        row = [one for one in told if (one["preset"], one["recomputed"]) == (preset, recomputed)]
        sizes = ", ".join(str(one["micro_batch"]) for one in sorted(row, key=lambda one: int(one["micro_batch"])))
        lines.append(f"| {preset} | {'all layers' if recomputed else 'none'} | {sizes} | {summary(row)} |")
    if told:
        lines.append(f"| **all** | | n = {len(told)} | {summary(told)} |")
    lines += [
        "",
        "| preset | cap | plan | peak, of the cap | images/s | of the best found | the best | planned in |",
        "|---|---|---|---:|---:|---:|---|---:|",
    ]
    for one in uses(results):
        cells = (
            one["preset"],
            one["cap"],
            told_setting(one["plan"]),
            f"{one['share_of_cap']:.0%}",
            f"{one['plan']['images_per_second']:,.1f}",
            f"{one['share_of_best']:.0%}",
            f"{told_setting(one['best'])} (of {one['measured']})",
            f"{one['plan']['seconds']:.0f} s",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`python -m benchmarks.plans`; {describe_machine(results['machine'])}."])


def summary(row: list[dict[str, Any]]) -> str:
    """Return median, 95th percentile and the count of those beyond the margin, as cells."""
    errors = sorted(float(one["error"]) for one in row)
    tail = errors[min(len(errors) - 1, round(0.95 * (len(errors) - 1)))]
    return f"{statistics.median(errors):.1%} | {tail:.1%} | {sum(one['passes_the_margin'] for one in row)}"


def told_setting(one: dict[str, Any]) -> str:
    """Return a setting in a cell."""
    recomputed = f", {one['recomputed_layers']} recomputed" if one["recomputed_layers"] else ""
    return f"{one['micro_batch']} x {one['workers']}{recomputed}, {one['allocator']}"


def is_good(results: dict[str, Any]) -> list[str]:
    """Return what of the promises does not hold, in words."""
    wrong = []
    told = predictions(results["accuracy"])
    errors = sorted(float(one["error"]) for one in told)
    if errors and statistics.median(errors) > MEDIAN_ERROR:
        wrong.append(f"the median error is {statistics.median(errors):.1%}")
    if errors and errors[round(0.95 * (len(errors) - 1))] > TAIL_ERROR:
        wrong.append(f"the 95th percentile of the errors is {errors[round(0.95 * (len(errors) - 1))]:.1%}")
    wrong += [f"beyond the margin: {one}" for one in told if one["passes_the_margin"]]
    wrong += [
        f"{one['preset']} under {one['cap']}: {one['share_of_best']:.0%} of the best"
        for one in uses(results)
        if one["share_of_best"] < BEST_SHARE
    ]
    return wrong


def main() -> None:
    """Measure what is missing until the time is over, and write the page where it has the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--minutes", type=float, default=25.0, help="of one piece")
    parser.add_argument(
        "--parts", nargs="*", default=["accuracy", "plans", "use"], choices=["accuracy", "plans", "use"]
    )
    parser.add_argument("--data-file", type=Path, default=DATA_FILE)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    results = read_json(options.data_file) if options.data_file.exists() else {}
    results = {"accuracy": {}, "plans": {}, "use": {}, **results, "machine": machine()}
    for part in options.parts:
        for key, measure_it in missing(part, options.presets, results):
            if time.monotonic() > until:
                print("time is over; the same command goes on")
                return
            results[part][key] = measure_it()
            write_json(options.data_file, results)
            print(part, key, results[part][key])
    if options.data_file == DATA_FILE:
        put_between_marks("plans", page(results))
    print(page(results))
    for fault in is_good(results):
        print(f"NOT GOOD: {fault}")


def missing(part: str, presets: list[str], results: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the keys of a part that are not measured yet, with what measures each."""
    if part == "plans":
        for name, cap in ((preset, cap) for preset in presets for cap in CAPS.get(preset, ())):
            if f"{name} under {cap}" not in results["plans"]:
                yield f"{name} under {cap}", functools.partial(plan_under, name, cap)
        return
    swept = (case for preset in presets if preset in CAPS for case in use_cases(preset))
    for case in accuracy_cases(presets) if part == "accuracy" else swept:
        if case.key not in results[part]:
            yield case.key, functools.partial(measure, case, make_config(case.preset))


if __name__ == "__main__":
    main()
