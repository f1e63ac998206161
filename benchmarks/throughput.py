"""Images a second of ours beside what a user would take instead: `python -m benchmarks.throughput`, in pieces.

Ours is `lowmem-seq train` as a user runs it, planned before and its images packed before. The peers
(benchmarks/peers/) are timm's same model in a plain loop, in bf16 with the fused optimizer, under Lightning's and
transformers' Trainer, and our own model in a bare loop with Accelerate, which shows what our tool costs. Their
packages lie in the folder that LOWMEM_SEQ_PEERS names (`make peers-benchmark`); a peer without them is passed over.
Both sides take turns in fresh processes, on the same images, effective batch and cores, and what matrix products
reach is measured before each pair. What is timed, see benchmarks/sides.py.

Processors: this one as it is; restricted to AVX2, in fp32, like most small laptops; and with oneDNN off, in fp32,
for a Mac's CPU, where ATen has none.

Small is trained on the images that LOWMEM_SEQ_CIFAR10 names (a folder or zip), or on the embedded shapes of the
same size; the other presets on JPEG files that are drawn here: peers decode them anew in each epoch, and ours packs
them once, before it is timed. What is measured stands in docs/throughput.json, and is not measured again; delete an
entry to have it measured anew.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.caps import draw_pictures
from benchmarks.layers import PROCESSORS
from benchmarks.page import ROOT, commit, machine, put_between_marks
from benchmarks.sides import Choice, OutOfMemoryError, measure_limit, measure_ours, measure_peer
from benchmarks.throughput_page import broken_promises, key_of, page
from benchmarks.workloads import AS_PLANNED, GRID, PEERS, PLACE, WORKLOADS, Workload, folder_name, missing_packages
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import open_parts
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.files import building_folder, make_folder, read_json, write_json
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.units import parse_bytes

DATA_FILE = ROOT / "docs" / "throughput.json"
PICTURES = PLACE / "pictures"
TRAIN_PICTURES, TEST_PICTURES = 11 * 128, 16


def data_of(workload: Workload) -> str:
    """Return what `lowmem-seq train --data` is told."""
    if workload.preset == "small":
        return os.environ.get("LOWMEM_SEQ_CIFAR10") or "shapes"
    if not PICTURES.exists():
        make_folder(PLACE)
        draw_pictures(PICTURES, TRAIN_PICTURES, TEST_PICTURES)
    return str(PICTURES)


def images_for_peers(workload: Workload, run: RunFolder) -> Path:
    """Return the images that a run of ours trains on as peers read them, in whole effective batches."""
    if workload.preset != "small":
        return PICTURES / "train"
    record = read_json(run.data_file)
    folder = PLACE / "images" / str(record["fingerprint"])[:16]
    if not folder.exists():
        config = run.config
        pack = Pack.open(Path(record["pack"]))
        part = open_parts(pack, config.data.classes, config.data.validation_fraction, config.seed).train
        count = part.size // workload.effective_batch * workload.effective_batch
        make_folder(folder.parent)
        with building_folder(folder) as building:
            np.save(building / "images.npy", part.read(np.arange(count)))
            np.save(building / "labels.npy", part.labels[:count])
    return folder


def choices(peer: str, workload: Workload, precision: str) -> list[Choice]:
    """Return what a peer may compute with."""
    precisions = [one for one in PEERS[peer].precisions if one in ("fp32", precision)]
    return [Choice(one, size) for one in precisions for size in workload.micro_batches]


def choose(tried: list[dict[str, Any]], cap_bytes: int | None) -> dict[str, Any]:
    """Return the fastest of some short runs: of those under the cap, if there is one to keep and any keeps it."""
    keeping = [one for one in tried if cap_bytes is None or one["peak_bytes"] <= cap_bytes]
    if not keeping:
        return min(tried, key=lambda one: float(one["peak_bytes"]))
    return max(keeping, key=lambda one: float(one["images_per_second"]))


class Bench:
    """What is measured so far, and what measures more.

    Args:
        data_file: holds it.
        rounds: pairs that are wanted of each peer.
        until: when to end, by the monotonic clock.
        workloads: by name.
    """

    def __init__(self, data_file: Path, rounds: int, until: float, workloads: dict[str, Workload]) -> None:
        self._file, self._rounds, self._until, self._workloads = data_file, rounds, until, workloads
        stored = read_json(data_file) if data_file.exists() else {}
        self.results: dict[str, Any] = {"data": {}, "chosen": {}, "tried": {}, "pairs": {}, **stored}
        self._planned: set[tuple[str, str]] = set()

    def measure(self, wanted: list[tuple[str, str, str]]) -> bool:
        """Measure what is missing, one pair of each peer after the other; return False if time was over before."""
        for number in range(self._rounds):
            for workload, processor, peer in wanted:
                if len(self.results["pairs"].get(key_of(workload, processor, peer), [])) > number:
                    continue
                if time.monotonic() > self._until:
                    return False
                self._measure_pair(workload, processor, peer)
        return True

    def _measure_pair(self, name: str, processor: str, peer: str) -> None:
        """Measure ours, then the peer, and keep both."""
        workload, key = self._workloads[name], key_of(name, processor, peer)
        place = PLACE / folder_name(f"{name} {processor}")
        data = data_of(workload)
        told = "drawn pictures" if name != "small" else "shapes" if data == "shapes" else "CIFAR-10"
        if self.results["data"].setdefault(name, told) != told:
            raise SystemExit(f"{name} was measured on {self.results['data'][name]}; delete {self._file} first")
        if (name, processor) not in self._planned:  # and packed; this run is not counted
            self._planned.add((name, processor))
            measure_ours(workload, processor, data, place / "ours")
        run = RunFolder(place / "ours" / "run")
        if key not in self.results["chosen"]:
            self._choose(key, peer, workload, processor, run, place)
        limit = measure_limit(processor, run)
        ours = measure_ours(workload, processor, data, place / "ours")
        choice = self.results["chosen"][key]
        if peer in AS_PLANNED:
            choice = {"precision": ours["precision"], "micro_batch": ours["micro_batch"]}
        images = images_for_peers(workload, run)
        theirs = measure_peer(peer, workload, processor, Choice(**choice), run, images, place / peer)
        pair = {"ours": ours, "peer": theirs, **limit, "commit": commit(), "machine": machine()}
        self.results["pairs"].setdefault(key, []).append(pair)
        self._save()
        rates = [f"{one['images_per_second']:,.4g}" for one in (ours, theirs)]
        ratio = ours["images_per_second"] / theirs["images_per_second"]
        print(f"{key}: {' and '.join(rates)} images/s, {ratio:.2f} times", flush=True)

    def _choose(self, key: str, peer: str, workload: Workload, processor: str, run: RunFolder, place: Path) -> None:
        """Find out how a peer computes fastest, where there is a choice."""
        allowed = choices(peer, workload, PROCESSORS[processor].precision)
        if len(allowed) < 2:
            self.results["chosen"][key] = vars(allowed[0]) if allowed else None
            return
        images, tried = images_for_peers(workload, run), []
        for choice in allowed:
            with contextlib.suppress(OutOfMemoryError):
                tried.append(measure_peer(peer, workload, processor, choice, run, images, place / peer, tried=True))
        if not tried:
            raise SystemExit(f"{key}: nothing goes through; see {place / peer}")
        best = choose(tried, parse_bytes(workload.cap) if workload.peers_keep_cap else None)
        self.results["tried"][key] = tried
        self.results["chosen"][key] = {name: best[name] for name in ("precision", "micro_batch")}
        self._save()

    def _save(self) -> None:
        write_json(self._file, self.results)


def wanted_pairs(workloads: list[str], processors: list[str], peers: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield what is to be measured, and say what can't be."""
    for (workload, processor), besides in GRID.items():
        if workload not in workloads or processor not in processors:
            continue
        for peer in besides:
            if peer not in peers:
                continue
            if missing := missing_packages(peer):
                print(
                    f"passed over: {peer} beside {workload}, for {' and '.join(missing)} is not installed; "
                    "make peers-benchmark, and name its folder in LOWMEM_SEQ_PEERS",
                    file=sys.stderr,
                )
                continue
            yield workload, processor, peer


def main() -> None:
    """Measure what is missing until the time is over, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--processors", nargs="*", default=list(PROCESSORS), choices=list(PROCESSORS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=5, help="pairs of each peer")
    parser.add_argument("--minutes", type=float, default=25.0, help="of one piece; a pair under way is ended")
    parser.add_argument("--data-file", type=Path, default=DATA_FILE, help="another one leaves docs as they are")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    bench = Bench(options.data_file, options.rounds, until, WORKLOADS)
    wanted = list(wanted_pairs(options.workloads, options.processors, options.peers))
    try:
        done = bench.measure(wanted)
    except LowmemSeqError as error:
        raise SystemExit(f"{error.message}\n\nhint: {error.hint}") from error
    text = page(bench.results)
    print(text)
    if options.data_file == DATA_FILE:
        put_between_marks("throughput", text)
    if not done:
        print("time is over; the same command goes on")
    for fault in broken_promises(bench.results):
        print(f"NOT GOOD: {fault}")


if __name__ == "__main__":
    main()
