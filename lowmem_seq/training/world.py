"""Engine mode: the ranks of one torch.distributed world, which compute each optimizer step together.

A step costs three exchanges: a few numbers of each rank (its loss, whether it asks to stop), and, where all go on,
the sum of the gradients and the norm that counts. Before that nothing is exchanged, so a rank cuts its part into
micro-batches as it likes. All ranks then do the same update, and compare their weights now and then.

Control goes by gloo on any device, gradients by NCCL where every rank computes on CUDA. Whatever is exchanged is
watched (watched.py): a rank that is killed or frozen ends the others within seconds. What travels is neither
encrypted nor authenticated: this is for a trusted network.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowmem_seq.checkpoint.counters import Counters
from lowmem_seq.cluster.pulse import Pulse, Store, tell_leaving
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.cluster.roll_call import Hello, call_roll
from lowmem_seq.cluster.shares import cuts, part_of, speeds_by_kind
from lowmem_seq.cluster.surroundings import interface_towards
from lowmem_seq.data.parts import Part
from lowmem_seq.errors import ClusterError, LowmemSeqError
from lowmem_seq.training.buckets import Buckets
from lowmem_seq.training.evaluation import Tally
from lowmem_seq.training.journal import Journal
from lowmem_seq.training.meeting import NEVER, open_store, prefixed
from lowmem_seq.training.state import TrainingState
from lowmem_seq.training.watched import SECONDS_FOR_A_CAUSE, Watched
from lowmem_seq.training.workers import Range

STEPS_BETWEEN_CHECKS = 50
SECONDS_TO_PART = 5.0
DIGEST_MODULUS = 2**52
"""A digest travels as a float64."""


class World:
    """This process's ranks, itself among them. See `Ranks` for what the loop asks.

    Args:
        rank: this process's.
        hellos: what all ranks said of themselves.
        store: what they share.
        watched: does the exchanges.
        gradients: the group that sums gradients; None: the one that does all else.
        device: where gradients are summed.
    """

    def __init__(
        self,
        rank: Rank,
        hellos: Sequence[Hello],
        store: Any,
        watched: Watched,
        gradients: Any,
        device: torch.device,
    ) -> None:
        self._rank, self._hellos, self._store, self._watched = rank, hellos, store, watched
        self._buckets = Buckets(gradients, device)
        self._backend = "gloo" if gradients is None else "nccl"
        kinds = [(one.machine, str(one.device), str(one.precision)) for one in hellos]
        self._speeds = speeds_by_kind(kinds, [one.images_per_second for one in hellos])
        self._steps = 0

    @property
    def is_first(self) -> bool:
        """See Ranks."""
        return self._rank.is_first

    def record(self, journal: Journal, batch: int) -> None:
        """Record who takes part: each rank, and its samples of a step of `batch`."""
        ends = cuts(batch, self._speeds)
        journal.record(
            "world_formed",
            rank=self._rank.number,
            address=f"{self._rank.address}:{self._rank.port}",
            backend=self._backend,
            ranks=[
                {
                    "machine": one.machine,
                    "device": one.device,
                    "precision": one.precision,
                    "images_per_second": speed,
                    "samples": after - before,
                }
                for one, speed, before, after in zip(self._hellos, self._speeds, ends[:-1], ends[1:], strict=True)
            ],
        )

    def part_of_step(self, ranges: Sequence[Range]) -> list[Range]:
        """See Ranks: a contiguous part, as large as this rank's speed is of all speeds."""
        return part_of(ranges, *self._part_of(sum(end - start for start, end in ranges)))

    def part_to_evaluate(self, part: Part) -> Part:
        """See Ranks."""
        return part.cut(*self._part_of(part.size))

    def _part_of(self, samples: int) -> tuple[int, int]:
        ends = cuts(samples, self._speeds)
        return ends[self._rank.number], ends[self._rank.number + 1]

    def begin_alike(self, state: TrainingState) -> None:
        """See Ranks: the tensors go by the group, the counters by the store."""
        average = {} if state.average is None else state.average.values
        tensors = (*state.parameters.values(), *state.optimizer.state().values(), *average.values())
        self._watched.do(lambda: _broadcast(tensors))
        if self.is_first:
            self._store.set("counters", json.dumps(asdict(state.counters)))
        else:
            state.counters = Counters(**json.loads(self._watched.do(lambda: self._store.get("counters"))))

    def agree(self, loss: float | None, weights: Mapping[str, Tensor]) -> float | None:
        """See Ranks.

        Raises:
            RankLost: another rank has ended or is silent.
            ClusterError: the ranks' weights differ.
        """
        is_due = self._steps % STEPS_BETWEEN_CHECKS == 0
        self._steps += 1
        digest = digest_of(weights) if is_due else 0
        rows = self._gather([0.0 if loss is None else loss, float(loss is None), float(digest)])
        for number, row in enumerate(rows):
            if row[2] != rows[0][2]:
                raise ClusterError(
                    f"the weights of {self._hellos[number].name(number)} are no longer those of "
                    f"{self._hellos[0].name(0)}: they compute the same update differently.",
                    "take equal processors and the same build of torch for all ranks, or --mode laptop",
                )
        return None if any(row[1] for row in rows) else sum(row[0] for row in rows)

    def _gather(self, numbers: list[float]) -> list[list[float]]:
        """Return what all ranks give, in their order."""
        own = torch.tensor(numbers, dtype=torch.float64)
        rows = [torch.zeros_like(own) for _ in range(self._rank.of)]
        self._watched.do(lambda: dist.all_gather(rows, own))
        return [row.tolist() for row in rows]

    def add_up_gradients(self, parameters: Sequence[Tensor]) -> None:
        """See Ranks.

        Raises:
            RankLost: another rank has ended or is silent; the weights are still those before the step.
        """
        self._watched.do(lambda: self._buckets.sum_gradients(parameters))

    def first_s(self, value: float) -> float:
        """See Ranks."""
        given = torch.tensor(value, dtype=torch.float64)
        self._watched.do(lambda: dist.broadcast(given, 0))
        return float(given)

    def total(self, tally: Tally | None) -> Tally | None:
        """See Ranks."""
        own = torch.zeros(2, dtype=torch.float64) if tally is None else tally.as_vector()
        stopped = [row[0] for row in self._gather([float(tally is None)])]
        if any(stopped) or tally is None:
            return None
        self._watched.do(lambda: dist.all_reduce(own))
        return Tally.from_vector(own)

    def leave(self, cause: str) -> None:
        """Tell the others why this rank leaves before the end."""
        leave(self._rank, self._store, cause)

    def part(self) -> None:
        """Wait for all ranks at the end, and dissolve the world."""
        self._watched.do(dist.barrier)
        self._watched.stop()
        self._store.add("parted", 1)
        until = time.monotonic() + SECONDS_TO_PART
        while self.is_first and self._store.add("parted", 0) < self._rank.of and time.monotonic() < until:
            time.sleep(0.01)  # the store ends with this process
        dist.destroy_process_group()


