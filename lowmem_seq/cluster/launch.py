"""What a user asked for: one machine or several, and which of them this one is.

A launch is told by our own flags (`--host`, `--join`), by the environment that a launcher gives its processes, by
the launcher's command line, by accelerate's config file, and at last by whose address MASTER_ADDR is. What is told
by two of them and differs, or by none, is an error that names the flags: two machines that each take themselves for
the only one would train two models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lowmem_seq.cluster.accelerate_config import config_path, read_config
from lowmem_seq.cluster.launchers import (
    DEFAULT_PORT,
    Asked,
    Key,
    Told,
    asked_by_command,
    read_port,
    split_endpoint,
)
from lowmem_seq.cluster.surroundings import Place, Surroundings
from lowmem_seq.cluster.worlds import Kind, is_elastic, launcher_of, read_world
from lowmem_seq.errors import UsageError

Hardware = Literal["cpu", "multi_gpu"]
HARDWARE: tuple[Hardware, ...] = ("cpu", "multi_gpu")
NO_OWNER: dict[Place, str] = {
    "loopback": "is the same on every machine",
    "everywhere": "is no machine's own",
    "unknown": "is a name that is not known here",
}
WORDS: dict[Key, str] = {
    "machines": "the number of machines",
    "processes": "the number of processes",
    "local_processes": "the number of processes on this machine",
    "machine_rank": "this machine's rank",
    "process_rank": "this process's rank",
    "local_rank": "this process's rank on its machine",
    "address": "machine 0's address",
    "port": "machine 0's port",
}


@dataclass(frozen=True)
class Launch:
    """What was asked for.

    Args:
        launcher: what started this process; `none`: the command itself, for one machine; `flags`: the command
            itself, with `--host` or `--join`; `environment`: somebody who set RANK, WORLD_SIZE and the like.
        machines: how many; None: several, and nobody said how many.
        processes: how many on all machines together; None: nobody said.
        machine_rank: this machine's number; None: nobody said, so that machine 0 has to give it one.
        process_rank: this process's number in the world that the launcher made, 0 where it made none.
        local_rank: this process's number on its machine.
        formed: processes of the world that the launcher made: they have RANK and WORLD_SIZE. 1 where it made none.
        local_formed: those of them on this machine.
        address: machine 0's address or host name; None for one machine, and for `--host`.
        port: machine 0's port; None for one machine.
        hosts: this machine is machine 0.
        port_taken: the launcher itself listens at that port on machine 0 (torchrun's store).
        hardware: what the launcher's `--cpu` or `--multi_gpu`, or its config file, asked for; None: neither.
        found: where each of these was found, in words.
    """

    launcher: Kind = "none"
    machines: int | None = 1
    processes: int | None = None
    machine_rank: int | None = 0
    process_rank: int = 0
    local_rank: int = 0
    formed: int = 1
    local_formed: int = 1
    address: str | None = None
    port: int | None = None
    hosts: bool = True
    port_taken: bool = False
    hardware: Hardware | None = None
    found: Mapping[str, str] = field(default_factory=dict)

    @property
    def several_machines(self) -> bool:
        """More than one machine was asked for."""
        return self.machines != 1

    @property
    def leads_its_machine(self) -> bool:
        """This is the first of its machine's processes, the one that trains where one trains for all."""
        return self.local_rank == 0


def read_launch(around: Surroundings, host: str | None = None, join: str | None = None) -> Launch:
    """Return what was asked for.

    Args:
        around: this process's surroundings.
        host: what `--host` was given: a port, empty for the usual one; None where the flag was not given.
        join: what `--join` was given: an address, with a port or without; None where the flag was not given.

    Raises:
        UsageError: what was told is ambiguous or contradicts itself; the hint names `--host` and `--join`.
    """
    if host is not None and join is not None:
        raise UsageError("--host and --join were both given.", "--host on one machine, --join on the others")
    asked, hardware = _collect(around, compare=host is None and join is None)
    launcher = launcher_of(around)
    processes = _number(asked, "processes") or None
    launch = Launch(
        launcher,
        processes=processes,
        process_rank=_number(asked, "process_rank") or 0,
        local_rank=_number(asked, "local_rank") or 0,
        formed=processes if processes and "process_rank" in asked else 1,
        local_formed=(_number(asked, "local_processes") or 1) if "process_rank" in asked else 1,
        hardware=hardware,
    )
    if host is not None:
        port = read_port(host, "--host") if host else DEFAULT_PORT
        return _by_flag(launch, asked, "--host", None, port)
    if join is not None:
        address, given = split_endpoint(join)
        return _by_flag(launch, asked, "--join", address, given or DEFAULT_PORT)
    if launcher == "none":
        return Launch()
    launch = _count(launch, asked, around)
    if launch.several_machines:
        launch = _place(launch, asked, around)
    return replace(launch, found={key: told.where for key, told in asked.items()})


def _by_flag(launch: Launch, asked: Asked, flag: str, address: str | None, port: int) -> Launch:
    """Return the launch that our own flags ask for; they are the way out of every contradiction, so they win."""
    machines = _number(asked, "machines") or 1
    hosts = flag == "--host"
    return replace(
        launch,
        launcher="flags" if launch.launcher == "none" else launch.launcher,
        machines=machines if machines > 1 else None,
        machine_rank=0 if hosts else 1 if machines == 2 else None,
        address=address,
        port=port,
        hosts=hosts,
        found={
            **{key: told.where for key, told in asked.items()},
            "machine_rank": flag,
            "address": flag,
            "port": flag,
        },
    )


def _collect(around: Surroundings, compare: bool) -> tuple[Asked, Hardware | None]:
    """Return all that was told; where several told the same, the environment's words are kept.

    Args:
        around: this process's surroundings.
        compare: refuse what differs.

    Raises:
        UsageError: the environment tells another thing than the launcher's command line or config file.
    """
    command = around.starter.command if around.starter else None
    told: Asked = {}
    hardware: Hardware | None = None
    if launcher_of(around) == "accelerate":
        path = config_path(around.environment, around.home, command)
        if path is not None:
            file = read_config(path)
            told, hardware = dict(file.asked), "multi_gpu" if file.multi_gpu else "cpu" if file.cpu else None
    if command is not None:
        told.update(asked_by_command(command))
        for wanted in HARDWARE:
            hardware = wanted if wanted in command.options else hardware
    world = read_world(around.environment)
    for key in sorted(told.keys() & world.keys()) if compare else ():
        if key in ("address", "port") and (is_elastic(around.environment) or _number(told, "machines") == 1):
            continue  # who came first may have given its own; and for one machine they don't matter
        said, is_so = told[key], world[key]
        if said.value != is_so.value and (key, said.value) != ("processes", 0):  # 0: as many as there are GPUs
            raise _unclear(f"{WORDS[key]} is {said.value} ({said.where}), but {is_so.value} ({is_so.where}).")
    return {**told, **world}, hardware


def _count(launch: Launch, asked: Asked, around: Surroundings) -> Launch:
    """Return the launch with the machines and processes that were asked for.

    Raises:
        UsageError: the processes can't be shared out evenly to the machines.
    """
    machines, processes = _number(asked, "machines"), launch.processes
    if machines is None:
        address = asked.get("address")
        if address is None or (around.starter is not None and around.place_of(address.value) == "loopback"):
            machines = 1  # the launchers' own default, for which accelerate says 127.0.0.1
            asked["machines"] = Told(1, "the launcher's default")
    local = _number(asked, "local_processes")
    if processes is None and machines is not None and local is not None:
        processes = machines * local
    if machines is not None and not is_elastic(around.environment):  # what was formed is as it is
        if machines < 1:
            raise _unclear(f"{machines} machines were asked for ({asked['machines'].where}).")
        if processes is not None and processes % machines:
            raise _unclear(
                f"{processes} process{'es' * (processes != 1)} ({asked['processes'].where}) can't be shared out "
                f"evenly to {machines} machines ({asked['machines'].where})."
            )
    return replace(launch, machines=machines, processes=processes)


def _place(launch: Launch, asked: Asked, around: Surroundings) -> Launch:
    """Return the launch with machine 0's address and port, and with this machine's rank.

    Raises:
        UsageError: they can't be told, or contradict one another.
    """
    address = asked.get("address")
    if address is None:
        count = asked["machines"]
        raise _unclear(f"{count.value} machines were asked for ({count.where}), but not where machine 0 is.")
    port = asked.setdefault("port", Told(DEFAULT_PORT, "the usual one"))
    place = around.place_of(address.value)
    if "machine_rank" not in asked:
        if place in NO_OWNER:
            raise _unclear(
                f"nothing says which machine this is, and {address.value} ({address.where}), by whose owner it "
                f"could be told, {NO_OWNER[place]}."
            )
        rank = 0 if place == "here" else 1 if launch.machines == 2 else None
        asked["machine_rank"] = Told(rank, f"{address.where} is {'this' if rank == 0 else 'another'} machine's")
    elif not is_elastic(around.environment):  # else there is a world, so this is right
        _check_rank(launch.machines, asked, around)
    rank = _number(asked, "machine_rank")
    return replace(
        launch,
        machine_rank=rank,
        address=address.value,
        port=read_port(port.value, port.where),
        hosts=rank == 0,
        port_taken=around.environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _check_rank(machines: int | None, asked: Asked, around: Surroundings) -> None:
    """Refuse a rank that there is not, or that is another machine's.

    Raises:
        UsageError: see above.
    """
    rank, address = asked["machine_rank"], asked["address"]
    place = around.place_of(address.value)
    if machines is not None and rank.value >= machines:
        count = asked["machines"]
        raise _unclear(
            f"this is machine {rank.value} ({rank.where}), counted from 0, of {machines} ({count.where})."
        )
    if rank.value == 0 and place == "elsewhere":
        here = ", ".join(sorted(around.addresses, key=lambda text: (":" in text, text))) or "none"
        raise _unclear(
            f"this is machine 0 ({rank.where}), and machine 0 has the address {address.value} ({address.where}), "
            f"but this machine's addresses are: {here}."
        )
    if rank.value > 0 and place == "everywhere":
        raise _unclear(f"machine {rank.value} ({rank.where}) can't dial {address.value} ({address.where}).")


def _number(asked: Asked, key: Key) -> int | None:
    return asked[key].value if key in asked else None


def _unclear(message: str) -> UsageError:
    """Return the error for what is ambiguous or contradicts itself, with the way out."""
    return UsageError(
        message,
        f"say which machine hosts by flags, which win: --host {DEFAULT_PORT} on one machine, "
        f"--join IP:{DEFAULT_PORT} on the others",
    )
