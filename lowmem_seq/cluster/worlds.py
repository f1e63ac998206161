"""What launchers put into the environment: the world that they made, and what our own children must not inherit.

Accelerate and torch read these names wherever they find them: a trainer that inherits RANK and WORLD_SIZE of a
launcher waits for a world that nobody forms with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from lowmem_seq.cluster.launchers import Asked, Key, Told
from lowmem_seq.cluster.surroundings import Surroundings
from lowmem_seq.errors import UsageError

Kind = Literal["none", "flags", "environment", "accelerate", "torchrun", "mpi"]
MPI = ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")
SIZES = ("WORLD_SIZE", *(f"{name}_SIZE" for name in MPI))
RANKS = ("RANK", *(f"{name}_RANK" for name in MPI))
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
LOCAL_RANKS = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""What accelerate takes a world from (get_cpu_distributed_information in accelerate/utils/environment.py)."""
OF_A_WORLD = frozenset(
    {
        *SIZES,
        *RANKS,
        *LOCAL_SIZES,
        *LOCAL_RANKS,
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE"),
        *("MASTER_ADDR", "MASTER_PORT", "FORK_LAUNCHED"),
    }
)
PREFIXES_OF_A_WORLD = ("ACCELERATE_", "TORCHELASTIC_", "PET_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Device, precision and all the rest of how a world of one trains stand in its plan."""
OF_ACCELERATE = {"KMP_AFFINITY": "granularity=fine,compact,1,0", "KMP_BLOCKTIME": "1"}
"""What `accelerate launch --cpu` sets for Intel's OpenMP library, whatever was there before; the first binds the
threads of every process to the same cores."""


def is_elastic(environment: Mapping[str, str]) -> bool:
    """Return whether torchrun's agent started this process, which forms its world before it starts anything."""
    return "TORCHELASTIC_RUN_ID" in environment and "RANK" in environment


def launcher_of(around: Surroundings) -> Kind:
    """Return what started this process; where its command line can't be read, by what it leaves behind."""
    environment = around.environment
    if around.starter is not None:
        return around.starter.command.launcher
    if {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"} <= environment.keys():
        return "accelerate"
    if is_elastic(environment):
        return "torchrun"
    size = _number(environment, SIZES)
    if size is not None and size.value > 1:
        return "environment" if "WORLD_SIZE" in environment else "mpi"
    return "environment" if environment.get("MASTER_ADDR") and size is None else "none"


def read_world(environment: Mapping[str, str]) -> Asked:
    """Return what the environment tells: the world that was made, if any, and machine 0's address and port.

    Raises:
        UsageError: a number is none, or some of those that make a world are missing.
    """
    asked: Asked = {}
    if address := environment.get("MASTER_ADDR"):
        asked["address"] = Told(address, "MASTER_ADDR in the environment")
        if port := _number(environment, ("MASTER_PORT",)):
            asked["port"] = port
    size, rank = _number(environment, SIZES), _number(environment, RANKS)
    if size is None or (size.value <= 1 and not is_elastic(environment)):
        return asked
    local_size, local_rank = _number(environment, LOCAL_SIZES), _number(environment, LOCAL_RANKS)
    if local_size is None and local_rank is None:  # what torch's env:// needs is there: one process a machine
        local_size, local_rank = Told(1, "the absence of LOCAL_RANK"), Told(0, "the absence of LOCAL_RANK")
    told: dict[Key, Told | None] = {
        "processes": size,
        "process_rank": rank,
        "local_processes": local_size,
        "local_rank": local_rank,
    }
    if rank is None or local_size is None or local_rank is None or local_size.value < 1:
        raise UsageError(
            f"{size.value} processes ({size.where}), but not all of RANK, LOCAL_RANK and LOCAL_WORLD_SIZE are set, "
            "so it can't be told which one this is, and on which machine.",
            "set them all, or none of them and --host on one machine, --join IP:PORT on the others",
        )
    if not (0 <= local_rank.value < local_size.value and local_rank.value <= rank.value < size.value):
        raise UsageError(
            f"process {rank.value} ({rank.where}) of {size.value} ({size.where}), {local_rank.value} "
            f"({local_rank.where}) of {local_size.value} ({local_size.where}) on its machine: there is none, "
            "counted from 0.",
            "mend them, or set none of them and --host on one machine, --join IP:PORT on the others",
        )
    asked.update({key: value for key, value in told.items() if value is not None})
    asked["machines"] = _number(environment, ("GROUP_WORLD_SIZE",)) or Told(
        -(-size.value // local_size.value), f"{size.where} and {local_size.where}"
    )
    asked["machine_rank"] = _number(environment, ("GROUP_RANK",)) or Told(
        rank.value // local_size.value, f"{rank.where} and {local_size.where}"
    )
    return asked


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> Told | None:
    """Return the first of these variables that is set.

    Raises:
        UsageError: it is no number.
    """
    for name in names:
        if text := environment.get(name):
            if not text.isdecimal():
                raise UsageError(f"the environment's {name} is {text!r}, which is no number.", f"unset {name}")
            return Told(int(text), f"{name} in the environment")
    return None


def environment_of_one(around: Surroundings) -> dict[str, str]:
    """Return the environment for our children in a world of one: without anything that a launcher said of its own.

    Without a launcher it is this process's, as it is.
    """
    if launcher_of(around) == "none":
        return dict(around.environment)
    before = around.starter.environment if around.starter else None
    kept = {
        name: value
        for name, value in around.environment.items()
        if name not in OF_A_WORLD
        and not name.startswith(PREFIXES_OF_A_WORLD)
        and (OF_ACCELERATE.get(name) != value or (before or {}).get(name) == value)
    }
    if threads_asked(around) is None:
        kept.pop("OMP_NUM_THREADS", None)
    return kept


def threads_asked(around: Surroundings) -> int | None:
    """Return the number of threads that the user set by OMP_NUM_THREADS, None where nobody did or a launcher.

    A launcher's own environment tells: what it sets for its children is not in it. Where the system doesn't show
    that one: torchrun sets 1, for several processes on a machine, and accelerate sets 1, or for training on the
    CPU as many as there are cores, where it starts one process a machine.
    """
    text = around.environment.get("OMP_NUM_THREADS", "")
    if not re.fullmatch(r"[1-9]\d{0,3}", text, re.ASCII):
        return None
    threads = int(text)
    launcher = launcher_of(around)
    if launcher not in ("accelerate", "torchrun"):
        return threads
    starter = around.starter
    if starter is not None and starter.command.options.get("num_cpu_threads_per_process"):
        return threads
    if starter is not None and starter.environment is not None:
        return threads if starter.environment.get("OMP_NUM_THREADS") == text else None
    by_the_launcher = (1, around.cores) if launcher == "accelerate" else (1,)
    return None if threads in by_the_launcher else threads
