"""Help is short, begins with examples, and says of each flag what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from lowmem_seq.cli.help import GROUPS, explained, grouped
from lowmem_seq.cli.main import app
from tests.cli.conftest import CommandLine

MOST_LINES, MOST_OF_TRAIN = 40, 48
"""A screen; `train` has the most flags, and may take a little more."""


def commands_below(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands_below(below, (*words, name))


ALL = list(commands_below(typer.main.get_command(app)))
EACH = pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) or "all" for words, _ in ALL])


@pytest.mark.parametrize("columns", [80, 100])
@EACH
def test_help_fits_a_screen(
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    command: Any,
    columns: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = command_line(*words, "--help").out.splitlines()
    assert len(lines) <= (MOST_OF_TRAIN if words == ("train",) else MOST_LINES)
    assert max(map(len, lines)) <= columns
    assert " ".join(lines).isascii()  # every terminal has these letters


@EACH
def test_examples_stand_before_flags_as_they_were_written(
    command_line: CommandLine, words: tuple[str, ...], command: Any
) -> None:
    out = command_line(*words, "--help").out
    examples = explained(command.help).examples
    assert examples or words == ("data",)
    for example in examples:
        assert f"\n  {example}\n" in out.partition("Options:")[0]
        assert " ".join(("lowmem-seq", *words)) in example.partition("#")[0]


@EACH
def test_every_flag_is_of_a_group(words: tuple[str, ...], command: Any) -> None:
    panels = {getattr(one, "rich_help_panel", None) for one in command.params}
    assert panels <= {None, *GROUPS}
    shown = [one for members in grouped(command.params).values() for one in members]
    assert sorted(map(id, shown)) == sorted(id(one) for one in command.params if not getattr(one, "hidden", False))
    assert all(getattr(one, "help", "") for one in shown)


def test_no_line_of_the_list_of_commands_is_cut(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = command_line("--help").out
    for words, command in ALL:
        if len(words) == 1:
            assert f"{explained(command.help).text.splitlines()[0].rstrip('.')}\n" in out


def test_a_group_that_has_no_flag_is_not_shown(command_line: CommandLine) -> None:
    assert "Several machines:" in command_line("train", "--help").out
    assert "Several machines:" not in command_line("plan", "--help").out


def test_a_docstring_without_examples_is_text_alone() -> None:
    assert explained("Say it.\n\n    More of it.\n    ") == ("Say it.\n\nMore of it.", ())
    assert explained("Say it.\n\n    Examples:\n        a b   # c\n        d\n    ") == (
        "Say it.",
        ("a b   # c", "d"),
    )
