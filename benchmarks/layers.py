"""A BiLSTM2D by our function, with compiled cells and without, beside nn.LSTM: `python -m benchmarks.layers`.

Each measurement is a process of its own, which computes all shapes one way; the ways take turns, so that what else
the machine does falls on all alike. Its figure for a shape is the median of forward + backward (and of forward
without gradients, as in evaluation), after a warm-up; the table shows medians over the processes, and the median of
the ratios of neighbours. One thread is timed by its CPU time, page faults included, for others that share the
processor disturb that less; several by the clock. What is kept is what autograd saves beside the weights, each
piece of memory once.

Processors: this one as it is, in bf16; restricted to AVX2, in fp32, like most small laptops; and with oneDNN off,
in fp32, for a Mac's CPU, where ATen has none. Allocators: glibc's defaults; the same after one block of just under
32 MiB was taken and given back untouched, which raises what glibc keeps instead of giving it back to the system, so
that hardly a page faults in again; and its huge pages (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from lowmem_seq.files import write_json

RESULTS = ROOT / "docs" / "layers.json"
PATHS = ("torch", "function", "native")
NAMES = "nn.LSTM, ours, ours compiled"
ALLOCATORS = {"default": "", "block freed first": "", "huge pages": "glibc.malloc.hugetlb=1"}
BLOCK_BYTES = 33_000_000
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
WARM_UPS, LEAST_CALLS = 2, 5


@dataclass(frozen=True)
class Processor:
    """A way to use this processor."""

    precision: str
    environment: dict[str, str]
    onednn: bool = True


PROCESSORS = {
    "as it is, bf16": Processor("bf16", {}),
    "AVX2, fp32": Processor("fp32", AVX2),
    "oneDNN off, fp32": Processor("fp32", {}, onednn=False),
}


@dataclass(frozen=True)
class Shape:
    """A layer of a preset: its square grid of tokens, its widths, and a batch."""

    preset: str
    batch: int
    side: int
    channels: int
    lstm_width: int

    @property
    def key(self) -> str:
        """Its name in the table and in docs/layers.json."""
        return f"{self.preset}, {self.batch} x {self.side} x {self.side}, {self.channels}/{self.lstm_width}"


SHAPES = (
    Shape("small", 64, 4, 192, 48),
    Shape("small", 64, 2, 384, 96),
    Shape("small", 16, 4, 192, 48),
    Shape("small-plus", 32, 8, 128, 32),
    Shape("small-plus", 32, 4, 256, 64),
    Shape("sequencer2d", 1, 32, 192, 48),
    Shape("sequencer2d", 1, 16, 384, 96),
    Shape("sequencer2d", 8, 32, 192, 48),
    Shape("sequencer2d", 8, 16, 384, 96),
)


def measure(
    shape: Shape, path: str, precision: str, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the seconds of a training and an evaluation call, and the bytes kept for a token."""
    import torch
    from torch import Tensor

    from lowmem_seq.models import BiLSTM2D

    torch.manual_seed(0)
    module = BiLSTM2D(shape.channels, shape.lstm_width)
    module.lstm_path = path  # type: ignore[assignment]
    x = torch.randn(shape.batch, shape.side, shape.side, shape.channels, requires_grad=True)
    gradient = torch.randn_like(x)
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    kept: dict[int, int] = {}

    def forward() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y: Tensor = module(x)
        return y

    def train() -> None:
        y = forward()
        torch.autograd.backward(y, gradient.to(y.dtype))

    def evaluate() -> None:
        with torch.no_grad():
            forward()

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = forward()  # while it lives, no address is used twice
    del alive
    return {
        "train_seconds": median_seconds(train, seconds, clock),
        "evaluation_seconds": median_seconds(evaluate, seconds / 3, clock),
        "bytes_a_token": sum(kept.values()) / (shape.batch * shape.side**2),
    }


def median_seconds(call: Callable[[], None], seconds: float, clock: Callable[[], float]) -> float:
    """Call for about so long; return the median of the calls."""
    for _ in range(WARM_UPS):
        call()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < LEAST_CALLS or time.perf_counter() < until:
        before = clock()
        call()
        taken.append(clock() - before)
    return statistics.median(taken)


