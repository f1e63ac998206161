"""What saving and resuming cost: `python -m benchmarks.checkpoints`, a table in docs/results.md.

Saving: the store of this project, torch.save, and Accelerate's save_state write the same weights and AdamW moments
into the same folder with the same durability (every file and folder synced before the call returns), turn by turn,
each in a process of its own that has done one training step before. Resuming: the time from the end of the imports
to the end of the first step, from checkpoints at the beginning, the middle and the end of an epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import psutil

from benchmarks.page import ROOT, describe_machine, machine, put_between_marks
from lowmem_seq.config import RunConfig, load_preset, override, validate
from lowmem_seq.files import write_json
from lowmem_seq.memory.environment import training_environment, usable_allocators
from lowmem_seq.memory.plan import Plan, Setting
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.units import format_bytes

DATA_FILE = ROOT / "docs" / "checkpoints.json"
METHODS = ("lowmem-seq", "torch.save", "accelerate save_state")
PRESETS = ("small", "sequencer2d_l")
MICRO_BATCHES = {"small": 64, "sequencer2d_l": 1}
DEFAULT_INTERVAL_SECONDS = 300.0
MOST_SHARE = 0.02
"""What saving may take of the time, at the default interval."""
MOST_EXTRA_BYTES = 64 * 10**6
"""What a save may take above what is held already."""
MOST_RESUME_SECONDS = 5.0
"""What a resume may take from the end of the imports to the end of the first step."""
POSITIONS = {"beginning": 1, "middle": 28, "end": 55}
"""Steps of an epoch of the embedded shapes (7,200 training images, batches of 128: 56 steps)."""


def make_config(preset: str) -> RunConfig:
    """Return a preset on the embedded shapes."""
    settings = load_preset(preset)
    override(settings, "data.source=shapes")
    return validate(settings)


def make_run(folder: Path, preset: str) -> Path:
    """Make a run that a trainer could start on, without probing."""
    from lowmem_seq.data.prepare import prepare
    from lowmem_seq.runs.folder import create_run

    config = make_config(preset)
    run = create_run(folder, config)
    pack = prepare("shapes", config.data.image_size)
    record = {"format_version": 1, "source": "shapes", "pack": str(pack.folder), "fingerprint": pack.fingerprint}
    write_json(run.data_file, record)
    plan = Plan(
        device="cpu",
        precision="fp32",
        micro_batch=MICRO_BATCHES[preset],
        workers=1,
        recomputed_layers=0,
        threads=1,
        allocator=usable_allocators()[0],
        chosen=Setting(MICRO_BATCHES[preset], 1),
        cap_bytes=10**10,
        cap_source="given",
        others_bytes=0,
        data_limit_bytes=None,
        predicted_peak_bytes=0,
        predicted_images_per_second=0.0,
    )
    write_json(run.plan_file, plan.to_json())
    return folder


def sync_tree(folder: Path) -> None:
    """Sync every file and folder below `folder`, and its own name."""
    for path in (*folder.rglob("*"), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def store_saver(run_folder: Path) -> Callable[[int], None]:
    """Return what saves with the store of this project, verification and pruning included."""
    from lowmem_seq.channel import Channel
    from lowmem_seq.runs.folder import open_run
    from lowmem_seq.training.session import open_training, read_plan

    run = open_run(run_folder)
    training = open_training(run, read_plan(run), Channel(listen=False))
    micro_batch = training.plan.micro_batch
    training.workers.run([(0, micro_batch)], training.forward_and_backward)
    training.state.optimizer.step(1e-4)

    def save(number: int) -> None:
        saver, state = training.saver, training.state
        state.counters.step = number
        saver.store.save(number, state.writers(), saver.identity, {}, saver.checkpoint_bytes)

    return save


def stock_training(run_folder: Path) -> tuple[Any, Any, Any]:
    """Return accelerator, model and torch's AdamW after one step, as a plain training loop has them."""
    import torch
    from accelerate import Accelerator

    from lowmem_seq.models import build_model

    config = make_config(run_folder.name)
    accelerator = Accelerator(cpu=True)
    model = build_model(config.model, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer = accelerator.prepare(model, optimizer)
    side = config.data.image_size
    logits = model(torch.randn(MICRO_BATCHES[run_folder.name], side, side, 3), None)
    accelerator.backward(logits.logsumexp(1).sum())
    optimizer.step()
    return accelerator, model, optimizer


def torch_saver(run_folder: Path) -> Callable[[int], None]:
    """Return what saves with torch.save: a temporary name, sync, rename, sync of the folder."""
    import torch

    _, model, optimizer = stock_training(run_folder)
    folder = run_folder / "torch"
    folder.mkdir()

    def save(number: int) -> None:
        temporary = folder / "partial"
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": number}
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / "checkpoint.pt")
        sync_tree(folder)

    return save


def accelerate_saver(run_folder: Path) -> Callable[[int], None]:
    """Return what saves with Accelerate's save_state, synced, then the one before it deleted."""
    accelerator, _, _ = stock_training(run_folder)
    folder = run_folder / "accelerate"
    folder.mkdir()

    def save(number: int) -> None:
        accelerator.save_state(str(folder / f"step-{number}"))
        sync_tree(folder)
        shutil.rmtree(folder / f"step-{number - 2}", ignore_errors=True)

    return save


SAVERS = dict(zip(METHODS, (store_saver, torch_saver, accelerate_saver), strict=True))


