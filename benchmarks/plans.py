"""How good the planner is: `python -m benchmarks.plans`, in pieces that can be repeated until all is done.

Accuracy: how well memory is predicted (benchmarks/predictions.py).

Use: under each cap, everything that the planner may choose from is measured once. The fastest of hundreds is a
lucky one, so the fastest few that fit, and what the planner chose in its 20 or 60 seconds, are measured again in
turn, and their medians are compared.

What is measured stands in docs/plans.json, and is not measured again; delete an entry to have it measured anew.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.predictions import (
    SIZES,
    Case,
    broken_predictions,
    layer_count,
    measure,
    no_facts,
    prediction_cases,
    prediction_table,
    predictions,
)
from benchmarks.probing import make_config
from lowmem_seq.files import read_json, write_json
from lowmem_seq.memory.environment import usable_allocators
from lowmem_seq.memory.plan import Means, Setting, threads_each
from lowmem_seq.memory.seen import SHARE_OF_BUDGET
from lowmem_seq.memory.space import even_sizes, make_space

DATA_FILE = ROOT / "docs" / "plans.json"
PARTS = ("accuracy", "plans", "use", "again")
CAPS = {
    "small": ("600MB", "800MB", "1GB", "2GB"),
    "sequencer2d_s": ("1GB", "2GB", "4GB", "6GB"),
    "sequencer2d_l": ("2GB", "4GB", "6GB"),
}
"""Under which a plan is compared with all that could have been chosen."""
CONTENDERS, TURNS = 4, 5
"""How many of the fastest are measured again beside the plan, and how often each."""
FEWEST_TURNS = 3
"""So often each must have been measured again to be told of: large images take hours."""
STEP = 0.25
"""By how much sizes that are measured lie apart at the least."""
BEST_SHARE = 0.95
"""What a plan's speed must be of the best that an exhaustive search finds."""


