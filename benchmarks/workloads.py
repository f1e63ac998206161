"""What benchmarks/throughput.py measures: workloads, peers, and the environments that stand for processors."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder

from benchmarks.layers import PROCESSORS
from benchmarks.page import ROOT

PLACE = ROOT / "runs" / "throughput"
WITHOUT_ONEDNN = ROOT / "benchmarks" / "without_onednn"
NOT_OURS = ("OMP_", "KMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES", "ATEN_CPU_CAPABILITY", "ONEDNN_", "DNNL_")
"""Variables that would set a side up otherwise than its users have it; none of them is passed on."""
STEPS_A_TRAIN_EVENT = 20
AS_IT_IS, WITH_AVX2, ONEDNN_OFF = PROCESSORS


@dataclass(frozen=True)
class Workload:
    """What is trained. Steps are timed from the end of step `warm_up_steps` on, `steps` of them."""

    preset: str
    cap: str
    warm_up_steps: int
    steps: int
    micro_batches: tuple[int, ...]
    """Which peers may choose from."""
    tried_batch: int
    """The effective batch of the short runs that they choose by."""
    peers_keep_cap: bool = False
    """Whether a peer takes its fastest micro-batch of those under the cap, or of all."""
    effective_batch: int = 128

    @property
    def event(self) -> str:
        """The event of ours that tells of the end of a step; large images take minutes for 20 steps."""
        return "train" if self.steps % STEPS_A_TRAIN_EVENT == 0 else "checkpoint"


WORKLOADS = {
    "small": Workload("small", "2GB", 20, 80, (128,), 128),
    "sequencer2d_s": Workload("sequencer2d_s", "2GB", 1, 2, (2, 4, 8, 16), 32),
    "sequencer2d_l": Workload("sequencer2d_l", "4GB", 1, 2, (1, 2, 4, 8), 32, peers_keep_cap=True),
}


@dataclass(frozen=True)
class Peer:
    """Something to measure beside ours."""

    module: str
    precisions: tuple[str, ...]
    """Which it may choose from; on a processor without bf16 it is fp32."""
    packages: tuple[str, ...]


PEERS = {
    "plain": Peer("plain", ("fp32",), ("timm",)),
    "plain-bf16": Peer("plain", ("bf16",), ("timm",)),
    "lightning": Peer("lightning_trainer", ("fp32", "bf16"), ("timm", "lightning")),
    "transformers": Peer("transformers_trainer", ("fp32", "bf16"), ("timm", "transformers")),
    "accelerate": Peer("accelerate_loop", (), ("accelerate",)),
}
AS_PLANNED = ("accelerate",)
"""Computes as ours was planned, with its threads and allocator; nothing is left to choose."""

GRID = {
    ("small", AS_IT_IS): tuple(PEERS),
    ("small", WITH_AVX2): ("plain", "lightning", "transformers", "accelerate"),
    ("small", ONEDNN_OFF): ("plain", "accelerate"),
    ("sequencer2d_s", AS_IT_IS): ("plain", "plain-bf16"),
    ("sequencer2d_l", AS_IT_IS): ("plain-bf16",),
    ("sequencer2d_s", WITH_AVX2): ("plain",),
}
"""Which peers are measured, for a workload on a processor."""


def missing_packages(peer: str) -> list[str]:
    """Return the packages of a peer that are neither in the environment nor in LOWMEM_SEQ_PEERS."""
    folders = [*sys.path, os.environ.get("LOWMEM_SEQ_PEERS", "")]
    return [name for name in PEERS[peer].packages if PathFinder.find_spec(name, folders) is None]


def environment_of(processor: str) -> dict[str, str]:
    """Return the environment in which a process sees this processor, set up as its users have it."""
    chosen = PROCESSORS[processor]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    found_first = [] if chosen.onednn else [str(WITHOUT_ONEDNN)]
    paths = [*found_first, str(ROOT), kept.get("PYTHONPATH", "")]
    return {
        **kept,
        **chosen.environment,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUTF8": "1",
        "LOWMEM_SEQ_CACHE": str(PLACE / "cache" / folder_name(processor)),
    }


def folder_name(name: str) -> str:
    """Return a name without what a folder's name had better not hold."""
    return name.replace(",", "").replace(" ", "-")
