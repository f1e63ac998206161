"""A process's place in a world that a launcher made: which of how many it is, and where they meet.

Engine mode: each process that `torchrun` or `accelerate launch` starts is one rank, with a supervisor, a plan and a
trainer of its own; only the trainers form the world. So its place is written down in the run folder, where the
planner and the trainer find it. Rank 0's folder is the run; the others keep theirs within it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from msgspec import structs

from lowmem_seq.cluster.membership import cluster_folder
from lowmem_seq.config import RunConfig
from lowmem_seq.errors import UsageError
from lowmem_seq.files import make_folder, remove_leftover, write_json
from lowmem_seq.memory.cores import usable_cores
from lowmem_seq.runs.folder import RANKS, RunFolder

MOST_RANKS = 4096
HIGHEST_PORT = 2**16 - 1
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Rank:
    """One process of a world."""

    number: int
    of: int
    """Processes of the world."""
    local: int
    """Its number on its machine."""
    local_of: int
    """Processes on its machine; they share its cores and the cap."""
    address: str
    """Where rank 0 is."""
    port: int
    attempt: int = 0
    """How often the launcher has started all of them again."""
    store_is_there: bool = False
    """Whether the launcher itself listens at the port (torchrun's store); else rank 0 does."""
    needs_fast_network: bool = False
    """Whether engine mode was taken by itself, for the case that the network between the machines is fast."""

    @property
    def is_first(self) -> bool:
        """Whether this one keeps the run: its checkpoints, its weights, its screen."""
        return self.number == 0

    @property
    def meeting_port(self) -> int:
        """Where the ranks' supervisors meet, at rank 0: beside the port, at which a launcher may listen."""
        return self.port + 1 if self.port < HIGHEST_PORT else self.port - 1

    @property
    def leads_another_machine(self) -> bool:
        """Whether this is the first rank of a machine that is not rank 0's."""
        return self.local == 0 and self.number > 0

    @property
    def makes_the_store(self) -> bool:
        """Whether what all ranks share lies in this one's memory."""
        return self.is_first and not self.store_is_there

    def __str__(self) -> str:
        return f"rank {self.number} of {self.of}"

    def variables(self) -> dict[str, str]:
        """Return what Accelerate takes its place in a world from."""
        return {
            "RANK": str(self.number),
            "WORLD_SIZE": str(self.of),
            "LOCAL_RANK": str(self.local),
            "LOCAL_WORLD_SIZE": str(self.local_of),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }

    def own_part(self, config: RunConfig) -> RunConfig:
        """Return a run's settings as this rank plans by them: its part of a step, of the cores, and of the cap."""
        machine, recipe = config.machine, config.recipe
        cap = machine.max_ram_bytes
        even = -(-recipe.effective_batch // self.of // 2) * 2  # as the largest of equal parts is (shares.py)
        return structs.replace(
            config,
            machine=structs.replace(
                machine,
                threads=max(1, usable_cores(machine.threads, machine.background) // self.local_of),
                max_ram_bytes=None if cap is None else max(1, cap // self.local_of),
            ),
            recipe=structs.replace(recipe, effective_batch=min(even, recipe.effective_batch)),
        )

    def gpu(self, environment: Mapping[str, str]) -> str:
        """Return what CUDA shall show this rank: one device for each process of a machine, in their order."""
        if VISIBLE_GPUS not in environment:
            return str(self.local)
        shown = [name.strip() for name in environment[VISIBLE_GPUS].split(",") if name.strip()]
        return shown[self.local] if self.local < len(shown) else ""


def folder_of(run: Path, rank: Rank) -> Path:
    """Return where a rank keeps what is its own."""
    return run if rank.is_first else run / RANKS / f"rank-{rank.number}"


def take_rank(run: RunFolder, rank: Rank) -> None:
    """Write down this process's place in the session that begins."""
    make_folder(cluster_folder(run))
    write_json(_file(run), asdict(rank))


def take_no_rank(run: RunFolder) -> None:
    """Have the session that begins be a world of one."""
    remove_leftover(_file(run))


def read_rank(run: RunFolder) -> Rank | None:
    """Return this process's place in the present session; None where it trains for itself.

    Raises:
        UsageError: the file is damaged.
    """
    value = run.read_json(_file(run))
    if value is None:
        return None
    try:
        rank = Rank(**value)
        numbers = (rank.number, rank.of, rank.local, rank.local_of, rank.port, rank.attempt)
        known = all(type(number) is int and number >= 0 for number in numbers)
        known = (
            known
            and rank.number < rank.of <= MOST_RANKS
            and rank.local < rank.local_of
            and rank.port <= HIGHEST_PORT
        )
        known = known and re.fullmatch(r"[\w.:%-]+", rank.address) is not None
    except TypeError:
        known = False
    if not known:
        raise UsageError(f"{_file(run)} is damaged.", f"delete it, then {run.resume_command}")
    return rank


def planned_config(run: RunFolder) -> RunConfig:
    """Return the settings that this process plans and measures by."""
    rank = read_rank(run)
    return run.config if rank is None else rank.own_part(run.config)


def _file(run: RunFolder) -> Path:
    return cluster_folder(run) / "rank.json"