def measure_here(request: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure all shapes in this process."""
    import torch

    torch.set_num_threads(request["threads"])
    torch.backends.mkldnn.enabled = request["onednn"]
    if request["block"]:
        torch.empty(BLOCK_BYTES, dtype=torch.uint8)
    clock = time.thread_time if request["threads"] == 1 else time.perf_counter
    return {
        shape.key: measure(shape, request["path"], request["precision"], request["seconds"], clock)
        for shape in SHAPES
        if shape.key in request["shapes"]
    }


def measure_apart(processor: str, allocator: str, request: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Measure all shapes in a fresh process, on a processor and with an allocator."""
    chosen = PROCESSORS[processor]
    environment = {**os.environ, **chosen.environment, "OMP_NUM_THREADS": str(request["threads"])}
    environment.pop("GLIBC_TUNABLES", None)
    if ALLOCATORS[allocator]:
        environment["GLIBC_TUNABLES"] = ALLOCATORS[allocator]
    request = {**request, "precision": chosen.precision, "onednn": chosen.onednn, "block": "block" in allocator}
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.layers", "--child", json.dumps(request)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    ).stdout
    found: dict[str, dict[str, float]] = json.loads(told)
    return found


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all paths in turn, as often as wanted; return all figures."""
    shapes = [shape.key for shape in SHAPES if options.preset in (None, shape.preset)]
    request = {"threads": options.threads, "seconds": options.seconds, "shapes": shapes}
    found: dict[str, Any] = {}
    for processor in options.processors:
        for allocator in options.allocators:
            rounds = [
                {path: measure_apart(processor, allocator, {**request, "path": path}) for path in PATHS}
                for _ in range(options.rounds)
            ]
            found.setdefault(processor, {})[allocator] = rounds
    return {"machine": machine(), "commit": commit(), "threads": options.threads, "figures": found}


def ratios(rounds: list[dict[str, Any]], shape: str, figure: str) -> str:
    """The medians over the rounds of nn.LSTM's figure by each of ours, as a cell."""
    found = [
        statistics.median(one["torch"][shape][figure] / one[path][shape][figure] for one in rounds)
        for path in PATHS[1:]
    ]
    return ", ".join(f"{one:.2f}" for one in found)


def middle(rounds: list[dict[str, Any]], path: str, shape: str, figure: str) -> float:
    """The median over the rounds of one path's figure."""
    return float(statistics.median(one[path][shape][figure] for one in rounds))


def page(results: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines: list[str] = []
    count = 0
    for processor, allocators in results["figures"].items():
        names = list(allocators)
        first: list[dict[str, Any]] = allocators[names[0]]
        count = len(first)
        lines += [
            f"Processor {processor}:",
            "",
            "| layer: batch x grid, C/D | "
            + " | ".join(f"{name}: {NAMES} | ratios" for name in names)
            + f" | evaluation: ratios | kept a token: {NAMES} |",
            "|---|" + "---:|" * (2 * len(names) + 2),
        ]
        for shape in first[0]["torch"]:
            cells = [shape]
            for rounds in allocators.values():
                all_three = [f"{1e3 * middle(rounds, path, shape, 'train_seconds'):.1f}" for path in PATHS]
                cells.append(f"{', '.join(all_three)} ms")
                cells.append(f"**{ratios(rounds, shape, 'train_seconds')}**")
            cells.append(ratios(allocators[names[-1]], shape, "evaluation_seconds"))
            kept = [f"{middle(first, path, shape, 'bytes_a_token'):,.0f}" for path in PATHS]
            cells.append(f"{'; '.join(kept)} B")
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    clock = "CPU time of one thread" if results["threads"] == 1 else f"wall time, {results['threads']} threads"
    return "\n".join(
        [
            *lines,
            f"`python -m benchmarks.layers` at {results['commit']}; {clock}; n = {count} processes each way; "
            f"{describe_machine(results['machine'])}.",
        ]
    )


def main() -> None:
    """Measure, and write the page and docs/layers.json; as a child, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processors", nargs="*", choices=PROCESSORS, default=list(PROCESSORS))
    parser.add_argument("--allocators", nargs="*", choices=ALLOCATORS, default=list(ALLOCATORS))
    parser.add_argument("--preset", choices=sorted({shape.preset for shape in SHAPES}), help="its shapes alone")
    parser.add_argument("--rounds", type=int, default=5, help="processes for each path")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a shape is measured in a process")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure_here(json.loads(options.child))))
        return
    results = collect(options)
    text = page(results)
    print(text)
    if not options.print_only:
        write_json(Path(RESULTS), results)
        put_between_marks("layers", text)


if __name__ == "__main__":
    main()
