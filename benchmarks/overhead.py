"""What watching over the memory costs: `python -m benchmarks.overhead`, a table in docs/results.md.

First the readings by themselves, timed in a process that has two children. Then a real run under a cap: the CPU
time that its supervisor takes while the trainer trains, from the second line of figures on, once with `--quiet`
and once drawing its display in a terminal. The governor looks from within the trainer, before each micro-batch;
its share is the cost of a look times the micro-batches a second of the run. A share is CPU time by the time that
passed: at the most, a step takes so much longer than it would unwatched.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.page import describe_machine, machine, put_between_marks
from lowmem_seq.memory.governor import SECONDS_BETWEEN_LOOKS, Governor
from lowmem_seq.memory.plan import plan_from_json
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.memory.tree import SECONDS_BETWEEN_SEARCHES, ProcessTree
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.watch import SAMPLE_SECONDS, SECONDS_BETWEEN_MACHINE_LOOKS

MOST_SHARE = 0.005
"""What monitor and governor may take of a step."""
CALLS, ROUNDS = 500, 9
LINES_BEFORE = 2
SECONDS_TO_START = 300.0
ROOM_BYTES = 10**12
"""So much that the governor never advises anything, and never releases caches."""
SLEEP = "import sys; sys.stdin.read()"


def seconds_a_call(call: Callable[[], object]) -> float:
    """Return the median over the rounds of what a call takes."""
    return statistics.median(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS


def measure_readings() -> dict[str, float]:
    """Return the seconds that each kind of look takes, in a tree of three processes."""
    children = [subprocess.Popen([sys.executable, "-c", SLEEP], stdin=subprocess.PIPE) for _ in range(2)]
    try:
        pid, reader = os.getpid(), system_reader()
        tree = ProcessTree(pid, reader)
        for child in children:
            tree.add(child.pid)
        governor = Governor(reader, pid, ROOM_BYTES)
        return {
            "process": seconds_a_call(lambda: reader.held_bytes(pid)),
            "tree": seconds_a_call(lambda: (tree.held_bytes(), tree.peak_bytes())),
            "search": seconds_a_call(lambda: reader.descendants(pid)),
            "machine": seconds_a_call(reader.machine),
            "governor": seconds_a_call(lambda: governor.look(None)),
        }
    finally:
        for child in children:
            child.communicate()


def measure_run(preset: str, flags: list[str], seconds: float, terminal: bool) -> dict[str, Any]:
    """Train for so long; return the supervisor's CPU time by wall time, and the trainer's pace."""
    with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as place:
        run = RunFolder(Path(place) / "run")
        command = [*(sys.executable, "-m", "lowmem_seq", "train", preset), *flags, "--run-dir", str(run.path)]
        with started(command, terminal) as process:
            wait_for(process, lambda: len(rates(run)) >= LINES_BEFORE)
            supervisor = psutil.Process(process.pid)
            used, began, before = cpu_seconds(supervisor), time.monotonic(), len(rates(run))
            time.sleep(seconds)
            share = (cpu_seconds(supervisor) - used) / (time.monotonic() - began)
            told = rates(run)[before:]
            process.terminate()
            process.wait(SECONDS_TO_START)
        stored = run.read_json(run.plan_file)
    assert stored is not None
    assert told, f"the run told nothing within {seconds} s"
    rate = statistics.median(told)
    micro_batch = plan_from_json(stored).micro_batch
    return {
        "preset": preset,
        "terminal": terminal,
        "seconds": seconds,
        "images_per_second": rate,
        "micro_batch": micro_batch,
        "micro_batches_per_second": rate / micro_batch,
        "supervisor_share": share,
    }


@contextlib.contextmanager
def started(command: list[str], terminal: bool) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, quiet or with a terminal of its own that somebody reads."""
    if not terminal:
        with subprocess.Popen([*command, "--quiet"]) as process:
            yield process
        return
    import pty  # not on Windows

    ours, its = pty.openpty()
    reader = threading.Thread(target=read_to_the_end, args=(ours,), daemon=True)
    reader.start()
    with subprocess.Popen(command, stdout=its, env={**os.environ, "TERM": "xterm-256color"}) as process:
        os.close(its)
        yield process
    reader.join()
    os.close(ours)


