"""`lowmem-seq report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from lowmem_seq.cli import completion
from lowmem_seq.cli.settings import JsonOption
from lowmem_seq.cli.terminal import harmless, make_console, print_data, print_json
from lowmem_seq.disk import is_trouble
from lowmem_seq.errors import UsageError
from lowmem_seq.files import write_text
from lowmem_seq.report.facts import name_of
from lowmem_seq.report.machines import markdown_machines, terminal_tables
from lowmem_seq.report.notes import notes_of
from lowmem_seq.report.reading import read_run
from lowmem_seq.report.shared import Reported, reported
from lowmem_seq.report.summary import find_runs
from lowmem_seq.report.table import csv_table, escaped, markdown_table, terminal_table
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

    Folders of one run that several machines trained are put together.

    Examples:
        lowmem-seq report
        lowmem-seq report runs/small-20261122-230000
        lowmem-seq report runs/small-20261122-230000 hp/small-20261122-230012
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
    found = reported([read_run(run) for run in runs])
    summaries = [one.summary for one in found]
    if as_json:
        print_json(summaries)
    elif markdown:
        print_data("\n".join([markdown_table(summaries), *_markdown_of_machines(found)]))
    elif csv:
        print_data(csv_table(summaries))
    else:
        console.print(terminal_table(summaries, console.width), soft_wrap=False)
        _print_machines(found, console)
        if run_dirs and len(found) == 1:
            console.print(_page_beside(found[0]))
        elif len(found) > 1:
            console.print(Text("curves of all: the same with --html FILE", style="dim"))


def _markdown_of_machines(found: list[Reported]) -> list[str]:
    """Return the tables of machines, each under its run's name where there are several runs."""
    shared = [one for one in found if one.shared is not None]
    heads = [f"{escaped(name_of(one.lead.run))}:\n\n" if len(found) > 1 else "" for one in shared]
    return [head + markdown_machines(one.shared) for head, one in zip(heads, shared, strict=True) if one.shared]


def _print_machines(found: list[Reported], console: Console) -> None:
    """Print the machines of each run that has several, and what is to be said of them."""
    for one in found:
        if one.shared is None:
            continue
        if len(found) > 1:
            console.print(Text(harmless(name_of(one.lead.run), one_line=True), style="bold"))
        for table in terminal_tables(one.shared, console.width):
            console.print(table, soft_wrap=False)
        for note in notes_of(one.shared):
            console.print(Text(harmless(note, one_line=True)))


def _page_beside(one: Reported) -> Text:
    """Write a run's page into its folder, of several the host's, if that may be; return what is to be said."""
    runs, file = [reading.run for reading in one.readings], one.lead.run.page_file
    try:
        _write_page(runs, file)
    except UsageError as error:
        paths = shlex.join(str(run.path) for run in runs)
        return Text(harmless(f"{error.message}\npage: lowmem-seq report {paths} --html FILE"))
    return _told_page(file)


def _write_page(runs: list[RunFolder], file: Path) -> None:
    """Write the page of the runs.

    Raises:
        UsageError: it can't be written there.
        OSError: the disk is full or fails.
    """
    from lowmem_seq.report.page import page_of  # the templates' library, for those who want a page

    if file.is_dir():
        raise UsageError(f"{file} is a folder.", "name the file of the page: --html report.html")
    page = page_of(runs)
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
