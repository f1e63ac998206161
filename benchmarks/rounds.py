"""What laptop mode does to accuracy: `python -m benchmarks.rounds --data PATH`, in pieces that can be repeated.

Machines train in turn in one process: the same steps on the same samples as on machines side by side, the same
deltas and updates through the same codec, and no network. Each row has as many samples in all; what differs is how
many machines share them, how many steps a round has, and what is made of the deltas. What is measured stands in
docs/rounds.json, and is not measured again; delete an entry to have it measured anew.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import ROOT, commit, describe_machine, machine, put_between_marks
from benchmarks.results import FOUR
from lowmem_seq.channel import Channel
from lowmem_seq.cluster.compression import CODECS
from lowmem_seq.cluster.deltas import Parcel
from lowmem_seq.cluster.layout import Layout
from lowmem_seq.cluster.outer import Contribution, OuterStep, SharedWeights
from lowmem_seq.cluster.replica import Replica
from lowmem_seq.compiled import library
from lowmem_seq.config import RunConfig, load_preset, override, validate
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.prepare import prepare
from lowmem_seq.files import read_json, write_json
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.memory.governor import SilentGovernor
from lowmem_seq.memory.plan import Plan, Setting
from lowmem_seq.memory.readings import system_reader
from lowmem_seq.runs.folder import create_run
from lowmem_seq.training.device import choose_precision
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training
from lowmem_seq.training.workers import Range

DATA_FILE = ROOT / "docs" / "rounds.json"
EPOCHS = 6
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One way to share the samples."""

    speeds: tuple[int, ...]
    """Of the machines, as ratios; one alone trains as ever."""
    steps: int
    """That the fastest machine does in a round."""
    rate: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

    @property
    def name(self) -> str:
        """For people."""
        if len(self.speeds) == 1:
            return "one machine"
        told = f"{len(self.speeds)} machines, {':'.join(map(str, self.speeds))}, {self.steps} steps a round"
        if self.momentum:
            return told + f", {'Nesterov' if self.nesterov else 'momentum'} {self.momentum:g} at rate {self.rate:g}"
        return told + (f", rate {self.rate:g}" if self.rate != 1 else "")


ROWS = (Row((1,), 1), Row((1, 1), 1), Row((1, 1), 10), Row((1, 1), 100), Row((4, 1), 100))


class Given:
    """The samples of one machine's turn."""

    validates = is_over = False
    saved_bytes = 0

    def __init__(self) -> None:
        self.ranges: list[Range] = []
        self.samples_done = 0

    def before_step(self) -> None:
        """Nothing is due within a turn."""

    def take(self, samples: int) -> list[Range]:
        """Return the next step's."""
        del samples
        self.samples_done = self.ranges[0][1]
        return [self.ranges.pop(0)]

    def trained(self, ranges: Sequence[Range], seconds: float) -> None:
        """The turn counts its steps."""

    def writers(self) -> Mapping[str, Callable[[Path], None]]:
        """Nothing is saved."""
        return {}

    def does(self, what: str) -> None:
        """Nobody is to be told."""

    def end(self, reached: bool) -> None:
        """Nobody is to be told."""


def make_config(data: str, seed: int, epochs: int) -> RunConfig:
    """Return Small on the four classes with a short schedule."""
    settings = load_preset("small")
    for assignment in (
        f"data.source={data}",
        f"data.classes=[{FOUR}]",
        f"seed={seed}",
        f"recipe.epochs={epochs}",
    ):
        override(settings, assignment)
    return validate(settings)


