"""The picture of docs/concepts/memory.md, one run's memory over time under its cap: `python -m benchmarks.picture`.

Small is trained on a small machine (benchmarks/groups.py). While it trains another program takes most of the memory
that is left, and lets go of it later. What was seen goes to docs/memory-picture.json, from which `--redraw` draws
again. Needs Linux, a control group that may be made, and matplotlib: pip install matplotlib.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.groups import Group, small_machine
from benchmarks.kills import PROGRAM
from benchmarks.page import ROOT, commit, drawing, machine
from lowmem_seq.files import read_json, write_json
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.folder import RunFolder

DATA_FILE = ROOT / "docs" / "memory-picture.json"
PICTURE = ROOT / "docs" / "concepts" / "memory.svg"
CAP_BYTES = 10**9
MACHINE_BYTES = 1_500_000_000
LEFT_BYTES = 50 * 10**6
"""What the other program leaves of the memory, beyond the most that the run has held so far."""
SECONDS_BEFORE, SECONDS_TAKEN = 15.0, 15.0
SAMPLE_SECONDS = 0.1
HOG = """
import sys
held = b"x" * int(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def watch(place: Path) -> dict[str, Any]:
    """Train, disturb, and return what was seen."""
    folder = place / f"picture-{time.monotonic_ns()}"
    run = RunFolder(folder / "run")
    environment = {**os.environ, "LOWMEM_SEQ_CACHE": str(folder / "cache")}  # so that measuring is seen, too
    with small_machine(MACHINE_BYTES) as group:
        flags = ("--data", "shapes", "--max-ram", f"{CAP_BYTES // 10**6}MB", "--steps", "1000000")
        run_it = [*PROGRAM, "train", "small", *flags, "--run-dir", str(run.path), "--quiet"]
        process = group.start(run_it, cwd=ROOT, env=environment)
        samples: list[dict[str, float]] = []
        began = time.time()
        hog, most_held = None, 0
        grown_at = None
        stopped = False
        while process.poll() is None:
            samples.append(look(process.pid, time.time() - began, hog))
            kinds = [event["event"] for event in run.events] if run.path.exists() else []
            most_held = max(most_held, group.anonymous_bytes() if hog is None else 0)
            size = MACHINE_BYTES - most_held - LEFT_BYTES
            hog = disturb(group, hog, size, kinds.count("setting_changed"), seconds_since_start(run))
            if grew_back(run):
                grown_at = grown_at or time.monotonic()
            if grown_at is not None and not stopped and time.monotonic() - grown_at > SECONDS_BEFORE:
                stopped = True
                process.terminate()
            time.sleep(SAMPLE_SECONDS)
    events = [{**event, "seconds": event["time_unix_seconds"] - began} for event in run.events]
    kept = ("session_opened", "planned", "session_started", "setting_changed", "session_ended")
    return {
        "machine": machine(),
        "commit": commit(),
        "command": "lowmem-seq train small " + " ".join(flags),
        "cap_bytes": CAP_BYTES,
        "machine_bytes": MACHINE_BYTES,
        "samples": samples,
        "events": [event for event in events if event["event"] in kept],
    }


def look(supervisor_pid: int, seconds: float, hog: subprocess.Popen[Any] | None) -> dict[str, float]:
    """Return what each holds now."""
    reader = system_reader()
    supervisor = reader.held_bytes(supervisor_pid)
    child = sum(reader.held_bytes(pid) for pid in reader.descendants(supervisor_pid))
    other = reader.held_bytes(hog.pid) if hog is not None and hog.poll() is None else 0
    return {"seconds": round(seconds, 3), "supervisor": supervisor, "child": child, "other": other}


def seconds_since_start(run: RunFolder) -> float | None:
    """Return how long the trainer has trained, or None."""
    started = [event["time_unix_seconds"] for event in run.events if event["event"] == "session_started"]
    return time.time() - started[0] if started else None


def disturb(
    group: Group, hog: subprocess.Popen[Any] | None, size_bytes: int, changes: int, trained: float | None
) -> subprocess.Popen[Any] | None:
    """Start the other program when the run has trained for a while, and end it when it was there for a while."""
    if hog is None and trained is not None and trained > SECONDS_BEFORE:
        command = [sys.executable, "-c", HOG, str(size_bytes)]
        return group.start(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    if hog is not None and hog.poll() is not None and not changes:
        raise SystemExit("the other program was ended before the run gave any memory back")
    long_enough = trained is not None and trained > SECONDS_BEFORE + SECONDS_TAKEN
    if hog is not None and hog.poll() is None and changes and long_enough:
        hog.kill()
        hog.wait()
    return hog


def grew_back(run: RunFolder) -> bool:
    """Whether the run computes again as it was planned."""
    changes = [event for event in run.events if event["event"] == "setting_changed"]
    planned = [event["chosen"] for event in run.events if event["event"] == "planned"]
    return bool(changes and planned) and {key: changes[-1][key] for key in planned[-1]} == planned[-1]


def draw(seen: dict[str, Any]) -> None:
    """Draw what was seen.

    Raises:
        SystemExit: matplotlib is not there.
    """
    pyplot = drawing()
    figure, axes = pyplot.subplots(figsize=(9.0, 4.4), layout="constrained")
    times = [sample["seconds"] for sample in seen["samples"]]

    def megabytes(*names: str) -> list[float]:
        return [sum(sample[name] for name in names) / 1e6 for sample in seen["samples"]]

    run, other = megabytes("supervisor", "child"), megabytes("other")
    axes.fill_between(times, 0, megabytes("supervisor"), color="#0b3c5d", linewidth=0, label="supervisor")
    axes.fill_between(times, megabytes("supervisor"), run, color="#62a8d1", linewidth=0, label="its child")
    both = [one + two for one, two in zip(run, other, strict=True)]
    axes.fill_between(times, run, both, color="#d9d9d9", linewidth=0, label="another program")
    axes.axhline(seen["cap_bytes"] / 1e6, color="#b3261e", linestyle="--", linewidth=1.4)
    axes.axhline(seen["machine_bytes"] / 1e6, color="#555555", linewidth=1.2)
    axes.text(0.5, seen["cap_bytes"] / 1e6 + 15, "--max-ram 1GB", color="#b3261e", va="bottom")
    axes.text(0.5, seen["machine_bytes"] / 1e6 + 15, "all that this machine has", color="#555555", va="bottom")
    for what, (marker, colour) in {"smaller": ("v", "#e8710a"), "larger": ("^", "#188038")}.items():
        changes = [event for event in seen["events"] if change(event) == what]
        places = [event["seconds"] for event in changes]
        heights = [run[sum(time < place for time in times) - 1] + 45 for place in places]
        axes.scatter(places, heights, marker=marker, s=70, color=colour, zorder=3, label=f"computes {what}")
    axes.set(xlabel="seconds", ylabel="resident memory, MB", xlim=(0, times[-1]))
    axes.set_ylim(0, seen["machine_bytes"] / 1e6 * 1.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=5, frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def change(event: dict[str, Any]) -> str | None:
    """Return whether an event is one of a smaller or a larger setting; None: it is neither."""
    if event["event"] != "setting_changed":
        return None
    return "larger" if event["cause"].startswith("memory was calm") else "smaller"


def main() -> None:
    """Watch a run and draw it, or draw again what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true", help="draw what was seen the last time")
    options = parser.parse_args()
    if not options.redraw:
        write_json(DATA_FILE, watch(ROOT / "runs"))
    draw(read_json(DATA_FILE))


if __name__ == "__main__":
    main()
