"""Surroundings as a launcher would leave them, on a machine with the address 192.168.1.5."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from lowmem_seq.cluster.launchers import read_command
from lowmem_seq.cluster.surroundings import Starter, Surroundings

HERE = "192.168.1.5"
ELSEWHERE = "192.168.1.7"
NAMES = {
    "macbook.local": frozenset({ELSEWHERE}),
    "hp": frozenset({"127.0.1.1"}),  # this machine's own name, as Debian's hosts file has it
    "hp.home": frozenset({HERE, "fd00::5"}),
}
ACCELERATE = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_USE_CPU": "False",
    "OMP_NUM_THREADS": "1",
}
NOBODY = Path("/nobody-has-this-home")


def surroundings(
    environment: Mapping[str, str] | None = None,
    command: str = "",
    home: Path = NOBODY,
    starter_environment: Mapping[str, str] | None = None,
    cores: int | None = 4,
) -> Surroundings:
    """What a process with this environment sees, whose parent has this command line."""
    read = read_command(tuple(shlex.split(command)))
    return Surroundings(
        environment=environment or {},
        starter=None if read is None else Starter(read, starter_environment),
        addresses=frozenset({HERE, "fd00::5"}),
        addresses_of=lambda name: NAMES.get(name, frozenset()),
        home=home,
        cores=cores,
    )


def told_by_accelerate(address: str = HERE, port: int = 29500) -> dict[str, str]:
    """What a process gets from accelerate that starts one process a machine."""
    return {**ACCELERATE, "MASTER_ADDR": address, "MASTER_PORT": str(port)}


def told_by_torchrun(
    machine_rank: int,
    machines: int = 2,
    local_rank: int = 0,
    local: int = 1,
    address: str = HERE,
    port: int = 29500,
) -> dict[str, str]:
    """What a process gets from torchrun, and from accelerate with --multi_gpu."""
    return {
        "RANK": str(machine_rank * local + local_rank),
        "WORLD_SIZE": str(machines * local),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local),
        "GROUP_RANK": str(machine_rank),
        "GROUP_WORLD_SIZE": str(machines),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(machine_rank * local + local_rank),
        "ROLE_WORLD_SIZE": str(machines * local),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