def serve(method: str, run_folder: Path) -> None:
    """Save once for every line on the standard input, and print seconds and bytes as JSON."""
    save = SAVERS[method](run_folder)
    process, reader = psutil.Process(), system_reader()
    print("ready", flush=True)
    for number, _ in enumerate(sys.stdin, 1):
        held = process.memory_info().rss
        reader.reset_peak()
        began = time.perf_counter()
        save(number)
        seconds = time.perf_counter() - began
        peak = reader.peak_bytes(process.pid) or process.memory_info().rss
        print(json.dumps({"seconds": seconds, "extra_bytes": max(0, peak - held)}), flush=True)


def resume_once(run_folder: Path) -> None:
    """Print the seconds from the end of the imports to the end of the first step."""
    from lowmem_seq.channel import Channel
    from lowmem_seq.runs.folder import open_run
    from lowmem_seq.training.session import open_training, read_plan

    began = time.perf_counter()
    run = open_run(run_folder)
    training = open_training(run, read_plan(run), Channel(listen=False))
    training.saver.load_newest()
    training.train_step()
    print(json.dumps({"seconds": time.perf_counter() - began, "step": training.state.counters.step}), flush=True)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start this module once more, with the environment that a trainer has."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.checkpoints", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, **training_environment(1, usable_allocators()[0])},
    )


def ask(child: subprocess.Popen[str]) -> dict[str, float]:
    """Have a serving child save once, and return its figures."""
    cast(IO[str], child.stdin).write("save\n")
    cast(IO[str], child.stdin).flush()
    figures: dict[str, float] = json.loads(cast(IO[str], child.stdout).readline())
    return figures


def measure_saving(preset: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return, for each method, the medians over `rounds` saves, taken turn by turn."""
    run_folder = make_run(folder / preset, preset)
    children = {method: start("--serve", method, str(run_folder)) for method in METHODS}
    for child in children.values():
        cast(IO[str], child.stdout).readline()
    figures: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method, child in children.items():
            one = ask(child)
            if turn:  # the first one finds empty caches
                figures[method].append(one)
    for child in children.values():
        cast(IO[str], child.stdin).close()
        child.wait()
    saved = {
        METHODS[0]: max((run_folder / "checkpoints").iterdir()),
        METHODS[1]: run_folder / "torch",
        METHODS[2]: max((run_folder / "accelerate").iterdir(), key=lambda path: path.stat().st_mtime),
    }
    return [
        {
            "preset": preset,
            "method": method,
            "bytes": sum(path.stat().st_size for path in saved[method].rglob("*") if path.is_file()),
            "seconds": statistics.median(one["seconds"] for one in figures[method]),
            "longest_seconds": max(one["seconds"] for one in figures[method]),
            "extra_bytes": max(one["extra_bytes"] for one in figures[method]),
            "n": rounds,
        }
        for method in METHODS
    ]


def measure_resuming(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return the medians of the time to the first step of Small, by the position in the epoch."""
    from lowmem_seq.channel import Channel
    from lowmem_seq.runs.folder import open_run
    from lowmem_seq.training.session import open_training, read_plan

    results = []
    for name, step in POSITIONS.items():
        run_folder = make_run(folder / f"resume-{name}", "small")
        run = open_run(run_folder)
        training = open_training(run, read_plan(run), Channel(listen=False))
        training.state.counters.step = step
        training.saver.save()
        times = []
        for _ in range(rounds):
            out, _ = start("--resume", str(run_folder)).communicate()
            told = json.loads(out)
            assert told["step"] == step + 1
            times.append(told["seconds"])
        results.append(
            {
                "position": name,
                "step": step,
                "seconds": statistics.median(times),
                "longest_seconds": max(times),
                "n": rounds,
            }
        )
    return results


def page(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = [
        "| model | how | size | a save stalls training for (median, longest) | share of the default interval of "
        "5 min | RAM above what is held |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one['preset']} | {one['method']} | {format_bytes(one['bytes'])} | {one['seconds']:.2f} s, "
        f"{one['longest_seconds']:.2f} s | {one['seconds'] / DEFAULT_INTERVAL_SECONDS:.2%} | "
        f"{format_bytes(one['extra_bytes'])} |"
        for one in results["saving"]
    ]
    lines += [
        "",
        "| resume of Small from | seconds from the imports' end to the first step's end (median, longest) |",
        "|---|---:|",
    ]
    lines += [
        f"| the {one['position']} of an epoch (step {one['step']}) | {one['seconds']:.2f}, "
        f"{one['longest_seconds']:.2f} |"
        for one in results["resuming"]
    ]
    counts = f"n = {results['saving'][0]['n']} saves each, {results['resuming'][0]['n']} resumes each"
    return "\n".join(
        [*lines, "", f"`python -m benchmarks.checkpoints`; {counts}; {describe_machine(results['machine'])}."]
    )


def main() -> None:
    """Measure all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="a folder on the disk in question; default: a temporary one")
    parser.add_argument("--serve", nargs=2, metavar=("METHOD", "RUN"), help=argparse.SUPPRESS)
    parser.add_argument("--resume", metavar="RUN", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]))
        return
    if options.resume:
        resume_once(Path(options.resume))
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="checkpoints-") as place:
        saving = [row for preset in options.presets for row in measure_saving(preset, Path(place), options.rounds)]
        resuming = measure_resuming(Path(place), options.rounds)
    ours = [row for row in saving if row["method"] == METHODS[0]]
    assert all(row["seconds"] <= MOST_SHARE * DEFAULT_INTERVAL_SECONDS for row in ours), ours
    assert all(row["extra_bytes"] <= MOST_EXTRA_BYTES for row in ours), ours
    assert all(row["longest_seconds"] <= MOST_RESUME_SECONDS for row in resuming), resuming
    results = {"machine": machine(), "saving": saving, "resuming": resuming}
    write_json(DATA_FILE, results)
    put_between_marks("checkpoints", page(results))


if __name__ == "__main__":
    main()
