"""`lowmem-seq plan`: what a run would need and how it would be computed here, before anything long begins."""

from __future__ import annotations

import math
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lowmem_seq.cli.cluster import require_images
from lowmem_seq.cli.screen import SessionScreen
from lowmem_seq.cli.settings import (
    BackgroundOption,
    ClassesOption,
    DataOption,
    DeviceOption,
    EffectiveBatchOption,
    EpochsOption,
    ImageSizeOption,
    JsonOption,
    LogWithOption,
    MaxRamOption,
    MicroBatchOption,
    PrecisionOption,
    PresetArgument,
    SetOption,
    StepsOption,
    lasting_source,
    settings_from,
    split_classes,
)
from lowmem_seq.cli.terminal import harmless, make_console, print_json
from lowmem_seq.config import RunConfig
from lowmem_seq.data.cache import cache_folder
from lowmem_seq.disk import free_bytes
from lowmem_seq.files import TEMPORARY_MARK, make_folder
from lowmem_seq.memory.footprint import CATEGORIES, Footprint
from lowmem_seq.memory.forecast import LEAST_SPREAD, Forecast, make_forecast
from lowmem_seq.memory.plan import SHARE_OF_AVAILABLE, Plan
from lowmem_seq.memory.readings import MachineMemory, system_reader
from lowmem_seq.runs.folder import create_run
from lowmem_seq.runs.trackers import require_tracker
from lowmem_seq.supervisor import session
from lowmem_seq.supervisor.planner import Planned, make_plan
from lowmem_seq.supervisor.signals import StopSignals
from lowmem_seq.units import format_bytes, format_rate, format_seconds

WIDEST = 100
EDGES = 2
"""Characters of the bar beside its inside."""
COLOURS = ("cyan", "blue", "magenta", "yellow", "bright_magenta", "bright_blue", "green", "bright_black")
"""Of the categories, in their order."""
LSTM_PATHS = {
    "native": "by our own function with compiled code, which keeps less for backward",
    "function": "by our own function, which keeps less for backward",
    "torch": "by torch's nn.LSTM",
}
ALLOCATORS = {
    "keep": "keeps what is freed, the fastest",
    "default": "the system's own",
    "lean": "lean: gives memory back at once, which takes time",
    "huge": "huge pages",
}


def plan(
    preset: PresetArgument,
    data: DataOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    max_ram: MaxRamOption = None,
    epochs: EpochsOption = None,
    steps: StepsOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    effective_batch: EffectiveBatchOption = None,
    micro_batch: MicroBatchOption = None,
    background: BackgroundOption = None,
    log_with: LogWithOption = None,
    set_: SetOption = None,
    fresh: bool = typer.Option(False, "--fresh", help="Measure anew what was measured here before."),
    as_json: JsonOption = False,
) -> None:
    """Show what a run would need, and how long it would take.

    Examples:
        lowmem-seq plan small --max-ram 2GB
        lowmem-seq plan small --data photos --epochs 10
    """
    flags = {
        "data.source": lasting_source(data),
        "data.classes": split_classes(classes),
        "data.image_size": image_size,
        "machine.max_ram_bytes": max_ram,
        "recipe.epochs": epochs,
        "steps": steps,
        "machine.device": device,
        "machine.precision": precision,
        "recipe.effective_batch": effective_batch,
        "machine.background": background,
        "machine.log_with": log_with,
    }
    require_tracker(log_with)
    show_plan(settings_from(preset, flags, set_ or [], micro_batch), quiet=as_json, fresh=fresh, as_json=as_json)


def show_plan(config: RunConfig, quiet: bool, fresh: bool = False, as_json: bool = False) -> None:
    """Measure what is not known yet, and show the plan; nothing is left but what is remembered.

    Raises:
        KeyboardInterrupt: a stop was asked for.
        LowmemSeqError: the data can't be had, or nothing fits under the cap.
    """
    require_images(config)
    place = cache_folder() / "plans"  # on a disk: the system's folder for temporary files may lie in memory
    make_folder(place)
    console = make_console(sys.stderr if as_json else sys.stdout)
    with tempfile.TemporaryDirectory(prefix=f"run{TEMPORARY_MARK}", dir=place) as folder:
        run = create_run(Path(folder) / "run", config)
        with StopSignals() as stops, SessionScreen(console, run, config, quiet) as screen:
            session.prepare_data(run, config, screen, stops)
            planned = make_plan(run, config, screen, stops, fresh)
    forecast, machine = make_forecast(config, planned.plan, planned.known), system_reader().machine()
    if as_json:
        print_json(to_json(config, planned, forecast, machine))
        return
    width = min(console.width, WIDEST)
    console.print(draw(config, planned, forecast, machine, width, bool(console.color_system)), width=width)


def to_json(config: RunConfig, planned: Planned, forecast: Forecast, machine: MachineMemory) -> dict[str, Any]:
    """Return a plan as `lowmem-seq plan --json` prints it."""
    told = planned.plan.to_json()
    del told["format_version"]
    return {
        "name": config.name,
        "data": config.data.source,
        "image_size": config.data.image_size,
        "effective_batch": config.recipe.effective_batch,
        "accumulation": accumulation(planned.plan, config.recipe.effective_batch),
        **told,
        **{name: value for name, value in asdict(forecast).items() if name != "images_per_second"},
        "images_per_second": forecast.images_per_second,
        "wall_seconds": forecast.seconds,
        "most_wall_seconds": forecast.most_seconds,
        "free_disk_bytes": free_bytes(Path.cwd()),
        "machine_bytes": machine.total_bytes,
        "available_bytes": machine.available_bytes,
    }