def form_world(
    rank: Rank,
    hello: Hello,
    within_seconds: float,
    lost_after_seconds: float,
    stop_requested: Callable[[], bool],
) -> World:
    """Return the world, once all ranks are there and would train the same.

    Raises:
        ClusterError: one did not come, or would train something else.
        StoppedError: a stop was asked for.
    """
    os.environ.update(rank.variables())  # Accelerate, which is set up later, takes the world for its own
    if name := interface_towards(rank.address, rank.port):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)  # by its host name a machine may be 127.0.0.1 to others
    store = open_store(rank, within_seconds, stop_requested, makes=rank.makes_the_store)
    try:
        hellos = call_roll(rank, hello, store, within_seconds, stop_requested)
        names = [one.name(number) for number, one in enumerate(hellos)]
        ears = open_store(rank, within_seconds, stop_requested)
        watched = Watched(Pulse(ears, rank.number, names, lost_after_seconds))
        connect(rank, watched, store, within_seconds)
        on_cuda = all(one.device == "cuda" for one in hellos)
        group = watched.do(lambda: dist.new_group(backend="nccl")) if on_cuda else None
    except LowmemSeqError as error:
        leave(rank, store, error.message)
        raise
    return World(rank, hellos, store, watched, group, torch.device("cuda" if on_cuda else "cpu"))


def connect(rank: Rank, watched: Watched, store: Any, within_seconds: float) -> None:
    """Have each rank connect to each other one.

    Raises:
        RankLost: another rank has ended or is silent.
        ClusterError: all are there, and some can't reach each other: each listens at a port of its own.
    """

    def init() -> None:
        dist.init_process_group(
            "gloo", store=prefixed("world", store), rank=rank.number, world_size=rank.of, timeout=NEVER
        )

    try:
        watched.do(init, within_seconds)
    except TimeoutError as error:
        raise ClusterError(
            f"all {rank.of} ranks have met at {rank.address}:{rank.port}, but can't all connect to each other "
            f"within {within_seconds:.0f} s.",
            "let every port through between these machines; where one has several networks, name the one between "
            "them: export GLOO_SOCKET_IFNAME=eth0",
        ) from error


def leave(rank: Rank, store: Store, cause: str) -> None:
    """Tell the others why a rank leaves before the end; a store that ends with it stands until they know.

    An exchange that nobody joins any more may hold this process's line to the store, and would for ever.
    """
    telling = threading.Thread(target=tell_leaving, args=(store, rank.number, cause), daemon=True)
    telling.start()
    telling.join(SECONDS_FOR_A_CAUSE)
    if rank.makes_the_store:
        time.sleep(SECONDS_FOR_A_CAUSE)


def _broadcast(tensors: Sequence[Tensor]) -> None:
    """Put the first rank's values in the place of all others'."""
    for tensor in tensors:
        value = tensor.detach().cpu()  # itself, on a CPU
        dist.broadcast(value, 0)
        if value.device != tensor.device:
            tensor.detach().copy_(value)


def digest_of(weights: Mapping[str, Tensor]) -> int:
    """Return a number that differs where any bit of the weights does, but for chance."""
    sums = torch.stack([value.detach().view(torch.int32).sum(dtype=torch.int64) for value in weights.values()])
    digest = 0
    for one in sums.tolist():
        digest = (digest * 1_000_003 + one) % DIGEST_MODULUS
    return digest
