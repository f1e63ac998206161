"""One run under a cap, watched from outside: what was seen of it, and what of its promise it broke.

Kills are looked for in all that shows them: how the command ended, the run's events, and what the system counts:
for the run's control group where it has one, and otherwise for the whole machine, where somebody else's process may
be meant.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.groups import Group, small_machine
from benchmarks.kills import PROGRAM
from benchmarks.outside import Sampler
from lowmem_seq.errors import CapTooSmallError
from lowmem_seq.files import read_json
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes, parse_bytes

GROUP_ROOM_BYTES = 10**9
"""By so much the limit of a group passes the cap: it is not the group that makes the run behave."""
LONGEST_RUN_SECONDS = 900.0
SECONDS_TO_SAVE = 30.0
TOO_SMALL = CapTooSmallError.exit_code


def train_watched(
    arguments: Sequence[str], cap: str, folder: Path, cache: Path, no_groups: str | None, limited: bool = False
) -> dict[str, Any]:
    """Train under a cap; return what was seen.

    Args:
        arguments: of `lowmem-seq`, but for the cap and the run's folder.
        cap: as the command line takes it.
        folder: where the run goes, as `run`.
        cache: of packs and remembered plans; where it does not exist, nothing is remembered.
        no_groups: why there are no control groups here, if there are none; otherwise one counts for this run.
        limited: whether that group has a limit, above the cap.
    """
    cap_bytes, said, run = parse_bytes(cap), folder / "said.txt", RunFolder(folder / "run")
    fresh = not cache.exists()
    command = [*PROGRAM, *arguments, "--max-ram", cap, "--run-dir", str(run.path)]
    before, began = system_reader().machine(), time.monotonic()
    group: Group | None = None
    with ExitStack() as stack:
        log = stack.enter_context(said.open("wb"))
        options: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT}
        options["env"] = {**os.environ, "PYTHONUTF8": "1", "LOWMEM_SEQ_CACHE": str(cache)}
        if no_groups is None:
            group = stack.enter_context(small_machine(cap_bytes + GROUP_ROOM_BYTES if limited else None))
            process = group.start(command, **options)
        else:
            process = subprocess.Popen(command, **options)
        beside = None if group is None else group.anonymous_bytes
        with Sampler(process.pid, cap_bytes, beside) as sampler:
            code = wait_for(process)
        group_kills = None if group is None else group.oom_kills()
    after, seen = system_reader().machine(), sampler.seen()
    words = said.read_text(encoding="utf-8")
    return {
        **{"seconds": time.monotonic() - began, "cap_bytes": cap_bytes, "exit_code": code},
        **asdict(seen),
        "excesses": [{**asdict(one), "phase": phase(run, one.at_unix_seconds)} for one in seen.excesses],
        "group_oom_kills": group_kills,
        "machine_oom_kills": _grown(before.oom_kills, after.oom_kills),
        "swapped_out_bytes": _grown(before.swapped_out_bytes, after.swapped_out_bytes),
        "smallest_cap": named_cap(words) if code == TOO_SMALL else None,
        "last_words": "" if code == 0 else words[-1000:],
        **told(run),
        "probes_that_met_their_limit": unfit(cache) if fresh else None,
    }


def wait_for(process: subprocess.Popen[Any]) -> int | None:
    """Return the exit code of a run; None where it took so long that it had to be ended."""
    try:
        return process.wait(LONGEST_RUN_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(SECONDS_TO_SAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None
    except BaseException:
        process.kill()  # its trainer ends with it
        process.wait()
        raise


def _grown(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def named_cap(words: str) -> str | None:
    """Return the smallest cap that a refusal names."""
    found = re.search(r"smallest cap that would do is about --max-ram (\w+)", words)
    return found[1] if found else None


def unfit(cache: Path) -> int:
    """Return how many probes ended at their limit, by what was remembered of one run."""
    return sum(len(read_json(file)["unfit"]) for file in (cache / "plans").glob("*.json"))


def told(run: RunFolder) -> dict[str, Any]:
    """Return what a run's events tell of it."""
    events = list(run.events)

    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == kind]

    def last(kind: str, *keys: str) -> dict[str, Any]:
        found = of(kind)
        return {key: found[-1].get(key) for key in keys} if found else {}

    settings = ("micro_batch", "workers", "recomputed_layers")
    began, planned = of("session_opened"), of("planned")
    return {
        "setting": last("setting_changed", *settings) or last("session_started", *settings),
        "allocator": last("session_started", "allocator").get("allocator"),
        "predicted_peak_bytes": last("planned", "predicted_peak_bytes").get("predicted_peak_bytes"),
        "own_peak_bytes": max((event["peak_tree_bytes"] for event in of("memory")), default=None),
        "images_per_second": last("train", "images_per_second").get("images_per_second"),
        "planning_seconds": planned[0]["time_unix_seconds"] - began[0]["time_unix_seconds"] if planned else None,
        "out_of_memory": [event["cause"] for event in of("out_of_memory")],
        "trainer_restarted": [event["cause"] for event in of("trainer_restarted")],
        "setting_changed": [event["cause"] for event in of("setting_changed")],
    }


def phase(run: RunFolder, at_unix_seconds: float) -> str:
    """Return the last event before a moment, and how long before."""
    before = [event for event in run.events if event["time_unix_seconds"] <= at_unix_seconds]
    if not before:
        return "before the first event"
    event = before[-1]
    step = f" {event['step']}" if "step" in event else ""
    return f"{at_unix_seconds - event['time_unix_seconds']:.2f} s after {event['event']}{step}"


def kills(one: dict[str, Any]) -> int:
    """Return how many processes of a run were ended, from outside or for memory, as far as anything shows."""
    by_signal = one["exit_code"] is not None and one["exit_code"] < 0
    by_system = one["machine_oom_kills"] if one["group_oom_kills"] is None else one["group_oom_kills"]
    ended = max(len(one["out_of_memory"]), len(one["trainer_restarted"]))  # two events of one end
    return ended + by_signal + (by_system or 0)


def problems(one: dict[str, Any]) -> list[str]:
    """Return in words what a run broke of the promise."""
    found = []
    if one["above"]:
        excesses = [excess for excess in one["excesses"] if not excess["on_purpose"]]
        where = ", ".join(f"{excess['phase']}: {json.dumps(excess['held'])}" for excess in excesses[:3])
        found.append(
            f"{one['above']} samples above the cap, {format_bytes(one['highest_bytes'])} at the most ({where})"
        )
    if one["beside_above"]:
        most = format_bytes(one["highest_beside_bytes"])
        found.append(f"anonymous memory above the cap {one['beside_above']} times, {most} at the most")
    if kills(one):
        causes = one["trainer_restarted"] or one["out_of_memory"]
        found.append(f"{kills(one)} kills, restarts or failed allocations: {'; '.join(causes) or 'by the system'}")
    if one["swapped_out_bytes"]:
        found.append(f"{format_bytes(one['swapped_out_bytes'])} were swapped out")
    if one["exit_code"] not in (0, TOO_SMALL):
        found.append(f"ended with code {one['exit_code']}: {one['last_words'][-300:]}")
    if one["exit_code"] == TOO_SMALL and one["smallest_cap"] is None:
        found.append(f"refused without the cap that would do: {one['last_words'][-300:]}")
    return found
