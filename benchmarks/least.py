"""The least cap that each preset trains under: `python -m benchmarks.least`, a table in docs/results.md.

Each preset is first given 200 MB, which packing fits into and no training, and told which cap would do. From there
caps are tried in steps of 10 MB: real runs of two optimizer steps, with validation, saves and test, each watched
from outside (benchmarks/watched.py) and begun with an empty cache, so that the planner measures under that cap. The
least cap is one under which such a run went through, and then a second one, which finds what was measured before,
while 10 MB less were refused.

The presets for 32x32 images are trained on the embedded shapes with their own batch. Those for 224x224 train on 176
drawn pictures of that size (of 10,000 shapes the evaluations would take an hour, and a pack is not held in memory),
in steps of 16 images: at a micro-batch of 1 no image adds to what the one before it took. sequencer2d_s under
980 MB held 816.2 MB after the first 14 s of a step of 128, 816.4 MB at its end, and 820.3 MB in the second step.

`--minutes` ends a piece after the run that is under way, and the next call goes on from runs/least/state.json. A
run that broke the promise stays under runs/least; the exit code is 1 then. Delete runs/least to begin anew, on
another machine or after a change of the code. A run that ends otherwise than at its end, refused, or out of memory
after all restarts says nothing about its cap: the search ends there, with what it said.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.caps import PICTURES, make_pictures, setting_words
from benchmarks.groups import available
from benchmarks.kills import PROGRAM
from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.watched import TOO_SMALL, named_cap, problems, train_watched
from lowmem_seq.config import RunConfig, load_preset, preset_names, validate
from lowmem_seq.errors import RestartsExhaustedError
from lowmem_seq.files import make_folder, read_json, write_json
from lowmem_seq.memory.space import SMALL_IMAGE
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes, parse_bytes

DATA_FILE = ROOT / "docs" / "least.json"
PLACE = ROOT / "runs" / "least"
STATE_FILE = PLACE / "state.json"
STEP = 10
"""Megabytes between two caps."""
DISTANCES = (10, 30, 60)
"""Megabytes from the cap that was named, where the least one is looked for; beyond them it is not."""
FAR_TOO_SMALL = "200MB"
OPTIMIZER_STEPS = 2
LARGE_IMAGES_A_STEP = 16
RUNS_AT_THE_LEAST = 2
TELLING_CODES = (0, TOO_SMALL, RestartsExhaustedError.exit_code)
PROMISED = {"small": 600, "sequencer2d_l": 1800}
"""Megabytes under which a preset must train."""


def next_cap(named: int, tried: Mapping[int, Sequence[bool]]) -> int | None:
    """Return the cap to try next, in megabytes, or None where the search is at its end.

    Args:
        named: the cap that the planner named.
        tried: by cap, whether each run under it went through; one that did not is enough against a cap.
    """
    if not tried:
        return named
    least = least_working(tried)
    if least is None:
        return next((cap for cap in (named + far for far in DISTANCES) if cap > max(tried)), None)
    failed = [cap for cap in tried if cap < least]
    if not failed:
        lower = next((cap for cap in (named - far for far in DISTANCES) if cap < least), None)
        return lower if lower is None or lower > 0 else None
    half = (least - max(failed)) // STEP // 2 * STEP
    if half:
        return least - half
    return least if len(tried[least]) < RUNS_AT_THE_LEAST else None


def least_working(tried: Mapping[int, Sequence[bool]]) -> int | None:
    """Return the least cap under which all runs went through."""
    return min((cap for cap, runs in tried.items() if all(runs)), default=None)


def config_of(preset: str) -> RunConfig:
    """Return the settings of a preset."""
    return validate(load_preset(preset))


def arguments(preset: str) -> list[str]:
    """Return the arguments of `lowmem-seq train` or `plan`, but for the cap."""
    data = "shapes" if config_of(preset).data.image_size <= SMALL_IMAGE else str(PICTURES)
    batch = ["--effective-batch", str(images_a_step(preset))]
    return [preset, "--data", data, *batch, "--steps", str(OPTIMIZER_STEPS)]


def images_a_step(preset: str) -> int:
    """Return the batch that a preset is trained with here."""
    config = config_of(preset)
    return config.recipe.effective_batch if config.data.image_size <= SMALL_IMAGE else LARGE_IMAGES_A_STEP


def ask_for_a_cap(preset: str) -> int:
    """Return the cap that a refusal names, in megabytes.

    Raises:
        RuntimeError: it names none.
    """
    make_folder(PLACE / preset)
    ended = subprocess.run(
        [*PROGRAM, "plan", *arguments(preset), "--max-ram", FAR_TOO_SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUTF8": "1", "LOWMEM_SEQ_CACHE": str(PLACE / preset / "cache")},
        encoding="utf-8",
        check=False,
    )
    named = named_cap(ended.stdout)
    if ended.returncode != TOO_SMALL or named is None:
        raise RuntimeError(f"{preset} under {FAR_TOO_SMALL}: code {ended.returncode}, {ended.stdout.strip()}")
    return parse_bytes(named) // 10**6


def try_cap(preset: str, cap: int, turn: int, no_groups: str | None) -> dict[str, Any]:
    """Do one run under a cap; return what was seen. The first one under it finds an empty cache.

    Raises:
        RuntimeError: the program ended in a way that says nothing about the cap.
    """
    folder, cache = PLACE / preset / f"{cap}MB-{turn}", PLACE / preset / "cache"
    shutil.rmtree(folder, ignore_errors=True)  # of a piece that was broken off
    make_folder(folder)
    if turn == 0:
        shutil.rmtree(cache, ignore_errors=True)
    seen = train_watched(["train", *arguments(preset), "--quiet"], f"{cap}MB", folder, cache, no_groups)
    if seen["exit_code"] not in TELLING_CODES:
        raise RuntimeError(f"{folder}: ended with code {seen['exit_code']}: {seen['last_words']}")
    plan = RunFolder(folder / "run").read_json(RunFolder(folder / "run").plan_file) or {}
    one = {
        **{"cap_megabytes": cap, "fresh": turn == 0, "commit": commit()},
        **{"planned_images_per_second": plan.get("predicted_images_per_second"), **seen},
    }
    if not problems(one):
        shutil.rmtree(folder)
    return one


def went_through(one: dict[str, Any]) -> bool:
    """Whether a run came to its end and kept its cap."""
    return one["exit_code"] == 0 and not problems(one)


def tried(tries: Sequence[dict[str, Any]]) -> dict[int, list[bool]]:
    """Return by cap whether its runs went through."""
    found: dict[int, list[bool]] = {}
    for one in tries:
        found.setdefault(one["cap_megabytes"], []).append(went_through(one))
    return found


def begin() -> dict[str, Any]:
    """Return the outcome so far, or that of no run at all.

    Raises:
        SystemExit: the runs so far were made elsewhere, or with other versions.
    """
    make_folder(PLACE)
    here = {"machine": machine(), "no_groups": available()}
    if not STATE_FILE.exists():
        return {**here, "presets": {}}
    state: dict[str, Any] = read_json(STATE_FILE)
    differing = [key for key, value in here.items() if state[key] != value]
    if differing:
        raise SystemExit(f"{STATE_FILE} is of another {' and '.join(differing)}; delete {PLACE} to begin anew")
    return state


def is_done(one: dict[str, Any]) -> bool:
    """Whether the search for one preset has ended."""
    return next_cap(one["named_megabytes"], tried(one["tries"])) is None


def search(presets: Sequence[str], minutes: float) -> tuple[dict[str, Any], list[str]]:
    """Try caps until the time is over; return the outcome so far, and the presets that are not done."""
    ends, left = time.monotonic() + 60 * minutes, list(presets)
    state = begin()
    make_folder(PICTURES.parent)
    make_pictures()
    while left and time.monotonic() < ends:
        one = state["presets"].get(left[0])
        if one is None:
            state["presets"][left[0]] = {"named_megabytes": ask_for_a_cap(left[0]), "tries": []}
        elif (cap := next_cap(one["named_megabytes"], tried(one["tries"]))) is None:
            left.pop(0)
            continue
        else:
            turn = len(tried(one["tries"]).get(cap, []))
            one["tries"].append(try_cap(left[0], cap, turn, state["no_groups"]))
            print(told_try(left[0], one["tries"][-1]), *problems(one["tries"][-1]), sep="\n  ", flush=True)
        write_json(STATE_FILE, state)
    return state, [preset for preset in left if preset not in done(state)["presets"]]


def told_try(preset: str, one: dict[str, Any]) -> str:
    """Return one run in a line for people."""
    named = f"refused, {one['smallest_cap']} would do" if one["exit_code"] == TOO_SMALL else "FAILED"
    return (
        f"{preset} under {one['cap_megabytes']} MB{'' if one['fresh'] else ' (remembered)'}: "
        f"{'went through' if went_through(one) else named} in {one['seconds']:.0f} s; "
        f"{format_bytes(one['highest_bytes'])} at the most, {one['above']} of {one['count']:,} samples above; "
        f"{setting_words(one)}, {one['planned_images_per_second'] or 0:,.1f} images/s"
    )


def broken_promises(state: dict[str, Any]) -> list[str]:
    """Return in words what went wrong in all runs so far, and which preset needs more than was promised."""
    found = []
    for preset, one in state["presets"].items():
        for run in one["tries"]:
            where = f"{preset} under {run['cap_megabytes']} MB"
            found += [f"{where}: {words}" for words in problems(run)]
        outcomes = tried(one["tries"])
        least = least_working(outcomes)
        if is_done(one) and least is None:
            named = one["named_megabytes"]
            found.append(f"{preset}: nothing goes through up to {max(outcomes)} MB, and {named} MB was named")
        if is_done(one) and least is not None and least > PROMISED.get(preset, least):
            found.append(f"{preset}: it takes {least} MB, and {PROMISED[preset]} MB are promised")
    return found


def done(state: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome without the presets whose search has not ended."""
    return {**state, "presets": {preset: one for preset, one in state["presets"].items() if is_done(one)}}