def accumulation(plan: Plan, effective_batch: int) -> int:
    """Return how many micro-batches each worker computes for a step, at the most."""
    return math.ceil(effective_batch / (plan.micro_batch * plan.workers))


def draw(
    config: RunConfig, planned: Planned, forecast: Forecast, machine: MachineMemory, width: int, coloured: bool
) -> RenderableType:
    """Return a plan for a terminal.

    Args:
        config: the run's settings.
        planned: its plan, and what it was made from.
        forecast: time and disk.
        machine: its memory now.
        width: columns.
        coloured: whether colours are seen; without them letters tell the categories apart.
    """
    side = config.data.image_size
    title = harmless(f"{config.name} on {config.data.source}, {side}x{side}", one_line=True)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows(config, planned.plan, forecast, machine):
        grid.add_row(label, Text(value))
    footprint, cap = planned.plan.footprint, planned.plan.cap_bytes
    total = footprint.total_bytes
    return Group(
        Text(title, style="bold"),
        Text(),
        bar(footprint, cap, width - EDGES, coloured),
        Text(f"{format_bytes(total)} at the peak, {total / cap:.0%} of the cap of {format_bytes(cap)}"),
        Text(),
        legend(footprint, coloured),
        Text(),
        grid,
    )


def bar(footprint: Footprint, cap_bytes: int, width: int, coloured: bool) -> Text:
    """Return the footprint under its cap as a bar of `width` characters and two edges."""
    text = Text("[")
    done, drawn = 0, 0
    for (key, name), colour in zip(CATEGORIES.items(), COLOURS, strict=True):
        done += getattr(footprint, key)
        end = min(width, round(width * done / cap_bytes))
        letters = letter(name) * (end - drawn)
        text.append(letters, style=f"{colour} on {colour}" if coloured else "")
        drawn = end
    return text.append("." * (width - drawn), style="dim").append("]")


def letter(category: str) -> str:
    """Return the letter that stands for a category."""
    return {"libraries": "L", "activations": "#"}.get(category, category[0].upper())


def legend(footprint: Footprint, coloured: bool) -> Table:
    """Return what the parts of the bar are, in two columns."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(2):
        grid.add_column()
        grid.add_column()
        grid.add_column(justify="right")
        grid.add_column(justify="right")
        grid.add_column(width=2)
    cells: list[list[Text]] = []
    total = max(1, footprint.total_bytes)
    for (key, name), colour in zip(CATEGORIES.items(), COLOURS, strict=True):
        size = getattr(footprint, key)
        style = f"{colour} on {colour}" if coloured else ""
        cells.append(
            [
                Text(letter(name) * 2, style=style),
                Text(NAMES[name]),
                Text(format_bytes(size) if size else "-"),
                Text(f"{size / total:.0%}" if size else "", style="dim"),
                Text(),
            ]
        )
    half = math.ceil(len(cells) / 2)
    for left, right in zip(cells[:half], cells[half:], strict=True):
        grid.add_row(*left, *right)
    return grid


NAMES = {
    "libraries": "libraries",
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "average of weights",
    "data": "images",
    "activations": "activations, scratch",
    "supervisor": "supervisor",
}


def rows(config: RunConfig, plan: Plan, forecast: Forecast, machine: MachineMemory) -> list[tuple[str, str]]:
    """Return label and value of each line below the bar."""
    batch = config.recipe.effective_batch
    given = "given by --max-ram or the settings"
    of_machine = f"{SHARE_OF_AVAILABLE:.0%} of what is free; --max-ram gives another"
    side_by_side = "1 worker" if plan.workers == 1 else f"{plan.workers} workers"
    layers = "no layer" if not plan.recomputed_layers else f"{plan.recomputed_layers} of {plan.layers} layers"
    counts = f"{forecast.checkpoint_count} checkpoints of {format_bytes(forecast.checkpoint_bytes)}"
    return [
        ("cap", f"{format_bytes(plan.cap_bytes)}, {given if plan.cap_source == 'given' else of_machine}"),
        (
            "machine",
            f"{format_bytes(machine.available_bytes)} of {format_bytes(machine.total_bytes)} free now",
        ),
        (
            "step",
            f"micro-batch {plan.micro_batch} x accumulation {accumulation(plan, batch)} x {side_by_side}, "
            f"{batch} images",
        ),
        ("recomputed", f"{layers} in backward"),
        ("allocator", ALLOCATORS[plan.allocator]),
        ("LSTMs", LSTM_PATHS[plan.lstm_path]),
        ("device", f"{plan.device}, {plan.precision}, {plan.workers * plan.threads} cores"),
        ("speed", _speed(forecast)),
        ("time", _time(forecast)),
        (
            "disk",
            f"{format_bytes(forecast.disk_bytes)}: {counts}, and the final weights; "
            f"{format_bytes(free_bytes(Path.cwd()))} are free here",
        ),
    ]


def _speed(forecast: Forecast) -> str:
    told = f"about {format_rate(forecast.images_per_second)} in training"
    if forecast.measurement_count < 2:
        return f"{told}, measured once"
    slowest = format_rate(forecast.slowest_images_per_second)
    return f"{told}; measured {forecast.measurement_count} times, the slowest {slowest}"


def _time(forecast: Forecast) -> str:
    between = f"{format_seconds(forecast.seconds)} to {format_seconds(forecast.most_seconds)}"
    parts = (forecast.evaluation_seconds, forecast.saving_seconds)
    evaluation, saving = (part / max(forecast.seconds, 1e-9) for part in parts)
    return (
        f"{between} for {forecast.epochs:,.3g} epochs ({forecast.total_steps:,} steps), of it {evaluation:.1%} "
        f"evaluation and {saving:.1%} saves; the range is the measured speed's, at least {LEAST_SPREAD:.0%}"
    )
