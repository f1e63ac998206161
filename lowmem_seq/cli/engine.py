"""What engine mode has to do with a command: whether it is meant, this process's rank, and where its files lie."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from lowmem_seq.cli.help import SEVERAL_MACHINES
from lowmem_seq.cluster.launch import Launch
from lowmem_seq.cluster.launchers import DEFAULT_PORT
from lowmem_seq.cluster.rank import Rank, folder_of
from lowmem_seq.cluster.surroundings import Surroundings
from lowmem_seq.config import MachineConfig, RunConfig
from lowmem_seq.errors import ClusterError, UsageError, nearest
from lowmem_seq.files import make_folder, write_json
from lowmem_seq.runs.environment import describe_environment
from lowmem_seq.runs.folder import RunFolder, create_run, open_run

Mode = Literal["auto", "laptop", "engine"]
MODES: tuple[Mode, ...] = ("auto", "laptop", "engine")
ModeOption = Annotated[
    str,
    typer.Option(
        metavar="MODE",
        help="laptop, engine (exact gradients) or auto.",
        show_default=False,
        rich_help_panel=SEVERAL_MACHINES,
    ),
]
LOOPBACK = "127.0.0.1"


def rank_in(
    mode: str,
    launch: Launch,
    around: Surroundings,
    by_flags: bool,
    has_code: Callable[[], bool],
    cards: Callable[[], int],
) -> Rank | None:
    """Return this process's place in a world whose processes compute each step together; None in laptop mode.

    `auto` takes engine mode where a launcher started several processes on a machine; and where it started one on
    each of several machines, this one has a card for CUDA, and there is no join code, which laptop mode would need:
    then the ranks measure the network when they meet, and one that is slow is an error (meeting.py).

    Args:
        mode: what `--mode` was given.
        launch: what was asked for, and what formed.
        around: what can be seen of it.
        by_flags: `--host` or `--join` was given, which are of laptop mode.
        has_code: returns whether there is a join code, in the environment or of the session before.
        cards: returns how many CUDA cards there are to compute on.

    Raises:
        UsageError: there is no such mode, or it contradicts the flags.
        ClusterError: engine mode is asked for, and there is no world of several processes.
    """
    if mode not in MODES:
        raise UsageError(f"there is no mode {mode!r}.", nearest(mode, list(MODES)) or "auto, laptop or engine")
    if mode == "engine" and by_flags:
        raise UsageError("--host and --join are of laptop mode.", "leave them out, or --mode engine")
    place = _place_in_world(launch)
    if mode == "engine" and place is None:
        raise ClusterError(_why_no_world(launch), how_to_launch(cards() if launch.launcher == "none" else 0))
    if place is None or mode == "laptop" or by_flags:
        return None
    several_here = launch.formed > (launch.machines or 1)
    if mode == "auto" and not several_here and (not cards() or has_code()):
        return None
    environment = around.environment
    return Rank(
        *place,
        address=environment.get("MASTER_ADDR") or launch.address or LOOPBACK,
        port=int(environment.get("MASTER_PORT") or launch.port or DEFAULT_PORT),
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0),
        store_is_there=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        needs_fast_network=mode == "auto" and not several_here,
    )


def _place_in_world(launch: Launch) -> tuple[int, int, int, int] | None:
    """Return this process's number, and of how many, among all and on its machine; None where it stands alone.

    A launcher that starts one process on each machine without a world (accelerate, on CPUs) has told all the same
    which of them this is.
    """
    if launch.formed > 1:
        return launch.process_rank, launch.formed, launch.local_rank, launch.local_formed
    machines, rank = launch.machines, launch.machine_rank
    if machines is None or machines < 2 or rank is None or launch.processes not in (None, machines):
        return None
    return rank, machines, 0, 1


def _why_no_world(launch: Launch) -> str:
    asked = launch.processes or 1
    told = (
        f"{asked} processes were asked for ({launch.found['processes']}), and this one was started alone"
        if asked > 1
        else "this one was started alone"
    )
    return f"engine mode needs several processes that know of each other: {told}."


def how_to_launch(cards: int) -> str:
    """Return how several processes are started on one machine: one for each of its cards, if it has several."""
    if cards > 1:
        return f"torchrun --nproc_per_node {cards} -m lowmem_seq train ..."
    return (
        "torchrun --nproc_per_node 2 -m lowmem_seq train ...   (on a CPU accelerate launch starts several "
        "processes by ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m lowmem_seq train "
        "...)"
    )


def run_path_of(name: str, around: Surroundings) -> Path:
    """Return `runs/NAME-DATE-TIME` by the launcher's start, which all processes of a machine know alike.

    Raises:
        UsageError: the launcher can't be seen.
    """
    began = None if around.starter is None else around.starter.began_unix_seconds
    if began is None:
        raise UsageError(
            "several processes train one run here, and the launcher, whose start would name it, can't be seen.",
            "name it: --run-dir runs/NAME",
        )
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(began))}"


def make_run_of_rank(
    path: Path, rank: Rank, config: RunConfig, initial: Path | None = None
) -> tuple[RunFolder, RunFolder]:
    """Return the run as far as it is known on this machine, and the folder that a rank begins in.

    Where the launcher starts all again, they are the ones there were.

    Raises:
        UsageError: the run's folder is there already and not empty.
    """
    if rank.is_first:
        is_there = rank.attempt > 0 and (path / "config.yaml").is_file()
        run = open_run(path) if is_there else create_run(path, config, initial)
        return run, run
    own = _own_folder(path, rank, config)
    return RunFolder(path) if (path / "config.yaml").is_file() else own, own


def refuse_pauses(settings: MachineConfig) -> None:
    """See that a rank is not to pause by itself: it would end all the others.

    Raises:
        UsageError: it is.
    """
    if settings.pause_on_battery or settings.hours is not None:
        raise UsageError(
            "in engine mode all processes compute each step together, so none can pause by itself.",
            "--no-pause-on-battery --only-between always, or --mode laptop",
        )


def open_run_of_rank(path: Path, rank: Rank) -> tuple[RunFolder, RunFolder]:
    """Return the run that is to go on, as far as it is known on this machine, and the folder of this rank.

    Raises:
        UsageError: nothing of the run is here.
    """
    own = folder_of(path, rank)
    if (path / "config.yaml").is_file() or not (own / "config.yaml").is_file():
        if not path.exists():
            raise UsageError(
                f"{rank} finds nothing of the run: there is no folder {path}.",
                "copy config.yaml of machine 0's run folder there",
            )
        run = open_run(path)
        return run, run if rank.is_first else _own_folder(path, rank, run.config)
    return RunFolder(own), RunFolder(own)


def _own_folder(path: Path, rank: Rank, config: RunConfig) -> RunFolder:
    """Return the folder of a rank that is not the first, with these settings; a plan for others is forgotten."""
    run = RunFolder(folder_of(path, rank))
    make_folder(run.path)
    if not run.config_file.is_file():
        write_json(run.environment_file, describe_environment())
        run.write_config(config)
    elif run.config != config:
        run.forget_plan()
        run.write_config(config)
    return run