def open_machines(folder: Path, config: RunConfig, pack: Pack, count: int) -> list[Training]:
    """Return the trainings of so many machines, all at the same first weights."""
    run = create_run(folder, config)
    record = {"format_version": 1, "source": config.data.source, "pack": str(pack.folder)}
    write_json(run.data_file, {**record, "fingerprint": pack.fingerprint})
    cores = usable_cores(None)
    setting = Setting(config.recipe.effective_batch // cores, cores)
    plan = Plan(
        device="cpu",
        precision=choose_precision("auto", "cpu"),
        micro_batch=setting.micro_batch,
        workers=setting.workers,
        recomputed_layers=0,
        threads=1,
        allocator="keep",
        chosen=setting,
        cap_bytes=10**10,
        cap_source="given",
        others_bytes=0,
        data_limit_bytes=None,
        predicted_peak_bytes=0,
        predicted_images_per_second=0.0,
        lstm_path="function" if library() is None else "native",
    )
    governor = SilentGovernor(system_reader(), 0, plan.cap_bytes)
    machines = [open_training(run, plan, Channel(listen=False), governor) for _ in range(count)]
    for one in machines:
        one.source = Given()
    return machines


def train(machines: Sequence[Training], row: Row) -> None:
    """Train the whole schedule, in rounds."""
    total, batch = machines[0].total_steps * machines[0].batch, machines[0].batch
    tensors = [{name: value.detach().numpy() for name, value in one.state.parameters.items()} for one in machines]
    layout = Layout.of(tensors[0])
    first = np.empty(layout.elements, np.float32)
    layout.flatten(tensors[0], first)
    codec = CODECS["int8"]
    hub = SharedWeights(layout, codec, OuterStep(row.rate, row.momentum, row.nesterov), first.copy())
    replicas = [Replica(layout, codec, first.copy()) for _ in machines]
    position = 0
    while position < total:
        done = []
        for one, speed in zip(machines, row.speeds, strict=True):
            assert isinstance(one.source, Given)
            start = position
            for _ in range(max(1, round(row.steps * speed / max(row.speeds)))):
                if position < total:
                    one.source.ranges.append((position, position + batch))
                    position += batch
            for _ in list(one.source.ranges):
                assert one.train_step()
            done.append(position - start)
        if len(machines) > 1:
            merge(hub, replicas, tensors, done)


def merge(
    hub: SharedWeights, replicas: Sequence[Replica], tensors: Sequence[Mapping[str, Any]], done: Sequence[int]
) -> None:
    """Close a round."""
    brought = {}
    for number, (replica, own) in enumerate(zip(replicas, tensors, strict=True)):
        if done[number]:
            replica.snapshot(own)
            parcel = Parcel(replica.chunks)
            for index in range(parcel.chunks.count):
                parcel.put(index, replica.chunk(index))
            brought[str(number)] = Contribution(done[number], parcel)
    update = hub.merge(brought)
    for number, (replica, own) in enumerate(zip(replicas, tensors, strict=True)):
        replica.receive(update, merged=bool(done[number]))
        replica.correct(own)


def measure(data: str, row: Row, seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """Return the test accuracy and loss of the first machine's averaged weights at the end, and the seconds."""
    began = time.monotonic()
    config = make_config(data, seed, epochs)
    pack = prepare(data, config.data.image_size)
    with tempfile.TemporaryDirectory() as place:
        machines = open_machines(Path(place) / "run", config, pack, len(row.speeds))
        train(machines, row)
        result, _ = machines[0].evaluate_part(machines[0].parts.test)
    assert result is not None
    return {"accuracy": result.accuracy, "loss": result.loss, "seconds": time.monotonic() - began}


def page(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "| what | test accuracy | standard deviation | test loss | seeds |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, seeds in results["rows"].items():
        accuracies = [one["accuracy"] for one in seeds.values()]
        spread = f"{100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else "-"
        loss = statistics.mean(one["loss"] for one in seeds.values())
        lines.append(f"| {name} | {statistics.mean(accuracies):.2%} | {spread} | {loss:.4f} | {len(seeds)} |")
    told = f"`python -m benchmarks.rounds` at {results['commit']}: Small on four classes, {EPOCHS} epochs, int8"
    return "\n".join([*lines, "", f"{told}; {describe_machine(results['machine'])}."])


def main() -> None:
    """Measure what is missing until the time is over, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10, as a folder or zip of images")
    parser.add_argument("--minutes", type=float, default=25.0, help="of one piece")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    results = read_json(DATA_FILE) if DATA_FILE.exists() else {"rows": {}}
    results |= {"machine": machine(), "commit": commit()}
    for seed in SEEDS:
        for row in ROWS:
            seeds = results["rows"].setdefault(row.name, {})
            if str(seed) in seeds:
                continue
            if time.monotonic() > until:
                print("time is over; the same command goes on")
                return
            seeds[str(seed)] = measure(options.data, row, seed)
            write_json(DATA_FILE, results)
            print(row.name, seed, seeds[str(seed)], flush=True)
    put_between_marks("rounds", page(results))
    print(page(results))


if __name__ == "__main__":
    main()
