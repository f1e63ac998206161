"""The entrance: the commands, and how errors are told."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from rich.text import Text

from lowmem_seq import __version__
from lowmem_seq.cli.data import data_app
from lowmem_seq.cli.report import report
from lowmem_seq.cli.train import resume, train
from lowmem_seq.errors import LowmemSeqError, StoppedError

DEBUG = "LOWMEM_SEQ_DEBUG"
INTERRUPTED = 130

app = typer.Typer(
    name="lowmem-seq",
    help=(
        "Train Sequencer2D image classifiers on small laptops, under a memory cap, and resume after anything.\n\n"
        "Try: lowmem-seq train small --data shapes --max-ram 2GB"
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lowmem-seq {__version__}")
        raise typer.Exit


def _set_debug(wanted: bool) -> None:
    if wanted:
        os.environ[DEBUG] = "1"


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", callback=_set_debug, help="Show tracebacks of errors."),
) -> None:
    """Options before the command."""


app.command()(train)
app.command()(resume)
app.command()(report)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line, and end with the exit codes of errors.py."""
    try:
        app()
    except LowmemSeqError as error:
        if os.environ.get(DEBUG):
            raise
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        asked_for = isinstance(error, StoppedError)
        console.print(Text.assemble("" if asked_for else ("error: ", "bold red"), error.message))
        if error.hint:
            console.print(Text.assemble("\n", ("hint: ", "bold cyan"), error.hint))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
