"""`lowmem-seq predict`: what a run's model takes pictures for."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer
from rich.table import Table
from rich.text import Text

from lowmem_seq.cli.progress import progress_bar
from lowmem_seq.cli.settings import DeviceOption, JsonOption, RunDirArgument
from lowmem_seq.cli.terminal import harmless, make_console, print_data
from lowmem_seq.cli.weights import (
    CapOption,
    choose_weights,
    prepare_for_torch,
    read_cap,
    read_device,
    say_how_the_cap_is_kept,
)
from lowmem_seq.errors import DataError, DiskError, UsageError
from lowmem_seq.files import writing
from lowmem_seq.runs.folder import RunFolder, open_run

if TYPE_CHECKING:  # torch
    from lowmem_seq.checkpoint.weights import UsableWeights
    from lowmem_seq.data.dataset import Skipped
    from lowmem_seq.training.inference import Prediction

CLASS_WIDTH, SURE_WIDTH = 18, 6
"""Columns of the table, in characters. The others share the rest, so that the rows of all batches are in line."""


class Output(Protocol):
    """Where predictions go, batch by batch."""

    def add(self, predictions: list[Prediction]) -> None:
        """Take in the next ones."""


def predict(
    run_dir: RunDirArgument,
    images: list[Path] = typer.Argument(help="Images, folders, or zips of them.", metavar="IMAGE..."),
    top: int = typer.Option(
        3, min=1, metavar="N", help="Classes to tell of each image. [default: 3]", show_default=False
    ),
    csv_file: Path | None = typer.Option(None, "--csv", help="Write a table to this file.", metavar="FILE"),
    max_ram: CapOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run's model takes pictures for.

    Folders are read with all that is below them. What can't be read is said and passed over.

    Examples:
        lowmem-seq predict runs/small-20261122-230000 cat.jpg
        lowmem-seq predict runs/small-20261122-230000 holiday --csv holiday.csv
    """
    cap_bytes, wanted_device, run = read_cap(max_ram), read_device(device), open_run(run_dir)
    if as_json and csv_file is not None:
        raise UsageError("--json and --csv are two forms of one answer.", "give one of them")
    if csv_file is not None and (csv_file.is_dir() or not csv_file.absolute().parent.is_dir()):
        raise UsageError(f"{csv_file} can't be a file: there is no such folder, or it is one.", "--csv FILE.csv")
    from lowmem_seq.data.dataset import Skipped, silent
    from lowmem_seq.data.inputs import read_inputs, require_inputs

    require_inputs(images)
    weights = choose_weights(run)
    prepare_for_torch()
    from lowmem_seq.training.inference import Classifier, predictions, under_cap
    from lowmem_seq.training.trained import open_trained

    trained = open_trained(run, weights)
    classifier = Classifier(trained, run, wanted_device)
    kept, skipped = min(top, len(trained.classes)), Skipped()
    seen = unreadable = 0
    with (
        under_cap(cap_bytes) as enforced,
        open_output(run, weights, kept, csv_file, as_json) as output,
        progress_bar() if csv_file is not None else contextlib.nullcontext(silent) as progress,
    ):
        say_how_the_cap_is_kept(cap_bytes, enforced)
        for batch in predictions(classifier, read_inputs(images, trained.image_size, skipped), kept):
            output.add(batch)
            seen += len(batch)
            unreadable += sum(prediction.fault is not None for prediction in batch)
            progress("looking at the pictures", seen, None)
    tell_the_end(seen, unreadable, skipped, csv_file)


