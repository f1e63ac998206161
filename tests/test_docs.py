"""The docs are true: their commands parse, their trees and links match the disk, the reference matches the code."""

from __future__ import annotations

import math
import re
import runpy
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from lowmem_seq.channel import SECONDS_TO_SAVE
from lowmem_seq.checkpoint.manifest import LARGEST_MANIFEST_BYTES, MOST_FILES
from lowmem_seq.checkpoint.store import KEPT_BROKEN
from lowmem_seq.cli.main import DEBUG, app
from lowmem_seq.config import (
    AugmentationConfig,
    CheckpointConfig,
    DataConfig,
    MachineConfig,
    RecipeConfig,
    RunConfig,
    preset_names,
)
from lowmem_seq.data.catalogue import CATALOGUE
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import ERRORS_BY_EXIT_CODE
from lowmem_seq.files import LARGEST_JSON_BYTES
from lowmem_seq.runs.events import MOST_WAITING
from lowmem_seq.runs.save_interval import LARGEST_SHARE, SECONDS_BETWEEN_CRASHES, SHORTEST_SECONDS
from lowmem_seq.sections import Section, keys_of
from lowmem_seq.supervisor.background import NICENESS
from lowmem_seq.supervisor.power import SETTLE_SECONDS
from lowmem_seq.supervisor.speed import PATIENCE_SECONDS, SLOW
from lowmem_seq.units import format_seconds
from tests.builders import end, make_run, start_python, tiny_config, train_here
from tests.sessions import SECONDS_TO_A_SAFE_EXIT

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN_DIR = "runs/small-20261122-230000"
OTHER_LAPTOPS = "hp/small-20261122-230012"
"""tests/cli/test_report.py has reports of several machines' folders."""
GUIDE = "guides/resume.md"
FORMAT = "concepts/checkpoints.md"
LAPTOP = "guides/laptop-life.md"
READING = {
    "watch": "step 2 of 2",
    "status": "saved",
    "verify": "verifies",
    "report": Path(RUN_DIR).name,
    "data list": "fashion-mnist",
    "token": "-",
}
"""Commands that change nothing, and so can be run as they stand; and a word that each of them says."""
SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "augmentation": AugmentationConfig,
    "recipe": RecipeConfig,
    "checkpoint": CheckpointConfig,
    "machine": MachineConfig,
}
OF_OTHERS = "compared.md"
"""The page that tells of other tools' flags."""
INSTALLING = "lowmem-seq --install-completion"
"""What would be done as soon as it is parsed, to the files of whoever runs the tests."""
PROGRAMS = (
    "lowmem-seq",
    "pip",
    "python",
    "python3",
    "py",
    "make",
    "accelerate",
    "torchrun",
    "export",
    "git",
    "cp",
    "tensorboard",
)
"""What a block of commands may start."""
LONGEST_PAUSE_SECONDS = CheckpointConfig().disk_patience_seconds
HALF_A_SECOND_A_SAVE = math.sqrt(2 * 0.5 * SECONDS_BETWEEN_CRASHES)


def words(page: str) -> str:
    """The text of a page of docs/, its lines joined."""
    return " ".join((ROOT / "docs" / page).read_text(encoding="utf-8").split())


def commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?(lowmem-seq .*)$", text, flags=re.MULTILINE)
    return [line.partition("#")[0].strip() for line in (*lines, *re.findall(r"`(lowmem-seq [^`]+)`", text))]


def reads(line: str) -> bool:
    """Whether a command changes nothing, is quick, and is of the one run that lies there."""
    told = " ".join(line.split()[1:3])
    is_known = any(told == name or told.startswith(f"{name} ") for name in READING)
    needs_more = {"RUN_DIR", "--host", "--help", "--html", OTHER_LAPTOPS}
    return is_known and not needs_more & set(line.split())


ALL_COMMANDS = sorted({command for page in PAGES for command in commands(page)} - {INSTALLING})
READING_COMMANDS = sorted({line for line in ALL_COMMANDS if reads(line)})


def parse(command: Any, words: list[str]) -> None:  # typer carries its own click, under a private name
    """Parse a command line down to its last command, and run nothing."""
    context = command.make_context(command.name, list(words))
    if isinstance(command, typer.core.TyperGroup):
        rest = [*context._protected_args, *context.args]
        _, below, remaining = command.resolve_command(context, rest)
        assert below is not None
        parse(below, remaining)


@pytest.mark.parametrize("line", ALL_COMMANDS)
def test_every_command_in_the_docs_is_one(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG, "")  # so that what `--debug` sets is undone
    parse(typer.main.get_command(app), shlex.split(line)[1:])


def test_the_command_that_is_not_parsed_is_one() -> None:
    assert INSTALLING.split()[1] in set(flags_of(typer.main.get_command(app)))


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
    assert any(word in out for name, word in READING.items() if line.split(maxsplit=1)[1].startswith(name))


def test_every_reading_command_is_shown() -> None:
    assert all(any(line.split(maxsplit=1)[1].startswith(name) for line in READING_COMMANDS) for name in READING)


