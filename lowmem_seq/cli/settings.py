"""From what was typed to the settings of a run: a preset, and the flags laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec import structs

from lowmem_seq.cli import completion
from lowmem_seq.cli.help import DATA, MACHINE, OUTPUT, TRAINING
from lowmem_seq.config import MachineConfig, RunConfig, lay, load_preset, override, validate
from lowmem_seq.data.catalogue import CATALOGUE, HOST
from lowmem_seq.errors import UsageError

PresetArgument = Annotated[
    str,
    typer.Argument(
        metavar="PRESET|FILE",
        help="small, small-plus, medium, ... or a YAML file.",
        autocompletion=completion.presets,
    ),
]
RunDirArgument = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="The run's folder.", autocompletion=completion.runs)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER|ZIP",
        help="One of `data list`, or your images.",
        rich_help_panel=DATA,
        autocompletion=completion.datasets,
    ),
]
ClassesOption = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Only these, in this order. [default: all]", rich_help_panel=DATA),
]
ImageSizeOption = Annotated[
    int | None, typer.Option(metavar="N", help="Side that images are brought to, in pixels.", rich_help_panel=DATA)
]
MaxRamOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Cap, as 6GB. [default: 70% of the free]",
        rich_help_panel=MACHINE,
    ),
]
EpochsOption = Annotated[
    int | None, typer.Option(metavar="N", help="Times that every training image is seen.", rich_help_panel=TRAINING)
]
StepsOption = Annotated[
    int | None, typer.Option(metavar="N", help="End after so many optimizer steps.", rich_help_panel=TRAINING)
]
DeviceOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="auto, cpu, mps or cuda.", rich_help_panel=MACHINE)
]
PrecisionOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="auto, fp32 or bf16.", rich_help_panel=MACHINE)
]
EffectiveBatchOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Images in an optimizer step.", rich_help_panel=TRAINING),
]
MicroBatchOption = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Images at once. [default: what is fastest]", rich_help_panel=MACHINE),
]
MaxRestartsOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="In a row, before it gives up. [default: 10]", rich_help_panel=MACHINE),
]
KeepAwakeOption = Annotated[
    bool | None,
    typer.Option(
        "--keep-awake/--no-keep-awake", help="Keep the machine from sleeping. [default]", rich_help_panel=MACHINE
    ),
]
PauseOnBatteryOption = Annotated[
    bool | None,
    typer.Option(
        "--pause-on-battery/--no-pause-on-battery",
        help="Save and wait while it is not plugged in.",
        rich_help_panel=MACHINE,
    ),
]
OnlyBetweenOption = Annotated[
    str | None,
    typer.Option(
        metavar="HH:MM-HH:MM",
        help="Train in these hours only: 22:00-07:00.",
        rich_help_panel=MACHINE,
    ),
]
BackgroundOption = Annotated[
    bool | None,
    typer.Option(
        "--background/--no-background",
        help="Let others go first, leave them a core.",
        rich_help_panel=MACHINE,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting: --set recipe.weight_decay=0.1",
        rich_help_panel=TRAINING,
        autocompletion=completion.settings,
    ),
]
LogWithOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A tracker to tell as well: tensorboard, ...", rich_help_panel=OUTPUT),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.", rich_help_panel=OUTPUT)]
"""What several commands understand alike."""


def settings_from(preset: str, flags: dict[str, Any], assignments: list[str], micro_batch: str | None) -> RunConfig:
    """Return the checked settings of a preset or file, with `--set` assignments and then flags laid over it.

    Raises:
        UsageError: no such preset, or a key or value that is not valid.
    """
    settings = load_preset(preset)
    for assignment in assignments:
        override(settings, assignment)
    lay_over(settings, flags)
    lay_micro_batch(settings, micro_batch)
    return validate(settings)


BESIDE_THE_PLAN = ("max_restarts", "keep_awake", "pause_on_battery", "only_between")
"""Settings of the machine that nothing is measured for."""


def laptop_settings(
    pause_on_battery: bool | None, only_between: str | None, background: bool | None, keep_awake: bool | None
) -> dict[str, Any]:
    """Return the settings that these flags are for."""
    return {
        "machine.pause_on_battery": pause_on_battery,
        "machine.only_between": only_between,
        "machine.background": background,
        "machine.keep_awake": keep_awake,
    }


def needs_another_plan(before: MachineConfig, now: MachineConfig) -> bool:
    """Whether a run's plan was made for other settings than those that it is resumed with."""
    beside = BESIDE_THE_PLAN if now.threads is None else (*BESIDE_THE_PLAN, "background")
    return structs.replace(now, **{name: getattr(before, name) for name in beside}) != before


def lay_over(settings: dict[str, Any], flags: dict[str, Any]) -> None:
    """Lay the flags that were given over nested settings, in place."""
    for key, value in flags.items():
        if value is None:
            continue
        lay(settings, key, value)


def lay_micro_batch(settings: dict[str, Any], text: str | None) -> None:
    """Lay `--micro-batch` over nested settings, in place.

    Raises:
        UsageError: it is no number, and not `auto`.
    """
    if text is None:
        return
    if text != "auto" and not text.isdecimal():
        raise UsageError(f"--micro-batch {text!r} is no number of images.", "--micro-batch 32 or auto")
    lay(settings, "machine.micro_batch", None if text == "auto" else int(text))


def lasting_source(source: str | None) -> str | None:
    """Return a path as an absolute one, so that a run can be resumed from another folder; names stay."""
    if source is None or source in CATALOGUE or source == HOST:
        return source
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def split_classes(text: str | None) -> list[str] | None:
    """Return the class names of `--classes`."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
