"""The entrance: the commands, and how errors are told."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import typer
from rich.text import Text

from lowmem_seq import __version__
from lowmem_seq.cli.cluster import token
from lowmem_seq.cli.data import data_app
from lowmem_seq.cli.doctor import doctor
from lowmem_seq.cli.eval import eval_
from lowmem_seq.cli.export import export
from lowmem_seq.cli.help import WIDEST, Command, Group
from lowmem_seq.cli.plan import plan
from lowmem_seq.cli.predict import predict
from lowmem_seq.cli.report import report
from lowmem_seq.cli.status import status
from lowmem_seq.cli.terminal import harmless, make_console
from lowmem_seq.cli.train import resume, train
from lowmem_seq.cli.verify import verify
from lowmem_seq.cli.watch import watch
from lowmem_seq.disk import as_disk_error
from lowmem_seq.errors import LowmemSeqError, StoppedError, UsageError, nearest

DEBUG = "LOWMEM_SEQ_DEBUG"
INTERRUPTED = 130
UNKNOWN_COMMAND = re.compile(r"No such command '(.*?)'\.")

HELP = """
Train Sequencer2D image classifiers on small laptops, under a memory cap, and resume after anything.

Examples:
    lowmem-seq train small --data shapes --max-ram 2GB
    lowmem-seq status runs/small-20261122-230000
    lowmem-seq report
"""

app = typer.Typer(
    name="lowmem-seq",
    cls=Group,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
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


for command in (train, resume, status, watch, plan, report, verify, predict, export, doctor, token):
    app.command(cls=Command)(command)
app.command("eval", cls=Command)(eval_)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line, and end with the exit codes of errors.py."""
    try:
        code = app(standalone_mode=False, prog_name="lowmem-seq")
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # the parser's name for: nothing was typed, show the help
            typer.echo(str(error))
            sys.exit(0)
        told = _as_told(error)
        _tell(told)
        sys.exit(told.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _as_told(error: Exception) -> LowmemSeqError:
    """Return an error with a message for people: itself, the parser's in our form, or a defect, told in a line."""
    if isinstance(error, LowmemSeqError):
        return error
    context = getattr(error, "ctx", None)  # typer's parser is click's, in some releases a copy of its own
    format_message = getattr(error, "format_message", None)
    if format_message is not None:
        told, meant = _near_miss(error, context)
        command = "lowmem-seq" if context is None else context.command_path
        return UsageError(told or format_message(), f"{meant} {command} --help".strip())
    return as_disk_error(error) or LowmemSeqError(
        f"{type(error).__name__}: {error}",
        "this is a defect of lowmem-seq; lowmem-seq --debug COMMAND ... shows where it is",
    )


def _near_miss(error: Any, context: Any) -> tuple[str, str]:
    """Return the parser's message about a word that it doesn't know, and what may have been meant; or nothing."""
    flag, word = getattr(error, "option_name", None), UNKNOWN_COMMAND.match(error.message)
    if flag and hasattr(error, "possibilities"):
        known = [name for one in context.command.get_params(context) for name in one.opts if len(name) > 2]
        return error.message, nearest(flag, known)
    if word and context is not None:
        return word[0], nearest(word[1], list(getattr(context.command, "commands", {})))
    return "", ""


def _tell(error: LowmemSeqError) -> None:
    console = make_console(sys.stderr, soft_wrap=True)
    asked_for = isinstance(error, StoppedError)
    console.print(Text.assemble("" if asked_for else ("error: ", "bold red"), harmless(error.message)))
    if error.hint:
        console.print(Text.assemble("\n", ("hint: ", "bold cyan"), harmless(error.hint)))
