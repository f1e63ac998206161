from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowmem_seq.cli import train
from lowmem_seq.files import sha256_of
from lowmem_seq.runs.folder import RunFolder
from tests.builders import make_run, tiny_config
from tests.cli.conftest import CommandLine
from tests.cli.test_flags import Sessions
from tests.cli.test_start import assert_refused
from tests.conftest import Coloured
from tests.data.builders import coloured_files, write_folder
from tests.sessions import events, lowmem_seq, rewound


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    """Stands where sessions would start."""
    recorded = Sessions()
    monkeypatch.setattr(train, "_run_session", recorded)
    return recorded


@pytest.mark.parametrize("kind", ["run", "file", "export"])
def test_the_run_gets_a_copy_and_is_known_by_it(
    command_line: CommandLine,
    sessions: Sessions,
    coloured: Coloured,
    kind: str,
) -> None:
    source = {"run": coloured.run.path, "file": coloured.run.weights_file, "export": Path("exported")}[kind]
    if kind == "export":
        assert command_line("export", str(coloured.run.path), "--to", "exported").code == 0
    assert command_line("train", "tiny", "--init-from", str(source), "--run-dir", "new").code == 0
    run = RunFolder(Path("new"))
    original = source / "model.safetensors" if source.is_dir() else source
    assert run.initial_file.read_bytes() == original.read_bytes()
    assert run.config.init_from == str(source.absolute())
    assert run.config.init_sha256 == sha256_of(original)
    ended = command_line("train", str(run.config_file), "--run-dir", "again")
    assert_refused(ended, 2, "began with the weights of", "--init-from PATH")


def test_of_an_unfinished_run_the_newest_checkpoint_is_taken(
    command_line: CommandLine,
    sessions: Sessions,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    unfinished = rewound(undisturbed, tmp_path / "unfinished", 20)
    assert command_line("train", "tiny", "--init-from", str(unfinished), "--run-dir", "new").code == 0
    average = unfinished / "checkpoints" / "step-00000020" / "average.safetensors"
    assert RunFolder(Path("new")).initial_file.read_bytes() == average.read_bytes()


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nowhere", 2, "there are no weights at nowhere."),
        ("words.safetensors", 2, "words.safetensors can't be read"),
        ("unsaved", 6, "unsaved has no weights yet"),
    ],
)
def test_what_has_no_weights_is_refused_before_a_run_is_made(
    command_line: CommandLine, coloured: Coloured, name: str, code: int, message: str
) -> None:
    Path("words.safetensors").write_text("words", encoding="utf-8")
    make_run(Path("unsaved"), coloured.pack, tiny_config())
    ended = command_line("train", "tiny", "--init-from", name, "--run-dir", "new")
    assert_refused(ended, code, message, "")
    assert not Path("new").exists()


def test_a_session_begins_with_them_and_says_so(coloured: Coloured, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "photos", coloured_files(red=(200, 40, 40), pink=(220, 120, 120)))
    told = lowmem_seq(
        *("train", "tiny", "--data", str(photos), "--image-size", "16", "--steps", "3", "--max-ram", "1GB"),
        *("--init-from", str(coloured.run.path), "--run-dir", "run", "--micro-batch", "16", "--precision", "fp32"),
        cwd=tmp_path,
    )
    assert "begins with the weights of" in told.stdout
    assert "the head is drawn anew, for the classes are other ones" in told.stdout
    (event,) = events(tmp_path / "run", "initial_weights")
    assert event["head_drawn_anew"]
    assert json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))["source"] == str(photos)
