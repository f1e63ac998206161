"""`lowmem-seq report`."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from lowmem_seq.cli import completion
from lowmem_seq.cli.settings import JsonOption
from lowmem_seq.cli.terminal import make_console, print_data, print_json
from lowmem_seq.report.summary import find_runs, summarise_all
from lowmem_seq.report.table import markdown_table, terminal_table


def report(
    run_dirs: list[Path] = typer.Argument(
        None,
        metavar="[RUN_DIR]...",
        help="Run folders. [default: all under ./runs]",
        autocompletion=completion.runs,
    ),
    markdown: bool = typer.Option(False, "--markdown", help="Print a Markdown table."),
    as_json: JsonOption = False,
) -> None:
    """Show what runs came to, in a table.

    Examples:
        lowmem-seq report
        lowmem-seq report runs/small-20261122-230000
    """
    summaries = summarise_all(find_runs(run_dirs or [], Path("runs")))
    if as_json:
        print_json(summaries)
    elif markdown:
        print_data(markdown_table(summaries))
    else:
        console = make_console(sys.stdout)
        console.print(terminal_table(summaries, console.width))
