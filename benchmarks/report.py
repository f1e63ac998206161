"""What a report's page costs for a run of many events, as a whole process: `python -m benchmarks.report`.

The events are invented, as a trainer, a supervisor and a machine that is short of memory now and then would write
them in some days. The page is made by the command that users type, three times. Of these the fastest
counts, for others use the machine as well, and the largest.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.kills import PROGRAM
from benchmarks.page import commit, describe_machine, machine, put_between_marks
from lowmem_seq.config import load_preset, validate
from lowmem_seq.runs.folder import RunFolder, create_run
from lowmem_seq.units import format_bytes

EVENTS = (1_000, 100_000)
TIMES = 3
CLASSES = [f"class {index}" for index in range(10)]
BATCH, TRAIN_IMAGES = 128, 45_000
STEPS_A_LINE, SECONDS_A_LINE = 20, 3.0
MEASURED = """
import os, subprocess, sys, time

began = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.monotonic() - began, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""In a small process: until a program begins, its peak is that of the process that starts it."""
MOST_SECONDS, MOST_BYTES = 3.0, 300 * 10**6
"""What issue 7 asks for."""


def invented_events(count: int) -> Iterator[dict[str, Any]]:
    """Yield so many events: figures, looks at the memory, evaluations, saves; now and then a change or a crash."""
    at, step = 1.8e9, 0
    begun = {"total_steps": count * STEPS_A_LINE, "parameters": 7_600_000, "classes": CLASSES, "micro_batch": 64}
    begun |= {"train_images": TRAIN_IMAGES, "effective_batch": BATCH, "device": "cpu", "precision": "fp32"}
    yield {"time_unix_seconds": at, "event": "session_opened", "supervisor_pid": 1}
    yield {"time_unix_seconds": at, "event": "session_started", "step": 0, "resumed": False, **begun}
    for line in range(count - 4):
        at += SECONDS_A_LINE
        told: dict[str, Any] = {"step": step}
        if line % 5_000 == 4_999:
            kind, told = "session_ended", {"state": "crashed", "cause": "the trainer was ended by SIGKILL"}
        elif line % 5_000 == 0 and line:
            kind, told = "session_started", {"step": step, "resumed": True, **begun}
        elif line % 700 == 699:
            kind = "setting_changed"
            told |= {"micro_batch_before": 64, "micro_batch": 32, "cause": "50 MB are left on this machine"}
        elif line % 100 == 99:
            kind = "checkpoint"
            told |= {"path": f"step-{step:08d}", "seconds": 0.4}
        elif line % 50 == 49:
            kind = "validation"
            told |= {"epoch": step * BATCH / TRAIN_IMAGES, "val_loss": 1 + 1 / (step + 1), "val_accuracy": 0.5}
            told |= {"seconds": 2.5}
        elif line % 5 == 4:
            kind = "memory"
            told = {"tree_bytes": 8 * 10**8 + line % 997 * 10**5, "peak_tree_bytes": 9 * 10**8, "cap_bytes": 10**9}
            told |= {"available_bytes": 10**9, "swapped_out_bytes": 0, "pressure": 0.0}
        else:
            step += STEPS_A_LINE
            kind = "train"
            told |= {"step": step, "epoch": step * BATCH / TRAIN_IMAGES, "images_seen": step * BATCH}
            told |= {"train_loss": 2 / math.sqrt(line + 1) + 0.1, "learning_rate": 1e-3, "images_per_second": 850.0}
            told |= {"wall_seconds": at - 1.8e9}
        yield {"time_unix_seconds": at, "event": kind, **told}
    confusion = [[90 if one == other else 1 for other in range(10)] for one in range(10)]
    told = {"step": step, "test_loss": 0.5, "test_accuracy": 0.9, "class_accuracies": [0.9] * 10, "seconds": 3.0}
    told["weights_sha256"] = "ab"
    yield {"time_unix_seconds": at, "event": "test", **told, "confusion": confusion}
    yield {
        "time_unix_seconds": at,
        "event": "session_ended",
        "state": "finished",
        "step": step,
        "wall_seconds": 9.0,
    }


def make_run(path: Path, count: int) -> RunFolder:
    """Make a run folder with so many events."""
    run = create_run(path, validate(load_preset("small")))
    with run.events.path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(event)}\n" for event in invented_events(count))
    return run


def measure(run: RunFolder, page: Path) -> tuple[float, int]:
    """Return the seconds and the peak of resident bytes of the command, and have its page written.

    Raises:
        SystemExit: the command failed.
    """
    command = [*PROGRAM, "report", str(run.path), "--html", str(page)]
    told = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"the report failed with exit code {told.returncode}: {told.stderr}")
    seconds, peak = told.stdout.split()
    return float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024)


def table(measured: dict[int, list[tuple[float, int]]], page_bytes: dict[int, int]) -> str:
    """Return what was measured, by the number of events, as Markdown."""
    lines = ["| events | time, fastest | slowest | highest memory | page |", "|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {count:,} | {min(one[0] for one in runs):.2f} s | {max(one[0] for one in runs):.2f} s "
        f"| {format_bytes(max(one[1] for one in runs))} | {format_bytes(page_bytes[count])} |"
        for count, runs in measured.items()
    ]
    told = f"`python -m benchmarks.report` at {commit()}; n = {TIMES} of each; {describe_machine(machine())}."
    return "\n".join([*lines, "", told])


def main() -> None:
    """Measure, put it into docs/results.md, and fail where it takes more than was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print-only", action="store_true", help="write no file")
    options = parser.parse_args()
    measured: dict[int, list[tuple[float, int]]] = {}
    page_bytes: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        for count in EVENTS:
            run = make_run(Path(folder) / str(count), count)
            measured[count] = [measure(run, page) for _ in range(TIMES)]
            page_bytes[count] = page.stat().st_size
    text = table(measured, page_bytes)
    print(text)
    if not options.print_only:
        put_between_marks("report", text)
    seconds, peak_bytes = min(one for one, _ in measured[EVENTS[-1]]), max(one for _, one in measured[EVENTS[-1]])
    if seconds > MOST_SECONDS or peak_bytes > MOST_BYTES:
        raise SystemExit(f"that is more than {MOST_SECONDS:.0f} s or {format_bytes(MOST_BYTES)}")


if __name__ == "__main__":
    main()
