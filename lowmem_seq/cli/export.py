"""`lowmem-seq export`: a run's model for other programs, timm first of all."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.text import Text

from lowmem_seq.cli.settings import JsonOption, RunDirArgument
from lowmem_seq.cli.terminal import harmless, make_console, print_json
from lowmem_seq.cli.weights import choose_weights, prepare_for_torch
from lowmem_seq.runs.folder import open_run


def export(
    run_dir: RunDirArgument,
    to: Path | None = typer.Option(None, help="The folder to write. Default: RUN_DIR/export.", metavar="DIR"),
    as_json: JsonOption = False,
) -> None:
    """Write a run's model for other programs.

    Models of timm's kind get timm's names, and a config with which timm.create_model("local-dir:DIR") loads them;
    README.md in the folder says how. Others are loaded by lowmem_seq.models.

    Examples:
        lowmem-seq export runs/small-20261122-230000 --to my-model
    """
    run = open_run(run_dir)
    weights = choose_weights(run)
    prepare_for_torch()
    from lowmem_seq.training.exporting import export_model
    from lowmem_seq.training.trained import open_trained

    exported = export_model(open_trained(run, weights), to or run.path / "export")
    if as_json:
        print_json(
            {
                "run": str(run.path),
                "weights": str(weights.path.relative_to(run.path)),
                "step": weights.step,
                "folder": str(exported.folder),
                "timm_architecture": exported.architecture,
            }
        )
        return
    kind = f"timm's {exported.architecture}" if exported.architecture else "a model of lowmem_seq.models"
    why = "" if exported.architecture else "; timm has none of this kind"
    console = make_console(sys.stdout, soft_wrap=True)
    console.print(Text(harmless(f"{weights.told} of {run.path}, as {kind}{why}", one_line=True)))
    console.print(Text(harmless(f"written: {exported.folder}", one_line=True)))
    console.print(Text(harmless(f"to load it: {exported.folder / 'README.md'}", one_line=True)))
