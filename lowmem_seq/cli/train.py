"""`lowmem-seq train` and `lowmem-seq resume`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import typer
from msgspec import structs
from rich.console import Console
from rich.text import Text

from lowmem_seq.channel import SECONDS_TO_SAVE
from lowmem_seq.cli.cluster import (
    HostOption,
    JoinOption,
    Part,
    PortOption,
    have_token,
    others_of,
    read_part,
    require_images,
    with_images,
)
from lowmem_seq.cli.engine import ModeOption, make_run_of_rank, open_run_of_rank, refuse_pauses, run_path_of
from lowmem_seq.cli.help import DATA, MACHINE, OUTPUT, TRAINING
from lowmem_seq.cli.plan import show_plan
from lowmem_seq.cli.screen import SessionScreen
from lowmem_seq.cli.settings import (
    BackgroundOption,
    ClassesOption,
    DataOption,
    DeviceOption,
    EffectiveBatchOption,
    EpochsOption,
    ImageSizeOption,
    KeepAwakeOption,
    LogWithOption,
    MaxRamOption,
    MaxRestartsOption,
    MicroBatchOption,
    OnlyBetweenOption,
    PauseOnBatteryOption,
    PrecisionOption,
    PresetArgument,
    QuietOption,
    RunDirArgument,
    SetOption,
    StepsOption,
    laptop_settings,
    lasting_source,
    lay_micro_batch,
    lay_over,
    needs_another_plan,
    settings_from,
    split_classes,
)
from lowmem_seq.cli.terminal import make_console
from lowmem_seq.cli.weights import find_initial
from lowmem_seq.cluster.rank import Rank
from lowmem_seq.config import RunConfig, validate
from lowmem_seq.errors import StoppedError, UsageError
from lowmem_seq.files import sha256_of
from lowmem_seq.report.summary import summarise
from lowmem_seq.runs.environment import describe_environment, environment_changes
from lowmem_seq.runs.folder import RunFolder, create_run, default_run_path, open_run
from lowmem_seq.runs.happenings import result_in, tell
from lowmem_seq.runs.trackers import require_tracker
from lowmem_seq.supervisor import session, trainer
from lowmem_seq.supervisor.cluster import Cluster
from lowmem_seq.supervisor.laptop import Laptop
from lowmem_seq.supervisor.rank import train_rank
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.units import format_bytes, format_seconds


def train(
    preset: PresetArgument,
    data: DataOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    max_ram: MaxRamOption = None,
    run_dir: Path | None = typer.Option(
        None,
        metavar="DIR",
        help="A new folder. [default: runs/PRESET-DATE-TIME]",
        rich_help_panel=OUTPUT,
    ),
    init_from: Path | None = typer.Option(
        None,
        metavar="RUN|FILE",
        help="Begin with the weights of another run.",
        rich_help_panel=TRAINING,
    ),
    epochs: EpochsOption = None,
    steps: StepsOption = None,
    seed: int | None = typer.Option(
        None, metavar="N", help="Key of every random draw. [default: 0]", rich_help_panel=TRAINING
    ),
    checkpoint_every: str | None = typer.Option(
        None,
        metavar="TIME",
        help="200steps, 5min or auto. [default: 5min]",
        rich_help_panel=OUTPUT,
    ),
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    effective_batch: EffectiveBatchOption = None,
    micro_batch: MicroBatchOption = None,
    max_restarts: MaxRestartsOption = None,
    log_with: LogWithOption = None,
    set_: SetOption = None,
    pause_on_battery: PauseOnBatteryOption = None,
    only_between: OnlyBetweenOption = None,
    background: BackgroundOption = None,
    keep_awake: KeepAwakeOption = None,
    quiet: QuietOption = False,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Measure and show the plan, train nothing.", rich_help_panel=OUTPUT
    ),
    host: HostOption = False,
    port: PortOption = None,
    join: JoinOption = None,
    mode: ModeOption = "auto",
) -> None:
    """Train a model within a cap on memory.

    Examples:
        lowmem-seq train small --data shapes --max-ram 2GB    # drawn pictures
        lowmem-seq train small --data photos --max-ram 4GB    # yours: CLASS/file
        lowmem-seq train small --join 192.168.1.20:29500      # the host's images
    """
    flags = {
        "data.source": lasting_source(data),
        "data.classes": split_classes(classes),
        "data.image_size": image_size,
        "machine.max_ram_bytes": max_ram,
        "recipe.epochs": epochs,
        "steps": steps,
        "seed": seed,
        "checkpoint.every": checkpoint_every,
        "machine.device": device,
        "machine.precision": precision,
        "machine.max_restarts": max_restarts,
        "machine.log_with": log_with,
        "recipe.effective_batch": effective_batch,
        **laptop_settings(pause_on_battery, only_between, background, keep_awake),
    }
    require_tracker(log_with)
    config = settings_from(preset, flags, set_ or [], micro_batch)
    initial = find_initial(init_from, config)
    console = make_console(sys.stdout, soft_wrap=True)
    part, around = read_part(host, port, join, console, mode, config.machine.device)
    require_images(config, part)
    if dry_run:
        show_plan(config, quiet)
        return
    config = with_images(config, part, data is not None, console)
    if init_from is not None and initial is not None:
        config = structs.replace(config, init_from=str(init_from.absolute()), init_sha256=sha256_of(initial))
    invitation = have_token(part) if isinstance(part, Part) else ""  # before anything is made
    if isinstance(part, Rank):
        refuse_pauses(config.machine)
        whole, run = make_run_of_rank(run_dir or run_path_of(config.name, around), part, config, initial)
        if _is_finished(whole, console):  # and the launcher starts all again for another rank's sake
            return
    else:
        run = create_run(run_dir or default_run_path(config.name, Path("runs")), config, initial)
    again = isinstance(part, Rank) and part.attempt > 0  # its plan is made, and smaller where memory ran out
    _run_session(run, config, console, quiet, plan_anew=not again, part=part, invitation=invitation)


def resume(
    run_dir: RunDirArgument,
    data: str | None = typer.Option(
        None, metavar="FOLDER|ZIP", help="Where the same images are now.", rich_help_panel=DATA
    ),
    max_ram: str | None = typer.Option(None, metavar="SIZE", help="Another cap: 4GB.", rich_help_panel=MACHINE),
    epochs: int | None = typer.Option(
        None, metavar="N", help="Another length of the run.", rich_help_panel=TRAINING
    ),
    steps: int | None = typer.Option(
        None, metavar="N", help="Another number of optimizer steps.", rich_help_panel=TRAINING
    ),
    device: DeviceOption = None,
    micro_batch: MicroBatchOption = None,
    max_restarts: MaxRestartsOption = None,
    pause_on_battery: PauseOnBatteryOption = None,
    only_between: OnlyBetweenOption = None,
    background: BackgroundOption = None,
    keep_awake: KeepAwakeOption = None,
    log_with: LogWithOption = None,
    quiet: QuietOption = False,
    host: HostOption = False,
    port: PortOption = None,
    join: JoinOption = None,
    mode: ModeOption = "auto",
) -> None:
    """Go on with a run, from its newest checkpoint that verifies.

    Examples:
        lowmem-seq resume runs/small-20261122-230000
        lowmem-seq resume runs/small-20261122-230000 --max-ram 4GB  # with less
        lowmem-seq resume runs/small-20261122-230000 --epochs 60    # for longer
    """
    require_tracker(log_with)
    console = make_console(sys.stdout, soft_wrap=True)
    resumed = RunFolder(run_dir)
    part, _ = read_part(host, port, join, console, mode, device or _device_of(resumed), resumed)
    whole, run = open_run_of_rank(run_dir, part) if isinstance(part, Rank) else (open_run(run_dir),) * 2
    settings = run.config.to_settings()
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps both give the run's length.", "give one of them")
    flags = {
        "data.source": lasting_source(data),
        "machine.max_ram_bytes": max_ram,
        "recipe.epochs": epochs,
        "steps": steps,
        "machine.device": device,
        "machine.max_restarts": max_restarts,
        **laptop_settings(pause_on_battery, only_between, background, keep_awake),
        "machine.log_with": log_with,
    }
    lay_over(settings, flags)
    if epochs is not None:
        settings["steps"] = None
    lay_micro_batch(settings, micro_batch)
    config = with_images(validate(settings), part, is_named=True, console=console)
    if isinstance(part, Rank):
        refuse_pauses(config.machine)
    again = isinstance(part, Rank) and part.attempt > 0  # what was changed was changed by the first attempt
    replan = needs_another_plan(run.config.machine, config.machine) or (micro_batch is not None and not again)
    if epochs is None and steps is None and _is_finished(whole, console):
        return
    changes = {key: value for key, value in flags.items() if value is not None}
    if micro_batch is not None:
        changes["machine.micro_batch"] = micro_batch
    invitation = have_token(part, run) if isinstance(part, Part) else ""
    _run_session(run, config, console, quiet, plan_anew=replan, changes=changes, part=part, invitation=invitation)


def _device_of(run: RunFolder) -> str:
    """Return what a run, which may not lie here, is computed on."""
    return run.config.machine.device if run.config_file.is_file() else "auto"


def _is_finished(run: RunFolder, console: Console) -> bool:
    """Return whether a run has reached its end; then that is said."""
    summary = summarise(run)
    if summary["state"] != "finished":
        return False
    console.print(Text(f"{run.path} is finished: {result_in(summary)}"))
    console.print(Text(f"more: {run.resume_command} --epochs N"))
    return True


def _run_session(
    run: RunFolder,
    config: RunConfig,
    console: Console,
    quiet: bool,
    plan_anew: bool,
    changes: dict[str, Any] | None = None,
    part: Part | Rank | None = None,
    invitation: str = "",
) -> None:
    says_less = quiet or (isinstance(part, Rank) and not part.is_first)  # the first rank's screen is that of all
    path = shlex.quote(str(run.path))
    with StopSignals() as stops, run.locked():
        run.events.append("session_opened", supervisor_pid=os.getpid())

        def take_up() -> None:
            _wait_for_an_earlier_trainer(run, stops, console)
            if changes:
                _write_changes(run, config, changes, plan_anew)
            _tell_of_another_environment(run, console)

        try:
            with (
                SessionScreen(console, run, config, says_less, invitation) as screen,
                Laptop(run, config.machine, screen, stops) as laptop,
                others_of(run, config, part, screen, stops) as others,
            ):
                plan = session.prepare(run, config, screen, stops, plan_anew, others, take_up)
                screen.show_plan(plan)
                if isinstance(part, Rank):
                    code = train_rank(run, part, plan, screen, stops, laptop)
                else:
                    meanwhile = others.hear if isinstance(others, Cluster) else lambda: None
                    code = trainer.train(run, plan, screen, stops, config.machine.max_restarts, laptop, meanwhile)
        except KeyboardInterrupt:
            code = trainer.STOPPED
        summary = summarise(run)
    if code == trainer.STOPPED:
        saved = summary["saved_step"]
        done = f"after step {saved:,}, which is saved" if saved else "before anything was to be saved"
        if isinstance(part, Rank) and not part.is_first:
            raise StoppedError(f"{part} has stopped with the others.", "launch all of them again, with resume")
        several = "   goes on with one process; with several, launch that" if isinstance(part, Rank) else ""
        raise StoppedError(f"stopped on request {done}.", run.resume_command + several)
    if code == trainer.LEFT_AT_ONCE:
        stands = "the last checkpoint stands" if summary["saved_step"] else "nothing was saved yet"
        console.print(Text(f"left at once; {stands}.\n\nhint: {run.resume_command}"))
        raise typer.Exit(trainer.LEFT_AT_ONCE)
    if isinstance(part, Rank) and not part.is_first:
        return
    console.print(Text(result_in(summary), style="bold green"))
    if not quiet:
        time_used, peak = format_seconds(summary["wall_seconds"]), format_bytes(summary["peak_tree_bytes"])
        console.print(Text(f"training took {time_used}; peak RAM of all processes {peak}"))
        console.print(Text(f"weights: {run.weights_file}"))
        console.print(Text(f"next: lowmem-seq report {path}"))


def _wait_for_an_earlier_trainer(run: RunFolder, stops: StopSignals, console: Console) -> None:
    """Return when no trainer is there: one whose supervisor was killed may still be saving.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        RunLockedError: it is there after all the time that it may take.
    """
    until = time.monotonic() + SECONDS_TO_SAVE
    while run.has_a_writer():
        if time.monotonic() > until:
            with run.writing():  # says what is wrong
                return
        if until - time.monotonic() > SECONDS_TO_SAVE - 1:
            console.print(Text("waiting for the trainer of an earlier session to save and end"))
        stops.wait(1.0)
        stops.raise_if_any()


def _write_changes(run: RunFolder, config: RunConfig, changes: dict[str, Any], plan_anew: bool) -> None:
    """Write changed settings, all but the images' place: that one is kept once the images were found there."""
    if plan_anew:  # first, so that a plan for other settings is never taken up
        run.forget_plan()
    run.events.append("config_changed", changes=changes)
    source = run.config.data.source
    run.write_config(structs.replace(config, data=structs.replace(config.data, source=source)))


def _tell_of_another_environment(run: RunFolder, console: Console) -> None:
    """Say, and record, that a run goes on with other versions or on another machine than it was started with."""
    try:
        before = run.read_json(run.environment_file)
    except UsageError:  # it is for people; nothing is computed by it
        before = None
    changes = {} if before is None else environment_changes(before, describe_environment())
    if changes:
        told = tell(run.events.append("environment_changed", changes=changes))
        assert told is not None
        console.print(Text(f"note: {told.text}", style="yellow"))
