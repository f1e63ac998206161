"""What several machines have to do with a command: how it was launched, the token, what is said at the start."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs
from rich.console import Console
from rich.text import Text

from lowmem_seq.cli.engine import LOOPBACK, how_to_launch, rank_in
from lowmem_seq.cli.help import SEVERAL_MACHINES
from lowmem_seq.cli.terminal import harmless, print_data
from lowmem_seq.cluster.launch import Launch, read_launch
from lowmem_seq.cluster.launchers import DEFAULT_PORT
from lowmem_seq.cluster.membership import code_of, take_no_part, take_part
from lowmem_seq.cluster.rank import VISIBLE_GPUS, Rank, take_no_rank, take_rank
from lowmem_seq.cluster.surroundings import Surroundings, local_addresses, look_around
from lowmem_seq.cluster.worlds import environment_of_one
from lowmem_seq.config import RunConfig
from lowmem_seq.data.catalogue import CATALOGUE, HOST
from lowmem_seq.errors import UsageError
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.supervisor.cluster import Cluster
from lowmem_seq.supervisor.meeting import Meeting
from lowmem_seq.supervisor.screen import Screen
from lowmem_seq.supervisor.signals import StopSignals

HostOption = Annotated[
    bool, typer.Option("--host", help="Train with others, and lead them.", rich_help_panel=SEVERAL_MACHINES)
]
PortOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=65535,
        help="Where to listen. [default: 29500]",
        rich_help_panel=SEVERAL_MACHINES,
    ),
]
JoinOption = Annotated[
    str | None,
    typer.Option(
        metavar="IP:PORT",
        help="Train with the machine that hosts.",
        rich_help_panel=SEVERAL_MACHINES,
    ),
]
TOKEN_VARIABLE = "LOWMEM_SEQ_TOKEN"
OWN_FLAGS = (
    *("--port", "--run-dir", "--max-ram", "--micro-batch", "--device", "--max-restarts", "--data", "--set"),
    "--only-between",
)
"""Each machine's own: another one that joins is not told to take the same. The images it gets from the host."""
OWN_SWITCHES = frozenset(
    {"--host"}
    | {f"--{no}{name}" for no in ("", "no-") for name in ("keep-awake", "pause-on-battery", "background")}
)
"""Likewise, without a value."""


@dataclass(frozen=True)
class Part:
    """The part that this machine is to take among several."""

    hosts: bool
    address: str
    """Of the hub, as this machine dials it."""
    port: int


def token() -> None:
    """Make a join code for machines that train together.

    A host makes one by itself; this is for choosing it before, and for launchers.

    Examples:
        export LOWMEM_SEQ_TOKEN=$(lowmem-seq token)
    """
    from lowmem_seq.cluster.token import new_token  # pyzmq, for those who need it

    print_data(new_token().code)


def read_part(
    host: bool,
    port: int | None,
    join: str | None,
    console: Console,
    mode: str = "auto",
    device: str = "auto",
    run: RunFolder | None = None,
) -> tuple[Part | Rank | None, Surroundings]:
    """Return this machine's part, or this process's rank in engine mode, None where it trains alone.

    From here on nothing of a launcher is in the way; what was seen of it is returned as well.

    Args:
        host: `--host` was given.
        port: what `--port` was given.
        join: what `--join` was given.
        console: hears why a process ends that has nothing to do.
        mode: what `--mode` was given.
        device: what the run is to be computed on.
        run: what is resumed, if anything.

    Raises:
        UsageError: what was asked for is ambiguous or contradicts itself.
        ClusterError: engine mode is asked for, and its world was not formed.
        typer.Exit: another process of this machine does the work.
    """
    if port is not None and not host:
        raise UsageError("--port belongs to --host.", f"--join IP:{port} on the other machines")
    around = look_around()
    launch = read_launch(around, host=("" if port is None else str(port)) if host else None, join=join)

    def cards() -> int:
        from lowmem_seq.doctor.card import usable_cards  # the doctor's room, for those who need it

        return usable_cards(around.environment) if device in ("auto", "cuda") else 0

    def has_code() -> bool:
        return _is_given_a_code(around.environment) or (run is not None and bool(code_of(run)))

    rank = rank_in(mode, launch, around, host or join is not None, has_code, cards)
    _clear_environment(around)
    if rank is not None:
        os.environ[VISIBLE_GPUS] = rank.gpu(around.environment)
        return rank, around
    if not launch.leads_its_machine:
        console.print(
            Text(
                f"process {launch.local_rank} of this machine ends here: its first process trains, on all cores "
                "that the plan takes"
            )
        )
        raise typer.Exit
    if launch.several_machines:
        return part_of(launch), around
    if launch.launcher == "none" and mode == "auto" and (count := cards()) > 1:
        console.print(
            Text(
                f"note: this machine has {count} cards for CUDA, and one process computes on one of them; on all: "
                f"{how_to_launch(count)}"
            )
        )
    if (launch.processes or 1) > launch.formed == 1:
        console.print(
            Text(
                f"note: {launch.processes} processes were asked for ({launch.found['processes']}), and one was "
                "started, which trains on all cores that the plan takes"
            )
        )
    return None, around