@pytest.mark.parametrize("line", [line for line in ALL_COMMANDS if line.split()[1] in ("train", "plan")])
def test_presets_datasets_and_settings_in_the_docs_are_there(line: str) -> None:
    words = shlex.split(line)
    assert words[2] in (*preset_names(), "PRESET") or words[2].startswith("-"), f"no preset {words[2]}"
    for flag, value in pairwise(words):
        if flag == "--data":
            assert value in (*CATALOGUE, "PATH", "CIFAR10") or value.startswith(("photos", "/mnt/")), (
                f"no dataset {value}"
            )
        if flag == "--set":
            assert value.partition("=")[0] in set(keys_of(RunConfig)), f"no setting {value}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_console_is_told_in_the_docs_is_there(page: Path) -> None:
    blocks = re.findall(
        r"^```(console|powershell)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for kind, block in blocks:
        lines = block.splitlines() if kind == "powershell" else re.findall(r"^\$ (.*)$", block, flags=re.MULTILINE)
        for line in lines:
            words = shlex.split(line, comments=True, posix=kind == "console")
            while re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            assert words[0] in PROGRAMS or words[0].endswith("Activate.ps1"), (
                f"{words[0]}: no program that is told of"
            )
            if words[0] == "make":
                assert f"\n{words[1]}:" in makefile, f"no target {words[1]}"
            if words[0] == "python":
                path = words[1] if words[1] != "-m" else words[2].replace(".", "/")
                assert (ROOT / path).exists() or (ROOT / f"{path}.py").exists(), f"no {path}"


def flags_of(command: Any) -> Iterator[str]:
    """Every option of a command and of those below it."""
    for parameter in command.params:
        yield from parameter.opts
    for below in getattr(command, "commands", {}).values():
        yield from flags_of(below)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_and_setting_in_the_prose_is_one(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    flags = (
        set() if page.name == OF_OTHERS else set(re.findall(r"`(--[a-z-]+)(?![a-z_-])", text))
    )  # with _: a launcher's
    assert flags <= {"--help", *flags_of(typer.main.get_command(app))}
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
        (LAPTOP, f"stayed as it is for {SETTLE_SECONDS:.0f} s"),
        (LAPTOP, f"a niceness of {NICENESS}"),
        (LAPTOP, f"below {SLOW:.0%}".replace("%", " %")),
        (LAPTOP, f"best for {PATIENCE_SECONDS / 60:.0f} minutes"),
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


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


def test_every_page_of_the_guides_and_the_reference_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= linked


def test_the_readmes_results_are_those_that_were_measured() -> None:
    """A row of the README is of the runs of its preset on four classes: accuracy and RAM, rounded."""
    measured = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([a-z-]+)`.*?\| \**([\d.]+) %.*?([\d.]+) GB", readme, flags=re.MULTILINE)
    assert len(shown) == 4
    for preset, accuracy, peak_gb in shown:
        row = rf"^\| {preset}-4-seed\d .*?\*\*([\d.]+)%.*?(\d+) MB \|$"
        runs = re.findall(row, measured, flags=re.MULTILINE)
        assert float(accuracy) == pytest.approx(sum(float(one) for one, _ in runs) / len(runs), abs=0.051)
        assert float(peak_gb) == pytest.approx(int(runs[0][1]) / 1000, abs=0.006)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs of docs/ find each other, as they do when they are run."""
    monkeypatch.syspath_prepend(ROOT / "docs")


def test_the_reference_is_what_the_code_says(scripts: None) -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["PAGES"]
    for name, page in pages.items():
        written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert written == page(), "run python docs/make_reference.py"


def test_every_error_says_what_to_do(scripts: None) -> None:
    from told_errors import Source

    told = list(Source().errors())
    assert len(told) > 150
    assert {one.kind for one in told} >= {kind.__name__ for kind in ERRORS_BY_EXIT_CODE.values()}
    assert [(one.file, one.message) for one in told if not one.hint or not one.message] == []


CALLS = """
from lowmem_seq.errors import DataError, UsageError

HINT = "look"
MOST = 3

class RoomError(DataError):
    def __init__(self, message, hint="stay"):
        super().__init__(message, hint)

def plain(path):
    raise UsageError(f"{path.name} has {len(path.parts)} of {MOST} parts.", HINT)

def unclear(message):
    return UsageError(message, which(1))

def which(number):
    return "one" if number else "two"

def asks(where):
    what = "none" if where else "some"
    if where:
        raise unclear("here " + f"{where}")
    raise RoomError(what)

def forgets():
    raise UsageError("nothing helps", "")
"""


def test_errors_are_read_from_the_source_with_what_they_say(
    scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import told_errors

    package = tmp_path / "package"
    package.mkdir()
    (package / "calls.py").write_text(CALLS, encoding="utf-8")
    monkeypatch.setattr(told_errors, "PACKAGE", package)
    assert [(one.kind, one.exit_code, one.message, one.hint) for one in told_errors.Source().errors()] == [
        ("UsageError", 2, "{name} has {number of parts} of 3 parts.", "look"),
        ("UsageError", 2, "here {where}", "one or: two"),
        ("RoomError", 5, "none", "stay"),
        ("RoomError", 5, "some", "stay"),
        ("UsageError", 2, "nothing helps", ""),
    ]
