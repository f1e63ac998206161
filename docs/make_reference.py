"""Write docs/reference/ from the code: `python docs/make_reference.py`. A test holds the pages against the code."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from msgspec import NODEFAULT, structs
from told_errors import Source

from lowmem_seq import config, errors
from lowmem_seq.cli.help import explained, grouped
from lowmem_seq.cli.main import app
from lowmem_seq.sections import Section

DEFECT = "A defect, or a trainer that died while it was being stopped."
BAR = "\\|"
"""A bar in a cell of a table, also inside of code."""
FOLDER = Path(__file__).resolve().parent / "reference"
SECTIONS: tuple[tuple[str, type[Section]], ...] = (
    ("", config.RunConfig),
    ("model", config.Sequencer2DConfig),
    ("model", config.VanillaBiLSTMConfig),
    ("data", config.DataConfig),
    ("augmentation", config.AugmentationConfig),
    ("recipe", config.RecipeConfig),
    ("checkpoint", config.CheckpointConfig),
    ("machine", config.MachineConfig),
    ("cluster", config.ClusterConfig),
)


def field_sentences(section: type[Section]) -> dict[str, str]:
    """Return the sentence that stands under each field of a section."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    sentences = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            sentences[field.target.id] = " ".join(str(below.value.value).split())
    return sentences


def config_page() -> str:
    """Return docs/reference/config.md."""
    lines = [
        "# Settings",
        "",
        "Made from lowmem_seq/config.py by `python docs/make_reference.py`.",
        "",
        "A preset in configs/ sets some of these, the rest have the defaults given here. Any of them can be set on",
        "the command line: `lowmem-seq train small --set recipe.epochs=10`. A run folder's config.yaml has all.",
    ]
    for prefix, section in SECTIONS:
        sentences = field_sentences(section)
        lines += ["", f"## {prefix or 'the run'}: {(section.__doc__ or '').strip().splitlines()[0]}", ""]
        lines += ["| key | default | what it is |", "|---|---|---|"]
        for field in structs.fields(section):
            name = field.name
            if name not in sentences:
                continue
            default = "required" if field.default is NODEFAULT else f"`{field.default!r}`"
            key = f"{prefix}.{name}" if prefix else name
            lines.append(f"| `{key}` | {default} | {sentences[name]} |")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Return docs/reference/commands.md."""
    lines = [
        "# Commands",
        "",
        "Made from lowmem_seq/cli/ by `python docs/make_reference.py`. `--help` behind a command shows the same.",
        "`lowmem-seq --install-completion` makes Tab complete commands, flags, presets, run folders, datasets and",
        "the keys of `--set`, in bash, zsh, fish and PowerShell. What a command ends with is in",
        "[Exit codes](exit-codes.md), what it may say then in [Errors](errors.md).",
    ]
    for name, command in _commands(typer.main.get_command(app), "lowmem-seq"):
        context = command.make_context(name, [], resilient_parsing=True)
        about = explained(command.help or "")
        lines += ["", f"## {name}", "", *about.text.splitlines()]
        if about.examples:
            lines += ["", "```console", *(f"$ {example}" for example in about.examples), "```"]
        for heading, members in grouped(command.get_params(context)).items():
            lines += ["", f"| {heading} | |", "|---|---|"]
            for flag, text in (record for member in members if (record := member.get_help_record(context))):
                lines.append(f"| `{flag.replace('|', BAR)}` | {_cell(text.replace('[required]', ''))} |")
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, itself before those below it."""
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{name} {word}")


def exit_codes_page() -> str:
    """Return docs/reference/exit-codes.md."""
    lines = [
        "# Exit codes",
        "",
        "Made from lowmem_seq/errors.py by `python docs/make_reference.py`.",
        "",
        "| code | error | when |",
        "|---:|---|---|",
        "| 0 | | done |",
        f"| 1 | `LowmemSeqError` | {DEFECT} |",
    ]
    for code, kind in sorted(errors.ERRORS_BY_EXIT_CODE.items()):
        lines.append(f"| {code} | `{kind.__name__}` | {(kind.__doc__ or '').strip()} |")
    lines.append("| 130 | | Left at once: on a second signal, or in a command that has nothing to save. |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Return docs/reference/errors.md."""
    told = sorted(Source().errors(), key=lambda one: one.exit_code)
    lines = [
        "# Errors",
        "",
        "Made from the source by `python docs/make_reference.py`: every error that lowmem-seq can end with, by the",
        "[exit code](exit-codes.md) it ends with then. An error is told as",
        "",
        "```",
        "error: what happened, with the numbers",
        "",
        "hint: what to do",
        "```",
        "",
        "A name in braces stands for what is known when it happens.",
    ]
    code = None
    for one in told:
        if one.exit_code != code:
            code = one.exit_code
            kind = errors.ERRORS_BY_EXIT_CODE.get(code, errors.LowmemSeqError)
            meaning = (kind.__doc__ or "").strip() if code != 1 else DEFECT
            lines += ["", f"## {code}: {kind.__name__}", "", meaning, ""]
            lines += ["| what it says | hint | from |", "|---|---|---|"]
        place = one.file.removeprefix("lowmem_seq/")
        lines.append(f"| {_cell(one.message)} | {_cell(one.hint)} | {place} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return plain text for a cell of a table."""
    for mark in "\\|<>*":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


PAGES = {
    "commands.md": commands_page,
    "config.md": config_page,
    "errors.md": errors_page,
    "exit-codes.md": exit_codes_page,
}


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
