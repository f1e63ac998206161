"""The accuracy table of docs/results.md: `python -m benchmarks.results --data PATH`.

Each row is a run of a preset with its own defaults, on real CIFAR-10 images given as a folder or zip laid out
train/CLASS/file + test/CLASS/file. A row that is in docs/results.json already is not run again, and a run that was
stopped is resumed, so the whole may be done in pieces. Delete a row's entry to have it measured anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.page import ROOT, commit, put_between_marks
from lowmem_seq.files import read_json, write_json
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import format_bytes, format_seconds

DATA_FILE = ROOT / "docs" / "results.json"
RUNS = ROOT / "runs" / "results"
FOUR = "airplane,automobile,bird,cat"
SEEDS_TABLE = {
    "small": (0.8411, 0.4246),
    "medium": (0.8485, 0.4407),
    "vanilla": (0.6777, 0.9368),
}
"""Test accuracy and loss that the project's seeds reached on the four classes."""


KEPT = (
    *("parameters", "epoch", "test_loss", "test_accuracy", "val_loss", "val_accuracy", "images_per_second"),
    *("wall_seconds", "peak_tree_bytes", "micro_batch", "precision", "sessions"),
)


@dataclass(frozen=True)
class Row:
    """One run of the table."""

    name: str
    preset: str
    flags: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The arguments of `lowmem-seq`, but for the data's place."""
        return ["train", self.preset, *self.flags]


ROWS = (
    Row("small-4-seed0", "small", ("--classes", FOUR)),
    Row("medium-4-seed0", "medium", ("--classes", FOUR)),
    Row("vanilla-4-seed0", "vanilla", ("--classes", FOUR)),
    Row("small-4-seed1", "small", ("--classes", FOUR, "--seed", "1")),
    Row("small-4-seed2", "small", ("--classes", FOUR, "--seed", "2")),
    Row("small-10-seed0", "small", ("--max-ram", "2GB")),
    Row("small-plus-4-seed0", "small-plus", ("--classes", FOUR)),
)


def run_row(row: Row, data: str) -> dict[str, Any]:
    """Train one row to its end, or go on with it, and return what is kept of it."""
    folder = RUNS / row.name
    program = [sys.executable, "-m", "lowmem_seq"]
    started = RunFolder(folder).config_file.exists()
    arguments = ["resume", str(folder)] if started else [*row.command, "--run-dir", str(folder)]
    subprocess.run([*program, *arguments, "--data", data], check=True)
    told = subprocess.run(
        [*program, "report", str(folder), "--json"], check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    summary = json.loads(told.stdout)[0]
    environment = read_json(folder / "environment.json")
    return {
        "preset": row.preset,
        "command": "lowmem-seq " + " ".join([*row.command, "--data", "CIFAR10"]),
        "classes": len(summary["classes"]),
        **{key: summary[key] for key in KEPT},
        "processor": environment["processor"],
        "cores": environment["logical_cores"],
        "memory_bytes": environment["memory_bytes"],
        "python": environment["python"],
        "torch": environment["packages"]["torch"],
        "lowmem_seq": environment["packages"]["lowmem-seq"],
        "commit": commit(),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table, with the spread over seeds and the machines beneath it."""
    lines = [
        "| run | classes | parameters | epochs | test accuracy | test loss | the seeds' | images/s | "
        "time | peak RAM |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in results.items():
        before = SEEDS_TABLE.get(one["preset"]) if one["classes"] == 4 else None
        compared = "-" if before is None else f"{before[0]:.2%} / {before[1]:.4f}"
        cells = (
            name,
            str(one["classes"]),
            f"{one['parameters'] / 1e6:.2f}M",
            f"{one['epoch']:.0f}",
            f"**{one['test_accuracy']:.2%}**",
            f"{one['test_loss']:.4f}",
            compared,
            f"{one['images_per_second']:,.0f}",
            format_seconds(one["wall_seconds"]),
            format_bytes(one["peak_tree_bytes"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    seeds = [one for one in results.values() if one["preset"] == "small" and one["classes"] == 4]
    if len(seeds) > 1:
        for key, shown in (("test_accuracy", "{:.2%}"), ("test_loss", "{:.4f}")):
            values = [one[key] for one in seeds]
            mean, spread = statistics.mean(values), statistics.stdev(values)
            lines += [
                "",
                f"Small, four classes, {key.replace('_', ' ')} over n = {len(values)} seeds: mean "
                f"{shown.format(mean)}, standard deviation {shown.format(spread)}.",
            ]
    lines.append("")
    for name, one in results.items():
        lines.append(
            f"- {name}: `{one['command']}`; {one['processor']}, {one['cores']} cores, "
            f"{format_bytes(one['memory_bytes'])}; torch {one['torch']}, Python {one['python']}, "
            f"{one['precision']}, micro-batch {one['micro_batch']}, {one['sessions']} session(s)"
        )
    return "\n".join(lines)


def write_page(results: dict[str, dict[str, Any]]) -> None:
    """Put the table between its marks in docs/results.md."""
    put_between_marks("results", table(results))


def main() -> None:
    """Run the rows that are missing, one after the other, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or zip of CIFAR-10 images")
    parser.add_argument("--only", nargs="*", choices=[row.name for row in ROWS], help="these rows")
    options = parser.parse_args()
    if not options.data:
        parser.error("no data: make results CIFAR10=PATH")
    results = read_json(DATA_FILE) if DATA_FILE.exists() else {}
    for row in ROWS:
        if row.name in results or (options.only and row.name not in options.only):
            continue
        results[row.name] = run_row(row, options.data)
        results = {one.name: results[one.name] for one in ROWS if one.name in results}
        write_json(DATA_FILE, results)
        write_page(results)


if __name__ == "__main__":
    main()
