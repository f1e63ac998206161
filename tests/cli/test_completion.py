"""What a shell is offered when Tab is pressed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowmem_seq.config import RunConfig, load_preset, override, preset_names, validate
from lowmem_seq.data.catalogue import CATALOGUE
from lowmem_seq.sections import keys_of
from tests.builders import end, start_python
from tests.cli.conftest import CommandLine

MAIN = "import sys; from lowmem_seq.cli.main import main; sys.argv[0] = 'lowmem-seq'; main()"


@pytest.fixture
def offered(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> object:
    """Asks as bash does: what is offered for the last of these words, which may be empty."""

    def ask(*words: str) -> list[str]:
        monkeypatch.setenv("_LOWMEM_SEQ_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("lowmem-seq", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        ended = command_line()
        assert (ended.code, ended.err) == (0, "")
        return ended.out.split()

    return ask


@pytest.fixture
def folders(command_line: CommandLine) -> None:
    """Two runs, another folder, a hidden one, a zip and two files, where the command is run."""
    for name in ("runs/small-1", "runs/tiny-2"):
        Path(name).mkdir(parents=True)
        Path(name, "config.yaml").touch()
    for name in ("runs/notes", "photos", ".hidden", "far/runs/old"):
        Path(name).mkdir(parents=True)
    Path("far/runs/old/config.yaml").touch()
    for name in ("photos.zip", "mine.yaml", "notes.txt"):
        Path(name).touch()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["data", "a"], ["add"]),
        (["train", "small"], ["small", "small-plus"]),
        (["plan", "m"], ["medium", "mine.yaml"]),
        (["train", "./"], ["./far", "./mine.yaml", "./photos", "./runs"]),
        (["train", "tiny", "--max-r"], ["--max-ram", "--max-restarts"]),
        (["train", "tiny", "--data", "c"], ["cifar10", "cifar100"]),
        (["train", "tiny", "--data", "p"], ["photos", "photos.zip"]),
        (["train", "tiny", "--data", ".h"], [".hidden"]),
        (["data", "add", "fash"], ["fashion-mnist"]),
        (["train", "tiny", "--set", "recipe.w"], ["recipe.warmup_fraction=", "recipe.weight_decay="]),
        (["resume", ""], ["runs/notes/", "runs/small-1", "runs/tiny-2"]),
        (["status", "runs/s"], ["runs/small-1"]),
        (["report", "runs/small-1", "runs/t"], ["runs/tiny-2"]),
        (["verify", "far/"], ["far/runs/"]),
        (["verify", "far/runs/"], ["far/runs/old"]),
        (["verify", "nowhere/"], []),
        (["verify", "~nobody-of-this-name/"], []),
    ],
    ids=lambda words: " ".join(words),
)
def test_what_may_follow_is_offered(offered, folders: None, words: list[str], expected: list[str]) -> None:  # type: ignore[no-untyped-def]
    assert sorted(offered(*words)) == expected


def test_everything_that_is_known_is_offered(offered, command_line: CommandLine) -> None:  # type: ignore[no-untyped-def]
    assert offered("train", "") == preset_names()
    assert offered("train", "tiny", "--data", "") == list(CATALOGUE)


def test_every_key_that_is_offered_is_a_setting() -> None:
    keys = list(keys_of(RunConfig))
    assert {"seed", "model.widths", "model.lstm_width", "recipe.epochs", "cluster.round"} <= set(keys)
    assert len(keys) == len(set(keys))
    values = validate(load_preset("tiny")).to_settings()
    for key in keys:
        section, _, name = key.rpartition(".")
        value = (values[section] if section else values).get(name, "x")
        if value != "x" and value is not None and not isinstance(value, (list, str)):
            settings = load_preset("tiny")
            override(settings, f"{key}={value}")
            assert validate(settings) == validate(load_preset("tiny"))


def test_a_shell_is_given_a_script_and_offers_start_nothing_large() -> None:
    code, out, err = end(start_python(MAIN, _LOWMEM_SEQ_COMPLETE="source_bash"))
    assert (code, err) == (0, "")
    assert "lowmem-seq" in out
    listing = f"{MAIN[:-6]}\ntry:\n    main()\nfinally:\n    assert not {{'torch', 'numpy'}} & sys.modules.keys()"
    asking = {"_LOWMEM_SEQ_COMPLETE": "complete_bash", "COMP_WORDS": "lowmem-seq train sma", "COMP_CWORD": "2"}
    code, out, err = end(start_python(listing, **asking))
    assert (code, out.split(), err) == (0, ["small", "small-plus"], "")
