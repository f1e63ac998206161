"""From what was typed to the settings of a run: a preset, and the flags laid over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lowmem_seq.config import RunConfig, lay, load_preset, override, validate
from lowmem_seq.data.catalogue import CATALOGUE
from lowmem_seq.errors import UsageError

PresetArgument = Annotated[
    str, typer.Argument(help="A preset (small, medium, vanilla, small-plus, ...) or a YAML file.")
]
DataOption = Annotated[str | None, typer.Option(help="A catalogue name, a folder or a zip. Default: the preset's.")]
ClassesOption = Annotated[str | None, typer.Option(help="Only these classes: airplane,bird,cat.")]
ImageSizeOption = Annotated[int | None, typer.Option(help="Side of the images, in pixels.")]
MaxRamOption = Annotated[str | None, typer.Option(help="Cap on the memory of the whole run: 6GB, 6GiB, 800MB.")]
EpochsOption = Annotated[int | None, typer.Option(help="Times that every training image is seen.")]
StepsOption = Annotated[int | None, typer.Option(help="Optimizer steps; ends the run.")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, mps or cuda.")]
PrecisionOption = Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")]
EffectiveBatchOption = Annotated[int | None, typer.Option(help="Images in an optimizer step.")]
MicroBatchOption = Annotated[str | None, typer.Option(help="Images computed at once, or auto.")]
MaxRestartsOption = Annotated[int | None, typer.Option(help="Deaths of the trainer in a row before giving up.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the config.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
"""What `train`, `plan` and `resume` understand alike."""


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
    if source is None or source in CATALOGUE:
        return source
    path = Path(source).expanduser()
    return str(path.absolute()) if path.exists() else source


def split_classes(text: str | None) -> list[str] | None:
    """Return the class names of `--classes`."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