def table(state: dict[str, Any]) -> str:
    """Return the outcome as Markdown."""
    lines = [
        "| preset | images | batch | least `--max-ram` | named by a refusal | 10 MB less | highest sum seen, "
        "of cap | setting | images/s |",
        "|---|---:|---:|---:|---:|---|---:|---|---:|",
    ]
    presets = {preset: state["presets"][preset] for preset in preset_names() if preset in state["presets"]}
    lines += [f"| {' | '.join(_row(preset, one))} |" for preset, one in presets.items()]
    runs = [run for one in presets.values() for run in one["tries"]]
    commits = ", ".join(dict.fromkeys(str(run["commit"]) for run in runs))
    groups = "" if state["no_groups"] is None else f" No control groups: {state['no_groups']}."
    return "\n".join(
        [
            *lines,
            "",
            f"n = {len(runs)} runs, {sum(run['count'] for run in runs):,} samples, "
            f"**{sum(run['above'] for run in runs)}** above the cap; {RUNS_AT_THE_LEAST} runs went through at each "
            f"least cap. Settings are micro-batch x workers, recomputed layers (r), allocator; images/s as the "
            f"planner measured them there.{groups}",
            "",
            f"`python -m benchmarks.least`, at {commits}; {describe_machine(state['machine'])}.",
        ]
    )