def use_cases(preset: str) -> Iterator[Case]:
    """Yield what a plan may choose: sizes, all numbers of workers, some layers recomputed, each means.

    That is in steps: sizes that divide a step, and between them others a quarter away; all layers recomputed, half
    of them, for small images a quarter, or none; and nn.LSTM only with the fast allocator, for the other one only
    saves memory.
    """
    config = make_config(preset)
    layers = layer_count(config)
    facts = no_facts(config, layers)
    space = make_space(config, facts, usable_allocators())
    quarter = {layers // 4} if space.is_small else set()
    fast, *others = space.allocators
    for workers in space.workers:
        own, *between_and_last = space.lstm_paths
        if threads_each(workers, space.cores) == 1:  # then compiled cells are the best of ours
            between_and_last = between_and_last[-1:]
        paths = [own, *between_and_last]
        all_means = [Means(fast, path) for path in paths]
        all_means += [Means(allocator, paths[0]) for allocator in others]
        batch = config.recipe.effective_batch
        for size in thinned(even_sizes(batch, workers), batch / workers):
            if size < min(SIZES[preset]) or size > 2 * max(SIZES[preset]):
                continue
            for recomputed in sorted({0, layers // 2, layers} | quarter):
                for means in all_means:
                    yield Case(preset, Setting(size, workers, recomputed), means)


def thinned(sizes: list[int], share: float) -> list[int]:
    """Return those of some sizes that divide a worker's share of a step, and others far enough from all."""
    kept = [size for size in sizes if share % size == 0]
    for size in sizes:
        if all(max(size, other) >= (1 + STEP) * min(size, other) for other in kept):
            kept.append(size)
    return sorted(kept)


def plan_under(preset: str, cap: str) -> dict[str, Any]:
    """Return the plan that the command makes, measured afresh, and the seconds that it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "lowmem_seq", "plan", preset, "--data", "shapes", "--max-ram", cap]
    done = subprocess.run([*command, "--fresh", "--json"], capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        return {"refused": done.stderr.strip(), "seconds": time.monotonic() - began}
    told = json.loads(done.stdout)
    kept = (
        *("micro_batch", "workers", "recomputed_layers", "allocator", "lstm_path", "cap_bytes", "others_bytes"),
        *("predicted_peak_bytes", "images_per_second"),
    )
    return {**{key: told[key] for key in kept}, "seconds": time.monotonic() - began}


def case_of(preset: str, one: dict[str, Any]) -> Case:
    """Return the case of a plan or of a measurement."""
    setting = Setting(one["micro_batch"], one["workers"], one["recomputed_layers"])
    return Case(preset, setting, Means(one["allocator"], one["lstm_path"]))


def contenders(results: dict[str, Any], key: str) -> list[Case]:
    """Return what is measured again for a plan: its own setting, and the fastest others that fit under its cap."""
    plan, preset = results["plans"][key], key.partition(" under ")[0]
    if "refused" in plan:
        return []
    most = SHARE_OF_BUDGET * (plan["cap_bytes"] - plan["others_bytes"])
    points = [one["measured"] for one in results["use"].values() if one is not None and one["preset"] == preset]
    fast = sorted(points, key=lambda point: float(point["images_per_second"]), reverse=True)
    cases = [case_of(preset, point) for point in fast if point["peak_bytes"] <= most]
    chosen = case_of(preset, plan)
    return [chosen, *[case for case in cases if case != chosen][:CONTENDERS]] if cases else []


def uses(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each cap whose contenders were all measured again, the plan beside the fastest of them."""
    told = []
    for key, plan in results["plans"].items():
        preset, _, cap = key.partition(" under ")
        cases = contenders(results, key)
        rates: dict[Case, float] = {}
        turns = TURNS
        for case in cases:
            again = results["again"].get(f"{key}: {case.key}", [])
            turns = min(turns, len(again))
            if len(again) >= FEWEST_TURNS:
                rates[case] = statistics.median(one["measured"]["images_per_second"] for one in again)
        if not cases or len(rates) < len(cases):
            continue
        best = max(rates, key=lambda case: rates[case])
        told.append(
            {
                "preset": preset,
                "cap": cap,
                "plan": plan,
                "share_of_cap": plan["predicted_peak_bytes"] / plan["cap_bytes"],
                "images_per_second": rates[cases[0]],
                "best": {**asdict(best.setting), **asdict(best.means)},
                "share_of_best": rates[cases[0]] / rates[best],
                "turns": turns,
                "measured": sum(one is not None and one["preset"] == preset for one in results["use"].values()),
            }
        )
    return told


def page(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    accuracy = [*prediction_table(predictions(results["accuracy"])), ""] if results["accuracy"] else []
    lines = [
        *accuracy,
        "| preset | cap | plan | peak, of the cap | images/s | of the best found | the best | n | planned in |",
        "|---|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for one in uses(results):
        cells = (
            one["preset"],
            one["cap"],
            told_setting(one["plan"]),
            f"{one['share_of_cap']:.0%}",
            f"{one['images_per_second']:,.1f}",
            f"{one['share_of_best']:.0%}",
            f"{told_setting(one['best'])} (of {one['measured']})",
            str(one["turns"]),
            f"{one['plan']['seconds']:.0f} s",
        )
        lines.append(f"| {' | '.join(cells)} |")
    told = "n: processes for each of the plan's images/s and of its contenders'"
    told = f"`python -m benchmarks.plans` at {results['commit']}; {told}; {describe_machine(results['machine'])}."
    return "\n".join([*lines, "", told])


def told_setting(one: dict[str, Any]) -> str:
    """Return a setting in a cell."""
    recomputed = f", {one['recomputed_layers']} recomputed" if one["recomputed_layers"] else ""
    return f"{one['micro_batch']} x {one['workers']}{recomputed}, {one['allocator']}, {one['lstm_path']}"


def broken_promises(results: dict[str, Any]) -> list[str]:
    """Return what of the promises does not hold, in words."""
    return broken_predictions(predictions(results["accuracy"])) + [
        f"{one['preset']} under {one['cap']}: {one['share_of_best']:.0%} of the best"
        for one in uses(results)
        if one["share_of_best"] < BEST_SHARE
    ]


def main() -> None:
    """Measure what is missing until the time is over, and write the page where it has the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--minutes", type=float, default=25.0, help="of one piece")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--data-file", type=Path, default=DATA_FILE)
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    results = read_json(options.data_file) if options.data_file.exists() else {}
    results = {**{part: {} for part in PARTS}, **results, "machine": machine(), "commit": commit()}
    for part in options.parts:
        for key, measure_it in missing(part, options.presets, results):
            if time.monotonic() > until:
                print("time is over; the same command goes on")
                return
            if part == "again":
                results[part].setdefault(key, []).append(measure_it())
            else:
                results[part][key] = measure_it()
            write_json(options.data_file, results)
            print(part, key, results[part][key])
    if options.data_file == DATA_FILE:
        put_between_marks("plans", page(results))
    print(page(results))
    for fault in broken_promises(results):
        print(f"NOT GOOD: {fault}")


def missing(part: str, presets: list[str], results: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the keys of a part that are not measured yet, with what measures each."""
    if part == "plans":
        for name, cap in ((preset, cap) for preset in presets for cap in CAPS.get(preset, ())):
            if f"{name} under {cap}" not in results["plans"]:
                yield f"{name} under {cap}", functools.partial(plan_under, name, cap)
        return
    if part == "again":
        for turn in range(TURNS):
            for name in (name for name in results["plans"] if name.partition(" under ")[0] in presets):
                for case in contenders(results, name):
                    if len(results["again"].get(f"{name}: {case.key}", [])) == turn:
                        measured = functools.partial(measure, case, make_config(case.preset))
                        yield f"{name}: {case.key}", measured
        return
    swept = (case for preset in presets if preset in CAPS for case in use_cases(preset))
    for case in prediction_cases(presets) if part == "accuracy" else swept:
        if case.key not in results[part]:
            yield case.key, functools.partial(measure, case, make_config(case.preset))


if __name__ == "__main__":
    main()
