from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lowmem_seq.cli.eval import confusions
from tests.builders import end, start_python
from tests.cli.conftest import CommandLine
from tests.cli.test_reading_only import contents
from tests.cli.test_start import IMPORTED, assert_refused
from tests.conftest import Coloured
from tests.data.builders import coloured_files, write_folder, write_zip


@pytest.fixture
def run(coloured: Coloured, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(coloured.run.path, tmp_path / "run"))


def test_a_finished_run_is_judged_as_its_own_test_did(command_line: CommandLine, coloured: Coloured) -> None:
    before = contents(coloured.run.path)
    told = json.loads(command_line("eval", str(coloured.run.path), "--device", "cpu", "--json").out)
    (test,) = [event for event in coloured.run.events if event["event"] == "test"]
    assert told["accuracy"] == test["test_accuracy"]
    assert told["confusion"] == test["confusion"]
    assert told["class_accuracies"] == test["class_accuracies"]
    assert told["loss"] == pytest.approx(test["test_loss"], rel=1e-5)
    assert (told["weights"], told["step"], told["part"]) == ("model.safetensors", None, "test")
    assert (told["classes"], told["class_images"]) == (["blue", "green", "red"], [3, 3, 3])
    assert contents(coloured.run.path) == before


def test_people_get_the_whole_and_a_line_a_class(command_line: CommandLine, run: Path) -> None:
    ended = command_line("eval", str(run), "--part", "train", "--device", "cpu")
    assert ended.code == 0
    first, figures, *_ = ended.out.splitlines()
    assert first.startswith(f"{run}: the final weights, on the train part of ")
    assert figures.startswith("accuracy ")
    for name in ("blue", "green", "red"):
        assert sum(line.startswith(name) for line in ended.out.splitlines()) == 1


def test_of_an_unfinished_run_it_says_which_checkpoint(command_line: CommandLine, run: Path) -> None:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["event"] not in ("test", "session_ended")]
    (run / "events.jsonl").write_text("".join(kept), encoding="utf-8")
    assert "the checkpoint of step 40, on the test part" in command_line("eval", str(run), "--device", "cpu").out
    (run / "checkpoints" / "step-00000040" / "state.json").write_text("{}", encoding="utf-8")
    ended = command_line("eval", str(run), "--device", "cpu")
    assert ended.code == 6
    assert "step-00000040 does not verify" in ended.err


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_other_pictures_are_packed_and_judged(
    command_line: CommandLine, coloured: Coloured, tmp_path: Path, kind: str
) -> None:
    files = coloured_files(red=(210, 60, 60), green=(60, 210, 60))
    others = write_folder(tmp_path / "o", files) if kind == "folder" else write_zip(tmp_path / "o.zip", files)
    ended = command_line("eval", str(coloured.run.path), "--data", str(others), "--device", "cpu", "--json")
    told = json.loads(ended.out)
    assert (told["data"], told["part"], told["images"]) == (str(others), "all", 40)
    assert told["class_images"] == [0, 20, 20]
    assert told["class_accuracies"][0] is None


def test_a_pack_that_has_gone_is_made_again(
    command_line: CommandLine, coloured: Coloured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(coloured.run.path, tmp_path / "run"))
    record = json.loads((run / "data.json").read_text(encoding="utf-8"))
    (run / "data.json").write_text(json.dumps({**record, "pack": str(tmp_path / "gone")}), encoding="utf-8")
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(tmp_path / "empty"))
    assert json.loads(command_line("eval", str(run), "--device", "cpu", "--json").out)["images"] == 9


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["--part", "tets"], 2, "--part 'tets' is not known.", "did you mean 'test'?"),
        (["--device", "tpu"], 2, "--device 'tpu' is not known.", ""),
        (["--max-ram", "6"], 2, "'6' has no unit of memory.", "6GB"),
        (["--data", "nowhere/x"], 5, "there is nothing at", "--data PATH"),
    ],
)
def test_what_can_not_be_is_refused(
    command_line: CommandLine, coloured: Coloured, arguments: list[str], code: int, message: str, hint: str
) -> None:
    ended = command_line("eval", str(coloured.run.path), *arguments)
    ended = ended._replace(err=ended.err[ended.err.index("error: ") :])
    assert_refused(ended, code, message, hint)


@pytest.mark.parametrize("command", ["eval", "predict", "export"])
def test_the_help_is_there_before_torch(command: str) -> None:
    code, out, _ = end(start_python(IMPORTED, command, "--help"))
    assert code == 0
    assert out.splitlines()[-1] == "imported"


def test_confusions_are_the_most_frequent_mistakes() -> None:
    assert confusions(1, ("a", "b", "c", "d", "e"), [2, 9, 0, 5, 1]) == "d 5, a 2, e 1"
    assert confusions(0, ("a", "b"), [3, 0]) == ""
