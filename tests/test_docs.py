"""The docs are true: their commands parse, their trees and links match the disk, the reference matches the code."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from lowmem_seq.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_DIR = "runs/small-20261122-230000"


def commands(page: Path) -> list[str]:
    found = re.findall(r"^(?:\$ )?(lowmem-seq .*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line.partition("#")[0].strip() for line in found]


ALL_COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def parse(command: Any, words: list[str]) -> None:  # typer carries its own click, under a private name
    """Parse a command line down to its last command, and run nothing."""
    context = command.make_context(command.name, list(words))
    if isinstance(command, typer.core.TyperGroup):
        rest = [*context._protected_args, *context.args]
        _, below, remaining = command.resolve_command(context, rest)
        assert below is not None
        parse(below, remaining)


@pytest.mark.parametrize("line", ALL_COMMANDS)
def test_every_command_in_the_docs_is_one(line: str) -> None:
    parse(typer.main.get_command(app), shlex.split(line)[1:])


def test_the_docs_hold_commands_at_all() -> None:
    assert len(ALL_COMMANDS) >= 10


def test_the_readmes_tree_matches_the_disk() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("## What lies where")[1].split("```")[1]
    named = set()
    folder = ROOT
    for line in tree.strip("\n").splitlines():
        name = line.split()[0]
        inside = line.startswith("  ")
        path = (folder if inside else ROOT) / name
        assert path.exists(), f"README's tree names {path}, which is not there"
        if not inside:
            folder = path
        named.add(path.resolve())
    rooms = [path for path in (ROOT / "lowmem_seq").iterdir() if not path.name.startswith("__")]
    missing = [path.name for path in rooms if path.resolve() not in named and path.name != "py.typed"]
    assert not missing, f"README's tree leaves out {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_reference_is_what_the_code_says() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["PAGES"]
    for name, page in pages.items():
        written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert written == page(), "run python docs/make_reference.py"