def tell_the_end(seen: int, unreadable: int, skipped: Skipped, csv_file: Path | None) -> None:
    """Say on standard error what was passed over, and where a file was written.

    Raises:
        DataError: no picture could be read.
    """
    console = make_console(sys.stderr, soft_wrap=True)
    for reason, count in skipped.reasons.items():
        console.print(Text(f"passed over: {count:,} ({reason})", style="yellow"))
    if unreadable == seen:
        raise DataError(
            f"none of the {seen:,} images could be read." if seen else "there is no image there.",
            "give JPEG, PNG, BMP, GIF, WEBP, TIFF or PPM files, or folders or zips that hold such",
        )
    if unreadable:
        console.print(Text(f"warning: {unreadable:,} of {seen:,} images could not be read", style="bold yellow"))
    if csv_file is not None:
        console.print(Text(f"{seen:,} images: {csv_file}"))


@contextlib.contextmanager
def open_output(
    run: RunFolder, weights: UsableWeights, kept: int, csv_file: Path | None, as_json: bool
) -> Iterator[Output]:
    """Give where the predictions go: a CSV file, JSON, or a table.

    Raises:
        DiskError: the file can't be written; what was at its place before stands.
    """
    if csv_file is not None:
        try:
            with writing(csv_file) as file:
                text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
                yield CsvOutput(text, kept)
                text.detach()  # flushes; `writing` has still to sync the file
        except OSError as error:
            raise DiskError(
                f"{csv_file} can't be written: {error.strerror}.", "choose another: --csv FILE"
            ) from error
    elif as_json:
        told = {"run": str(run.path), "weights": str(weights.path.relative_to(run.path)), "step": weights.step}
        output = JsonOutput()
        print_data(json.dumps(told)[:-1] + ', "images": [')
        yield output
        print_data("\n]}\n")
    else:
        yield TableOutput(f"{run.path}: {weights.told}")


class CsvOutput:
    """A line an image: its name, classes and probabilities in turn, and why it could not be read."""

    def __init__(self, file: io.TextIOWrapper, kept: int) -> None:
        self._writer, self._kept = csv.writer(file), kept
        ranks = range(1, kept + 1)
        columns = (name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}"))
        self._writer.writerow(["image", *columns, "error"])

    def add(self, predictions: list[Prediction]) -> None:
        """See Output."""
        for one in predictions:
            cells = [cell for name, probability in one.top for cell in (name, f"{probability:.6f}")]
            cells += [""] * (2 * self._kept - len(cells))
            self._writer.writerow([one.image, *cells, one.fault or ""])


class JsonOutput:
    """An object an image in one list."""

    def __init__(self) -> None:
        self._is_first = True

    def add(self, predictions: list[Prediction]) -> None:
        """See Output."""
        for one in predictions:
            top = [{"class": name, "probability": probability} for name, probability in one.top]
            told = {"image": one.image, "predictions": top if one.fault is None else None, "error": one.fault}
            print_data(("\n" if self._is_first else ",\n") + json.dumps(told))
            self._is_first = False


class TableOutput:
    """A line an image for people."""

    def __init__(self, title: str) -> None:
        self._console = make_console(sys.stdout)
        self._console.print(Text(harmless(title, one_line=True)), soft_wrap=True)
        self._console.print()
        self._is_first = True

    def add(self, predictions: list[Prediction]) -> None:
        """See Output."""
        table = Table(box=None, header_style="bold", pad_edge=False, expand=True, show_header=self._is_first)
        self._is_first = False
        table.add_column("image", overflow="fold", ratio=1)
        table.add_column("shows", overflow="fold", width=CLASS_WIDTH)
        table.add_column("sure", justify="right", width=SURE_WIDTH)
        table.add_column("or", overflow="fold", ratio=1, style="dim")
        for one in predictions:
            name = Text(harmless(one.image, one_line=True))
            if not one.top:
                table.add_row(name, Text("passed over", style="bold red"), "", Text(one.fault or ""))
                continue
            (best, sure), *others = one.top
            alternatives = ", ".join(f"{other} {probability:.1%}" for other, probability in others)
            table.add_row(
                name,
                Text(harmless(best, one_line=True), style="bold"),
                f"{sure:.1%}",
                Text(harmless(alternatives, one_line=True)),
            )
        self._console.print(table)
