"""What engine mode has to do with a command: whether it is meant, this process's rank, and where its files lie."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from lowmem_seq.cli.help import SEVERAL_MACHINES
from lowmem_seq.cluster.launch import Launch
from lowmem_seq.cluster.launchers import DEFAULT_PORT
from lowmem_seq.cluster.rank import VISIBLE_GPUS, Rank, folder_of
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
HOW_TO_LAUNCH = (
    "torchrun --nproc_per_node 2 -m lowmem_seq train ...   (on a CPU accelerate launch starts several processes by "
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m lowmem_seq train ...)"
)


def is_engine(mode: str, launch: Launch, by_flags: bool) -> bool:
    """Return whether the processes of a launch compute each step together.

    `auto` does that where a machine has several of them: it has to come out alike on all machines, which have not
    talked yet.

    Args:
        mode: what `--mode` was given.
        launch: what was asked for, and what formed.
        by_flags: `--host` or `--join` was given, which are of laptop mode.

    Raises:
        UsageError: there is no such mode, or it contradicts the flags.
        ClusterError: engine mode is asked for, and no world of several processes was formed.
    """
    if mode not in MODES:
        raise UsageError(f"there is no mode {mode!r}.", nearest(mode, list(MODES)) or "auto, laptop or engine")
    if mode == "engine" and by_flags:
        raise UsageError("--host and --join are of laptop mode.", "leave them out, or --mode engine")
    if mode == "engine" and launch.formed < 2:
        asked = launch.processes or 1
        told = (
            f"{asked} processes were asked for ({launch.found['processes']}), and this one was started alone"
            if asked > 1
            else "this one was started alone"
        )
        raise ClusterError(f"engine mode needs several processes that know of each other: {told}.", HOW_TO_LAUNCH)
    return mode == "engine" or (mode == "auto" and not by_flags and launch.formed > (launch.machines or 1))


def rank_of(launch: Launch, around: Surroundings) -> Rank:
    """Return this process's place in the world that its launcher formed, and leave it its own GPU."""
    environment = around.environment
    rank = Rank(
        number=launch.process_rank,
        of=launch.formed,
        local=launch.local_rank,
        local_of=launch.local_formed,
        address=environment.get("MASTER_ADDR") or launch.address or LOOPBACK,
        port=int(environment.get("MASTER_PORT") or launch.port or DEFAULT_PORT),
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0),
        store_is_there=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
    os.environ[VISIBLE_GPUS] = rank.gpu(environment)
    return rank


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
