"""What there is to choose from: sizes, workers, recomputed layers, allocators and LSTM paths of a run here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lowmem_seq.compiled import library
from lowmem_seq.config import RunConfig, Sequencer2DConfig
from lowmem_seq.errors import UsageError
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.memory.footprint import Facts, layer_shares
from lowmem_seq.memory.plan import LSTM_PATHS, MOST_WORKERS, NATIVE_LSTM, TORCH_LSTM, Setting

SMALL_IMAGE = 64
SMALLEST_OF_SMALL = 8
"""Smaller micro-batches of small images are slow; they are tried only where this one doesn't fit."""


@dataclass(frozen=True)
class Space:
    """What there is to choose from."""

    facts: Facts
    effective_batch: int
    cores: int
    wanted: int | None
    """The micro-batch that the user gave."""
    allocators: tuple[str, ...]
    """The fastest first, the one that needs least memory last."""
    shares: tuple[float, ...]
    """Of the kept activations, by layer."""
    lstm_paths: tuple[str, ...] = (TORCH_LSTM,)
    """The one that needs least memory first."""

    @property
    def is_small(self) -> bool:
        """Whether the images are small."""
        return self.facts.image_size <= SMALL_IMAGE

    @property
    def workers(self) -> list[int]:
        """The numbers of workers to try, most first."""
        return worker_counts(self.cores, self.effective_batch, self.wanted, on_cpu=self.facts.device == "cpu")

    @property
    def least(self) -> list[Setting]:
        """The settings of which one needs least memory: small layers keep less than recomputing them takes."""
        kept = Setting(self.wanted or 1, 1)
        recomputed = replace(kept, recomputed_layers=self.facts.layers)
        return [recomputed, kept] if self.is_small else [recomputed]


def make_space(config: RunConfig, facts: Facts, allocators: tuple[str, ...]) -> Space:
    """Return what there is to choose from for a run."""
    return Space(
        facts,
        config.recipe.effective_batch,
        usable_cores(config.machine.threads, config.machine.background),
        config.machine.micro_batch,
        allocators,
        layer_shares(config.model, config.data.image_size),
        lstm_paths(config, facts.device),
    )


def lstm_paths(config: RunConfig, device: str) -> tuple[str, ...]:
    """Return how a run's LSTMs can be computed: our function reads two axes, and was measured on CPUs only.

    Raises:
        UsageError: compiled cells are wanted, and there are none.
    """
    wanted = config.machine.lstm_path
    if not isinstance(config.model, Sequencer2DConfig) or device != "cpu":
        return (TORCH_LSTM,)
    is_compiled = library() is not None
    if wanted == "auto":
        return LSTM_PATHS if is_compiled else LSTM_PATHS[1:]
    if wanted == NATIVE_LSTM and not is_compiled:
        raise UsageError(
            "the compiled part of lowmem-seq is missing or of other sources, and machine.lstm_path is 'native'.",
            "install lowmem-seq again where there is a C compiler, or take --set machine.lstm_path=auto",
        )
    return (wanted,)


def worker_counts(cores: int, effective_batch: int, wanted: int | None, on_cpu: bool) -> list[int]:
    """Return the numbers of workers to try, most first: one a core (up to MOST_WORKERS), and one alone.

    Args:
        cores: how many may be used.
        effective_batch: images in a step.
        wanted: the micro-batch that the user gave; no more workers than a step has of them.
        on_cpu: a GPU is kept busy by one worker.
    """
    micro_batches = effective_batch if wanted is None else math.ceil(effective_batch / wanted)
    fitting = [count for count in range(1, MOST_WORKERS + 1) if cores % count == 0 and count <= micro_batches]
    most = max(fitting) if on_cpu else 1
    return [most, 1] if most > 1 else [1]


def candidate_sizes(effective_batch: int, workers: int, wanted: int | None, smallest: int) -> list[int]:
    """Return the micro-batches to look at first, smallest first.

    Either the wanted one, or powers of two from `smallest` up to the share of the batch that falls to one worker.
    """
    if wanted is not None:
        return [min(wanted, effective_batch)]
    share = math.ceil(effective_batch / workers)
    sizes = [2**power for power in range(share.bit_length()) if 2**power < share]
    return [*(size for size in sizes if size >= smallest), share]


def even_sizes(effective_batch: int, workers: int) -> list[int]:
    """Return the micro-batches that cut a step into rounds of equal work for all workers, smallest first.

    They are even from four on, so that images that are mixed with each other stay together.
    """
    rounds = range(1, math.ceil(effective_batch / workers) + 1)
    sizes = {math.ceil(effective_batch / (workers * count)) for count in rounds}
    return sorted({size if size < 4 else min(size + size % 2, effective_batch) for size in sizes})