def part_of(launch: Launch) -> Part:
    """Return the part that a launch of several machines gives this one."""
    port = (launch.port or DEFAULT_PORT) + launch.port_taken
    if launch.hosts:
        return Part(True, LOOPBACK, port)
    assert launch.address is not None
    return Part(False, launch.address, port)


def with_images(config: RunConfig, part: Part | Rank | None, is_named: bool, console: Console) -> RunConfig:
    """Return the settings with the images that this machine takes: the host's, where it joins one and has none.

    Args:
        config: the settings.
        part: this machine's.
        is_named: whether somebody named the dataset; where only the preset does, the host's is taken.
        console: hears where what is named is not here.
    """
    source = config.data.source
    if not _joins(part) or source == HOST:
        return config
    if source in CATALOGUE:
        is_here = is_named
    else:
        is_here = Path(source).expanduser().exists()
        if not is_here:
            console.print(Text(harmless(f"{source} is not on this machine: the host's images are taken")))
    return config if is_here else structs.replace(config, data=structs.replace(config.data, source=HOST))


def require_images(config: RunConfig, part: Part | Rank | None = None) -> None:
    """See that the images are not those of a host where there is none.

    Raises:
        UsageError: they are.
    """
    if config.data.source == HOST and not _joins(part):
        raise UsageError(
            f"--data {HOST} means the images of the machine that hosts, and this one joins none.",
            "--join IP:PORT, or name images that are here: --data PATH",
        )


def _joins(part: Part | Rank | None) -> bool:
    return isinstance(part, Part) and not part.hosts


def _clear_environment(around: Surroundings) -> None:
    """Leave nothing in the environment that a launcher said of a world: our children are worlds of one."""
    kept = environment_of_one(around)
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)


def have_token(part: Part, run: RunFolder | None = None) -> str:
    """See that there is a token, for children by the environment; return how others join, for people.

    That is the environment's, or the one of the session before, or, for a host, a new one.

    Args:
        part: this machine's.
        run: what is resumed, if anything.

    Raises:
        UsageError: a machine that joins has none, or it is no join code.
    """
    from lowmem_seq.cluster.token import new_token, token_from_environment  # pyzmq, for those who need it

    is_given = _is_given_a_code(os.environ)
    if not is_given and run is not None and code_of(run):
        os.environ[TOKEN_VARIABLE] = code_of(run)
    elif not is_given and part.hosts:
        os.environ[TOKEN_VARIABLE] = new_token().code
    code = token_from_environment().code
    command = join_command(sys.argv[1:], own_address(), part.port)
    if is_given:
        return f"On each other machine, with the same {TOKEN_VARIABLE}:\n        {command}"
    return (
        'On each other machine, with this join code (PowerShell: $env:NAME = "CODE"):\n'
        f"        export {TOKEN_VARIABLE}={code}\n        {command}"
    )


def _is_given_a_code(environment: Mapping[str, str]) -> bool:
    return bool(environment.get(TOKEN_VARIABLE, "").strip())


def join_command(words: list[str], address: str, port: int) -> str:
    """Return the command by which another machine joins one that was started with these words.

    Of a run that is resumed, which the other machine may not have, it is that machine's own folder.
    """
    kept: list[str] = []
    left = [part for word in words for part in (word.split("=", 1) if word.startswith(OWN_FLAGS) else [word])]
    while left:
        word = left.pop(0)
        if word == "--set" and not left[0].startswith(("machine.", "cluster.", "checkpoint.")):
            kept += [word, left.pop(0)]
        elif word in OWN_FLAGS:
            left.pop(0)
        elif word not in OWN_SWITCHES:
            kept.append(word)
    if "resume" in kept[:2]:
        kept = ["resume", "ITS_RUN_DIR"]
    return f"lowmem-seq {shlex.join(kept)} --join {address}:{port}"


def own_address() -> str:
    """Return an address by which others reach this machine, as far as it can tell: the first that is not local."""
    private = sorted(local_addresses(), key=lambda text: (":" in text, not text.startswith("192.168."), text))
    return next((text for text in private if ":" not in text), private[0] if private else "ADDRESS")


@contextmanager
def others_of(
    run: RunFolder, config: RunConfig, part: Part | Rank | None, screen: Screen, stops: StopSignals
) -> Iterator[Cluster | Meeting | None]:
    """Give what this session has to do with others, if anything, and end it with the session."""
    if isinstance(part, Rank):
        take_rank(run, part)
    else:
        take_no_rank(run)
    if not isinstance(part, Part):
        take_no_part(run)
    if part is None:
        yield None
        return
    if isinstance(part, Rank):
        with Meeting(run, part, config, screen, stops) as meeting:
            yield meeting
        return
    role, code = "host" if part.hosts else "member", os.environ[TOKEN_VARIABLE]
    membership = take_part(run, role, part.address, part.port, code)  # type: ignore[arg-type]
    with Cluster(run, membership, screen, stops) as cluster:
        yield cluster
