"""`lowmem-seq report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer
from rich.text import Text

from lowmem_seq.cli import completion
from lowmem_seq.cli.settings import JsonOption
from lowmem_seq.cli.terminal import harmless, make_console, print_data, print_json
from lowmem_seq.disk import is_trouble
from lowmem_seq.errors import UsageError
from lowmem_seq.files import write_text
from lowmem_seq.report.summary import find_runs, summarise_all
from lowmem_seq.report.table import csv_table, markdown_table, terminal_table
from lowmem_seq.runs.folder import RunFolder


def report(
    run_dirs: list[Path] = typer.Argument(
        None,
        metavar="[RUN_DIR]...",
        help="Run folders. [default: all under ./runs]",
        autocompletion=completion.runs,
    ),
    html: Path | None = typer.Option(None, "--html", metavar="FILE", help="Write one page of all of them."),
    markdown: bool = typer.Option(False, "--markdown", help="Print a Markdown table."),
    csv: bool = typer.Option(False, "--csv", help="Print CSV, a line a run."),
    as_json: JsonOption = False,
) -> None:
    """Show what runs came to: as a table, and as a page with plots.

    Without --html the page of a single run is written into its folder, as report.html.

    Examples:
        lowmem-seq report
        lowmem-seq report runs/small-20261122-230000
        lowmem-seq report --html all.html
    """
    if sum((html is not None, markdown, csv, as_json)) > 1:
        raise UsageError("--html, --markdown, --csv and --json exclude each other.", "give one of them")
    runs = find_runs(run_dirs or [], Path("runs"))
    console = make_console(sys.stdout, soft_wrap=True)
    if html is not None:
        _write_page(runs, html)
        console.print(_told_page(html))
        return
    summaries = summarise_all(runs)
    if as_json:
        print_json(summaries)
    elif markdown:
        print_data(markdown_table(summaries))
    elif csv:
        print_data(csv_table(summaries))
    else:
        console.print(terminal_table(summaries, console.width), soft_wrap=False)
        if run_dirs and len(runs) == 1:
            console.print(_page_beside(runs[0]))
        elif len(runs) > 1:
            console.print(Text("curves of all: the same with --html FILE", style="dim"))


def _page_beside(run: RunFolder) -> Text:
    """Write a run's page into its folder, if that may be written; return what is to be said."""
    try:
        _write_page([run], run.page_file)
    except UsageError as error:
        return Text(harmless(f"{error.message}\npage: lowmem-seq report {shlex.quote(str(run.path))} --html FILE"))
    return _told_page(run.page_file)


def _write_page(runs: list[RunFolder], file: Path) -> None:
    """Write the page of the runs.

    Raises:
        UsageError: it can't be written there.
        OSError: the disk is full or fails.
    """
    from lowmem_seq.report.page import run_page, runs_page  # the templates' library, for those who want a page

    if file.is_dir():
        raise UsageError(f"{file} is a folder.", "name the file of the page: --html report.html")
    page = run_page(runs[0]) if len(runs) == 1 else runs_page(runs)
    try:
        write_text(file, page)
    except OSError as error:
        if is_trouble(error):
            raise
        raise UsageError(
            f"the page can't be written to {file}: {error.strerror}.", "name another file: --html report.html"
        ) from error


def _told_page(file: Path) -> Text:
    """Return where the page is; terminals that know links open it from there."""
    shown = Text(harmless(str(file)))
    shown.stylize(f"link {file.resolve().as_uri()}")
    return Text.assemble("page: ", shown)
