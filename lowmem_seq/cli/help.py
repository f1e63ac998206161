"""What `--help` shows: what a command does, examples of it, and its flags by what they are about.

It is plain text, for rich's panels would double the time until it is there. A command's docstring is its help:

    '''Say in a line what it does.

Examples:
        lowmem-seq train small     # what that means
    '''
"""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

from typer.core import TyperCommand, TyperGroup

WIDEST = 100
WIDEST_FLAG = 28
"""Of the column of flags; what is longer has its text on the next line."""
EXAMPLES = "\nExamples:\n"
DATA, TRAINING, MACHINE = "Data", "Training", "This machine"
SEVERAL_MACHINES, OUTPUT, OTHERS = "Several machines", "Output", "Options"
GROUPS = (DATA, MACHINE, TRAINING, OUTPUT, SEVERAL_MACHINES, OTHERS)
"""Of flags, in the order in which they are shown. One that names none by `rich_help_panel` is of the last."""


class Explained(NamedTuple):
    """The parts of a docstring."""

    text: str
    examples: tuple[str, ...]
    """A line each, with what it means behind a `#`."""


def explained(docstring: str) -> Explained:
    """Return what a docstring says, and its examples."""
    text, _, below = inspect.cleandoc(docstring).partition(EXAMPLES)
    return Explained(text.strip(), tuple(inspect.cleandoc(below).splitlines()))


def grouped(parameters: list[Any]) -> dict[str, list[Any]]:
    """Return a command's arguments, and its flags by group, as the parser has them; no group is empty."""
    groups: dict[str, list[Any]] = {heading: [] for heading in ("Arguments", *GROUPS)}
    for one in parameters:
        panel = getattr(one, "rich_help_panel", None)
        heading = "Arguments" if one.param_type_name == "argument" else panel if panel in GROUPS else OTHERS
        if not getattr(one, "hidden", False):
            groups[heading].append(one)
    return {heading: members for heading, members in groups.items() if members}


class Command(TyperCommand):
    """A command with the help of this module."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write what the command does, and examples."""
        _write_text(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the flags by group."""
        _write_flags(self, ctx, formatter)

    def get_short_help_str(self, limit: int = WIDEST) -> str:
        """Return the line that stands for this command in a list of commands."""
        return explained(self.help or "").text.splitlines()[0].rstrip(".")[:limit]


class Group(TyperGroup):
    """A command that has others below it, with the help of this module."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.suggest_commands = False  # a near miss is told in the hint: see main.py

    def format_help_text(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write what the commands are for, and examples."""
        _write_text(self, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, and then the flags, which few need."""
        self.format_commands(ctx, formatter)
        _write_flags(self, ctx, formatter)

    def get_short_help_str(self, limit: int = WIDEST) -> str:
        """Return the line that stands for this group in a list of commands."""
        return explained(self.help or "").text.splitlines()[0].rstrip(".")[:limit]


def _write_text(command: Any, formatter: Any) -> None:
    about = explained(command.help or "")
    formatter.write_paragraph()
    formatter.write_text(about.text)
    if about.examples:
        formatter.write_paragraph()
        formatter.write_heading("Examples")
        formatter.write("".join(f"  {line}\n" for line in about.examples))  # as they stand, to be copied


def _write_flags(command: Any, ctx: Any, formatter: Any) -> None:
    """Write a group below the other, without the empty lines that would make a long help longer than a screen."""
    sections = {heading: _records(members, ctx) for heading, members in grouped(command.get_params(ctx)).items()}
    longest = max((len(name) for lines in sections.values() for name, _ in lines), default=0)
    column = min(longest, WIDEST_FLAG)
    formatter.write_paragraph()
    for heading, lines in sections.items():
        formatter.write_heading(heading)
        formatter.indent()
        formatter.write_dl([(f"{name:{column}}", text) for name, text in lines], col_max=WIDEST_FLAG)
        formatter.dedent()


def _records(members: list[Any], ctx: Any) -> list[tuple[str, str]]:
    """Return name and text of arguments or flags, as short as they can be said.

    That an argument is required is said by the usage, and the bounds of a number by the error of one beyond them.
    """
    records = [member.get_help_record(ctx) for member in members]
    return [(_SWITCH.sub(r"--[no-]\1", name), _NOISE.sub("", text).strip()) for name, text in filter(None, records)]


_SWITCH = re.compile(r"--([a-z-]+) / --no-\1")
_NOISE = re.compile(r"\[(required|[^\]]*<=?x[^\]]*)\]")