def read_to_the_end(descriptor: int) -> None:
    """Read what a terminal shows until nobody writes to it any more."""
    with contextlib.suppress(OSError):
        while os.read(descriptor, 65536):
            pass


def wait_for(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    """Wait until it has happened, while the process runs."""
    until = time.monotonic() + SECONDS_TO_START
    while not happened():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with code {process.returncode} before it was measured")
        if time.monotonic() > until:
            process.terminate()
            raise TimeoutError(f"no figures of the run within {SECONDS_TO_START:.0f} s")
        time.sleep(0.5)


def rates(run: RunFolder) -> list[float]:
    """Return the images a second that a run has told of so far."""
    return [float(event["images_per_second"]) for event in run.events if event["event"] == "train"]


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process, without its children."""
    times = process.cpu_times()
    return float(times.user + times.system)


def governor_share(readings: dict[str, float], run: dict[str, Any]) -> float:
    """Return what the governor takes of a second of the trainer: its looks, and those at the machine."""
    return float(
        run["micro_batches_per_second"] * readings["governor"] + readings["machine"] / SECONDS_BETWEEN_LOOKS
    )


def page(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    readings: dict[str, float] = results["readings"]
    runs: list[dict[str, Any]] = results["runs"]
    rows = (
        ("what one process holds", readings["process"], "-"),
        (
            "a tree of three processes: what all hold, and all peaks",
            readings["tree"],
            f"every {SAMPLE_SECONDS} s, supervisor",
        ),
        ("a search for new processes", readings["search"], f"every {SECONDS_BETWEEN_SEARCHES:.0f} s, supervisor"),
        (
            "the machine: available, swap, pressure, control groups",
            readings["machine"],
            f"every {SECONDS_BETWEEN_MACHINE_LOOKS:.0f} s, supervisor, and {SECONDS_BETWEEN_LOOKS} s, governor",
        ),
        ("the governor's look at its own process", readings["governor"], "each micro-batch"),
    )
    lines = ["| reading | takes (median) | how often |", "|---|---:|---|"]
    lines += [f"| {what} | {seconds * 1e6:.0f} us | {often} |" for what, seconds, often in rows]
    lines += [
        "",
        "| run | images/s, micro-batch | supervisor's share of a core | governor's | together (promise: "
        f"{MOST_SHARE:.1%}) |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one['preset']}, {'drawing its display in a terminal' if one['terminal'] else '`--quiet`'} | "
        f"{one['images_per_second']:,.0f}, {one['micro_batch']} | {one['supervisor_share']:.2%} | "
        f"{one['governor_share']:.2%} | **{one['share']:.2%}** |"
        for one in runs
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"`python -m benchmarks.overhead`; readings: n = {ROUNDS} rounds of {CALLS} calls; runs: "
            f"{runs[0]['seconds']:.0f} s each, `{' '.join(results['flags'])}`; "
            f"{describe_machine(results['machine'])}.",
        ]
    )


def main() -> None:
    """Measure all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=["small"])
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--max-ram", default="2GB")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each run is measured")
    parser.add_argument("--print-only", action="store_true", help="leave docs/results.md as it is")
    options = parser.parse_args()
    flags = ["--data", options.data, "--max-ram", options.max_ram, "--epochs", "1000"]
    readings = measure_readings()
    runs = [
        measure_run(preset, flags, options.seconds, terminal)
        for preset in options.presets
        for terminal in (False, True)
    ]
    for run in runs:
        run["governor_share"] = governor_share(readings, run)
        run["share"] = run["supervisor_share"] + run["governor_share"]
    text = page({"machine": machine(), "flags": flags, "readings": readings, "runs": runs})
    print(text)
    if not options.print_only:
        put_between_marks("overhead", text)
    for run in runs:
        if not run["terminal"] and run["share"] > MOST_SHARE:
            raise SystemExit(f"monitor and governor take {run['share']:.2%} of a step of {run['preset']}")


if __name__ == "__main__":
    main()