def _row(preset: str, one: dict[str, Any]) -> list[str]:
    outcomes, side = tried(one["tries"]), config_of(preset).data.image_size
    least = least_working(outcomes)
    begun, named = [preset, f"{side}x{side}", str(images_a_step(preset))], f"{one['named_megabytes']} MB"
    if least is None:
        return [*begun, f"more than {max(outcomes)} MB", named, *"-" * 4]
    there = [run for run in one["tries"] if run["cap_megabytes"] == least]
    below = [run for run in one["tries"] if run["cap_megabytes"] == least - STEP and not went_through(run)]
    share = max(run["highest_bytes"] for run in there) / (least * 10**6)
    rates = [run["planned_images_per_second"] for run in there]
    return [
        *begun,
        f"**{least} MB**" if below else f"at most {least} MB",
        named,
        ("refused" if below[0]["exit_code"] == TOO_SMALL else "fails") if below else "not tried",
        f"{share:.1%}",
        ", ".join(dict.fromkeys(setting_words(run) for run in there)),
        f"{max(rates):,.4g}",
    ]


def main() -> None:
    """Do a piece of the search, and write what came of all pieces so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=preset_names(), choices=preset_names())
    parser.add_argument("--minutes", type=float, default=25.0, help="after which this piece ends")
    parser.add_argument("--print-only", action="store_true", help="leave docs as they are")
    options = parser.parse_args()
    state, left = search(options.presets, options.minutes)
    text = table(done(state))
    print(text)
    if not options.print_only and done(state)["presets"]:
        write_json(DATA_FILE, done(state))
        put_between_marks("least", text)
    if left:
        print(f"left are {', '.join(left)}: the same command goes on from here")
    if broken := broken_promises(state):
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
