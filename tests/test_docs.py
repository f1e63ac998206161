"""The docs are true: their commands parse, their trees and links match the disk, the reference matches the code."""

from __future__ import annotations

import math
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from lowmem_seq.channel import SECONDS_TO_SAVE
from lowmem_seq.checkpoint.manifest import LARGEST_MANIFEST_BYTES, MOST_FILES
from lowmem_seq.checkpoint.store import KEPT_BROKEN
from lowmem_seq.cli.main import app
from lowmem_seq.config import (
    AugmentationConfig,
    CheckpointConfig,
    DataConfig,
    MachineConfig,
    RecipeConfig,
)
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import ERRORS_BY_EXIT_CODE
from lowmem_seq.files import LARGEST_JSON_BYTES
from lowmem_seq.runs.events import MOST_WAITING
from lowmem_seq.sections import Section
from lowmem_seq.training.saving import LARGEST_SHARE, SECONDS_BETWEEN_CRASHES, SHORTEST_SECONDS
from lowmem_seq.units import format_seconds
from tests.builders import end, make_run, start_python, tiny_config, train_here
from tests.sessions import SECONDS_TO_A_SAFE_EXIT

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_DIR = "runs/small-20261122-230000"
GUIDE = "guides/resume.md"
FORMAT = "concepts/checkpoints.md"
READING = {"status": "saved", "verify": "verifies", "report": Path(RUN_DIR).name}
"""Commands that change nothing, and so can be run as they stand; and a word that each of them says."""
SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "augmentation": AugmentationConfig,
    "recipe": RecipeConfig,
    "checkpoint": CheckpointConfig,
    "machine": MachineConfig,
}
LONGEST_PAUSE_SECONDS = CheckpointConfig().disk_patience_seconds
HALF_A_SECOND_A_SAVE = math.sqrt(2 * 0.5 * SECONDS_BETWEEN_CRASHES)


def words(page: str) -> str:
    """The text of a page of docs/, its lines joined."""
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?(lowmem-seq .*)$", text, flags=re.MULTILINE)
    return [line.partition("#")[0].strip() for line in (*lines, *re.findall(r"`(lowmem-seq [^`]+)`", text))]


ALL_COMMANDS = sorted({command for page in PAGES for command in commands(page)})
READING_COMMANDS = sorted(
    {
        line
        for name in ("README.md", f"docs/{GUIDE}")
        for line in commands(ROOT / name)
        if line.split()[1] in READING
    }
)


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


@pytest.fixture(scope="module")
def folder_with_a_run(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> Path:
    """A folder in which a finished run lies where the pages say that one does."""
    folder = tmp_path_factory.mktemp("docs")
    train_here(make_run(folder / RUN_DIR, tiny_pack, tiny_config("steps=2")))
    return folder


MAIN_IN = "import os, sys; os.chdir(sys.argv.pop(1)); from lowmem_seq.cli.main import main; main()"


@pytest.mark.parametrize("line", READING_COMMANDS)
def test_what_only_reads_can_be_run_as_it_stands(line: str, folder_with_a_run: Path) -> None:
    code, out, err = end(start_python(MAIN_IN, str(folder_with_a_run), *shlex.split(line)[1:]))
    assert (code, err) == (0, "")
    assert READING[line.split()[1]] in out


def test_every_reading_command_is_shown() -> None:
    assert {line.split()[1] for line in READING_COMMANDS} == set(READING)


def flags_of(command: Any) -> Iterator[str]:
    """Every option of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    for below in getattr(command, "commands", {}).values():
        yield from flags_of(below)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_and_setting_in_the_prose_is_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= {"--help", *flags_of(typer.main.get_command(app))}
    for section, key in re.findall(r"`([a-z]+)\.([a-z_0-9]+)`", text):
        if section in SECTIONS and key not in ("json", "py"):
            assert key in SECTIONS[section].__struct_fields__


def test_the_guide_knows_every_exit_code() -> None:
    table = (ROOT / "docs" / GUIDE).read_text(encoding="utf-8").split("## When it ends with an error")[1]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)]
    assert codes == [1, *sorted(ERRORS_BY_EXIT_CODE), 130]


@pytest.mark.parametrize(
    ("page", "phrase"),
    [
        (GUIDE, f"`{CheckpointConfig().every}` (the default)"),
        (GUIDE, f"`checkpoint.disk_patience` ({LONGEST_PAUSE_SECONDS / 60:.0f} minutes)"),
        (GUIDE, f"deaths in a row ({MachineConfig().max_restarts})"),
        (GUIDE, f"within {SECONDS_TO_SAVE:.0f} s"),
        (GUIDE, f"the tests allow {SECONDS_TO_A_SAFE_EXIT:.0f} s for it"),
        (GUIDE, f"a crash every {SECONDS_BETWEEN_CRASHES / 3600:.0f} hours"),
        (GUIDE, f"never more often than every {SHORTEST_SECONDS:.0f} s"),
        (GUIDE, f"takes more than {LARGEST_SHARE * 100:.0f} % of the time"),
        (GUIDE, f"half a second, that is every {format_seconds(HALF_A_SECOND_A_SAVE)}"),
        (FORMAT, f"The newest `checkpoint.keep` ({CheckpointConfig().keep})"),
        (FORMAT, f"at most {MOST_FILES};"),
        (FORMAT, f"a manifest of more than {LARGEST_MANIFEST_BYTES // 10**6} MB"),
        (FORMAT, f"other JSON of more than {LARGEST_JSON_BYTES // 10**6} MB"),
        (FORMAT, f"the last {KEPT_BROKEN} that were set aside"),
        (FORMAT, f"up to {MOST_WAITING:,} lines wait"),
    ],
)
def test_the_figures_in_the_pages_are_those_of_the_code(page: str, phrase: str) -> None:
    assert phrase in words(page)


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
