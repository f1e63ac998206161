"""docs/guides/own-pictures.md: what it tells to type does what it says, on pictures and a run as it has them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lowmem_seq.config import load_preset, validate
from lowmem_seq.models.timm_weights import timm_model
from tests.builders import names
from tests.cli.conftest import CommandLine
from tests.conftest import Coloured
from tests.data.builders import coloured_files, write_folder, write_zip
from tests.test_docs import RUN_DIR, commands

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "guides" / "own-pictures.md"
SAID = {"add": "train and", "show": "blue", "eval": "accuracy ", "predict": "", "export": "my-model"}
QUICK = [line for line in commands(PAGE) if line.split()[1] in ("data", "eval", "predict", "export")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, coloured: Coloured) -> Path:
    """A folder with all that the page's commands name."""
    folder = tmp_path_factory.mktemp("guide")
    shutil.copytree(coloured.photos, folder / "photos")
    shutil.copytree(coloured.run.path, folder / RUN_DIR)
    files = coloured_files(red=(205, 45, 45), green=(45, 205, 45))
    write_zip(folder / "more-photos.zip", files)
    write_zip(folder / "archive.zip", files)
    write_folder(folder / "holiday", files)
    (folder / "cat.jpg").write_bytes(files["red/0.png"])
    return folder


@pytest.mark.parametrize("line", QUICK)
def test_what_needs_no_training_does_what_the_page_says(
    line: str, folder: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line)[1:]
    monkeypatch.chdir(folder)
    code, out, err = command_line(*words)
    assert code == 0, err
    assert SAID[words[1] if words[0] == "data" else words[0]] in out
    if "--csv" in words:
        assert len((folder / "holiday.csv").read_text(encoding="utf-8").splitlines()) == 81
    elif words[0] == "predict":
        told = json.loads(out)["images"][0]["predictions"][0]["class"] if "--json" in words else out
        assert "red" in told
    elif words[0] == "export":
        assert {"model.safetensors", "config.json", "README.md"} <= set(names(folder / "my-model"))


def test_every_command_for_models_is_shown() -> None:
    assert {line.split()[1] for line in QUICK} == {"data", "eval", "predict", "export"}


def test_the_table_says_which_models_timm_loads() -> None:
    timms, ours = re.findall(
        r"^\| (`.*?) \| (?:timm|`lowmem)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    for cell, expected in ((timms, True), (ours, False)):
        presets = [name if name[0] != "_" else f"sequencer2d{name}" for name in re.findall(r"`([\w-]+)`", cell)]
        assert presets
        for preset in presets:
            assert (timm_model(validate(load_preset(preset)).model) is not None) == expected, preset


def test_an_export_names_no_path_of_this_computer(
    folder: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert command_line("export", RUN_DIR, "--to", "clean").code == 0
    for path in (folder / "clean").iterdir():
        assert str(folder).encode() not in path.read_bytes()
        assert b"photos" not in path.read_bytes()
