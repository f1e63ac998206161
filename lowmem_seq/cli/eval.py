"""`lowmem-seq eval`: how good a run's weights are, on its own pictures or on others."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from lowmem_seq.cli import completion
from lowmem_seq.cli.help import DATA
from lowmem_seq.cli.progress import packing_shown, progress_bar
from lowmem_seq.cli.settings import DeviceOption, JsonOption, RunDirArgument, lasting_source
from lowmem_seq.cli.terminal import harmless, make_console, print_json
from lowmem_seq.cli.weights import (
    CapOption,
    choose_weights,
    prepare_for_torch,
    read_cap,
    read_device,
    require_one_of,
    say_how_the_cap_is_kept,
)
from lowmem_seq.errors import DataError
from lowmem_seq.runs.folder import RunFolder, open_run
from lowmem_seq.supervisor.session import have_packed
from lowmem_seq.supervisor.signals import StopSignals

if TYPE_CHECKING:  # torch
    from rich.console import Console

    from lowmem_seq.checkpoint.weights import UsableWeights
    from lowmem_seq.data.dataset import Progress
    from lowmem_seq.data.pack import Pack
    from lowmem_seq.training.evaluation import Evaluation
    from lowmem_seq.training.judging import Subject

PARTS = ("test", "validation", "train", "all")
CONFUSIONS_SHOWN = 3


def eval_(
    run_dir: RunDirArgument,
    data: str | None = typer.Option(
        None,
        metavar="NAME|FOLDER|ZIP",
        help="Other pictures, of classes with the same names.",
        rich_help_panel=DATA,
        autocompletion=completion.datasets,
    ),
    part: str | None = typer.Option(
        None, metavar="PART", help="test, validation, train or all. [default: test]", rich_help_panel=DATA
    ),
    max_ram: CapOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how good a run's model is, class by class.

    Of a run that is not finished, the newest checkpoint is taken. Other pictures without a folder test are all
    looked at.

    Examples:
        lowmem-seq eval runs/small-20261122-230000
        lowmem-seq eval runs/small-20261122-230000 --data photos  # your own
    """
    cap_bytes, wanted_device, run = read_cap(max_ram), read_device(device), open_run(run_dir)
    if part is not None:
        require_one_of("--part", part, PARTS)
    weights = choose_weights(run)
    prepare_for_torch()
    from lowmem_seq.training.inference import Classifier, under_cap
    from lowmem_seq.training.judging import choose_subject, judge
    from lowmem_seq.training.trained import open_trained

    with progress_bar() as progress:
        source = lasting_source(data)
        pack = find_pack(run, source, progress, cap_bytes)
        trained = open_trained(run, weights)
        subject = choose_subject(run, pack, source or run.config.data.source, trained.classes, part)
        classifier = Classifier(trained, run, wanted_device)
        with under_cap(cap_bytes) as enforced:
            say_how_the_cap_is_kept(cap_bytes, enforced)
            result = judge(
                classifier, subject, lambda done: progress("looking at the pictures", done, subject.size)
            )
    if as_json:
        print_json(to_json(run, weights, subject, trained.classes, result))
        return
    show(make_console(sys.stdout), run, weights, subject, trained.classes, result)


def find_pack(run: RunFolder, data: str | None, progress: Progress, cap_bytes: int | None) -> Pack:
    """Return the pack of other pictures, or of the run's own; what is not packed yet is packed by a child.

    Args:
        run: whose weights are measured.
        data: where the other pictures are.
        progress: hears of the packing.
        cap_bytes: what both processes may hold, if that is bounded.

    Raises:
        DataError: there is nothing to pack, or the run's own pictures are not those that it was trained on.
        CapTooSmallError: packing takes more than the cap.
        KeyboardInterrupt: a stop was asked for.
    """
    from lowmem_seq.data.pack import Pack
    from lowmem_seq.training.judging import own_pack

    pack = own_pack(run) if data is None else None
    if pack is not None:
        return pack
    settings, record = run.config.data, run.read_json(run.data_file) or {}
    with StopSignals() as stops:
        folder, fingerprint = have_packed(
            data or settings.source, settings.image_size, packing_shown(progress), stops, cap_bytes=cap_bytes
        )
    if data is None and fingerprint != record.get("fingerprint", fingerprint):
        raise DataError(
            f"{settings.source} holds other images than this run was started with.",
            f"lowmem-seq eval {shlex.quote(str(run.path))} --data PATH   with the images of the start, or others",
        )
    return Pack.open(Path(folder))


def to_json(
    run: RunFolder, weights: UsableWeights, subject: Subject, classes: tuple[str, ...], result: Evaluation
) -> dict[str, Any]:
    """Return the figures as `lowmem-seq eval --json` prints them."""
    return {
        "run": str(run.path),
        "weights": str(weights.path.relative_to(run.path)),
        "step": weights.step,
        "data": subject.source,
        "part": subject.what,
        "images": subject.size,
        "loss": result.loss,
        "accuracy": result.accuracy,
        "classes": list(classes),
        "class_images": [sum(row) for row in result.confusion],
        "class_accuracies": result.class_accuracies,
        "confusion": result.confusion,
    }


def show(
    console: Console,
    run: RunFolder,
    weights: UsableWeights,
    subject: Subject,
    classes: tuple[str, ...],
    result: Evaluation,
) -> None:
    """Print the figures for people: the whole, then a line for each class."""
    where = "all pictures" if subject.what == "all" else f"the {subject.what} part"
    told = f"{run.path}: {weights.told}, on {where} of {subject.source}"
    console.print(Text(harmless(told, one_line=True)), soft_wrap=True)
    console.print(
        Text.assemble(
            ("accuracy ", "dim"),
            (f"{result.accuracy:.2%}", "bold"),
            ("   loss ", "dim"),
            f"{result.loss:.4f}",
            ("   images ", "dim"),
            f"{subject.size:,}",
        )
    )
    console.print()
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("taken for", overflow="fold", style="dim")
    for label, name in enumerate(classes):
        accuracy = result.class_accuracies[label]
        table.add_row(
            Text(harmless(name, one_line=True)),
            f"{sum(result.confusion[label]):,}",
            "" if accuracy is None else f"{accuracy:.1%}",
            Text(harmless(confusions(label, classes, result.confusion[label]), one_line=True)),
        )
    console.print(table)


def confusions(label: int, classes: tuple[str, ...], row: list[int]) -> str:
    """Return what the pictures of a class were most often taken for by mistake: `dog 9, bird 4`."""
    wrong = sorted(
        ((count, name) for other, (count, name) in enumerate(zip(row, classes, strict=True)) if other != label),
        key=lambda pair: -pair[0],
    )
    return ", ".join(f"{name} {count:,}" for count, name in wrong[:CONFUSIONS_SHOWN] if count)
