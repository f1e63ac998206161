from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from lowmem_seq.cli import predict as module
from lowmem_seq.cli.predict import CsvOutput, JsonOutput, TableOutput
from lowmem_seq.training.inference import Prediction
from tests.builders import end, start_python
from tests.cli.conftest import CommandLine
from tests.cli.test_reading_only import contents
from tests.cli.test_start import assert_refused
from tests.conftest import Coloured
from tests.data.builders import coloured_files, write_folder, write_zip

MAIN = "from lowmem_seq.cli.main import main; main()"
FILES = coloured_files(red=(205, 45, 45), green=(45, 205, 45))
HOSTILE = "<script>\x1b[31m\n\u202e"


def test_pictures_are_said_to_show_what_they_do(
    command_line: CommandLine, coloured: Coloured, tmp_path: Path
) -> None:
    photos = write_folder(tmp_path / "new", FILES)
    before = contents(coloured.run.path)
    ended = command_line("predict", str(coloured.run.path), str(photos), "--device", "cpu", "--json")
    assert (ended.code, ended.err) == (0, "")
    told = json.loads(ended.out)
    assert (told["run"], told["weights"], told["step"]) == (str(coloured.run.path), "model.safetensors", None)
    assert [one["image"] for one in told["images"]] == sorted(str(photos / name) for name in FILES)
    right = 0
    for one in told["images"]:
        assert one["error"] is None
        probabilities = [entry["probability"] for entry in one["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)  # there are three classes, and three are told
        right += one["predictions"][0]["class"] == Path(one["image"]).parent.name
    assert right > 36
    assert contents(coloured.run.path) == before


def test_folder_zip_and_csv_say_the_same(command_line: CommandLine, coloured: Coloured, tmp_path: Path) -> None:
    folder, archive = write_folder(tmp_path / "new", FILES), write_zip(tmp_path / "new.zip", FILES)
    rows = []
    for path in (folder, archive):
        ended = command_line("predict", str(coloured.run.path), str(path), "--csv", "out.csv", "--top", "2")
        assert (ended.code, ended.out) == (0, "")
        assert ended.err.splitlines()[-1] == "40 images: out.csv"
        with Path("out.csv").open(encoding="utf-8", newline="") as file:
            rows.append(list(csv.reader(file)))
    columns = ["image", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert rows[0][0] == rows[1][0] == columns
    by_name = [{row[0].rpartition("new")[2].removeprefix(".zip"): row[1:] for row in told[1:]} for told in rows]
    assert by_name[0] == by_name[1]
    assert len(by_name[0]) == 40


def test_a_picture_that_is_broken_is_said_and_passed_over(
    command_line: CommandLine, coloured: Coloured, tmp_path: Path
) -> None:
    photos = write_folder(tmp_path / "new", {"a.png": FILES["red/0.png"], "b.png": b"broken", "c.txt": b""})
    ended = command_line("predict", str(coloured.run.path), str(photos), "--device", "cpu")
    assert ended.code == 0
    assert "passed over" in ended.out
    assert "1 of 2 images could not be read" in ended.err
    assert "passed over: 1 (not an image file)" in ended.err
    told = json.loads(command_line("predict", str(coloured.run.path), str(photos), "--json").out)
    assert told["images"][1] == {
        "image": str(photos / "b.png"),
        "predictions": None,
        "error": "not a readable image",
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [({"a.png": b"x", "b.jpg": b""}, "none of the 2 images could be read."), ({"a.txt": b""}, "there is no image")],
)
def test_where_none_can_be_read_it_ends_with_5(
    command_line: CommandLine, coloured: Coloured, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    ended = command_line("predict", str(coloured.run.path), str(write_folder(tmp_path / "new", files)))
    assert ended.code == 5
    assert message in ended.err
    assert "JPEG" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["nowhere.png"], 5, "there is nothing at nowhere.png.", "give images"),
        ([".", "--json", "--csv", "x"], 2, "two forms of one answer", "one of them"),
        ([".", "--csv", "no/such/folder.csv"], 2, "no/such/folder.csv can't be a file", "--csv"),
        ([".", "--top", "0"], 2, "Invalid value for '--top'", "--help"),
        ([], 2, "Missing argument 'IMAGE...'", "--help"),
    ],
)
def test_what_can_not_be_is_refused(
    command_line: CommandLine, coloured: Coloured, arguments: list[str], code: int, message: str, hint: str
) -> None:
    assert_refused(command_line("predict", str(coloured.run.path), *arguments), code, message, hint)


def test_the_final_weights_need_nothing_else_of_the_run(
    command_line: CommandLine, coloured: Coloured, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "model.safetensors"):
        shutil.copy(coloured.run.path / name, run / name)
    (tmp_path / "a.png").write_bytes(FILES["red/0.png"])
    assert "red" in command_line("predict", str(run), str(tmp_path / "a.png"), "--device", "cpu").out


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else enforces a cap that can be read back here")
def test_a_cap_is_enforced(coloured: Coloured, tmp_path: Path) -> None:
    photos = write_folder(tmp_path / "new", FILES)
    arguments = ("predict", str(coloured.run.path), str(photos), "--device", "cpu", "--json")
    limited = "import resource\n" + MAIN.replace(
        "main()", "\ntry: main()\nexcept SystemExit as end: print(end.code)"
    )
    limited += "\nprint(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    code, out, err = end(start_python(limited, *arguments, "--max-ram", "1GB"))
    assert (code, err) == (0, "")
    said, ended_with, limit = out.rsplit("\n", 3)[:3]
    assert len(json.loads(said)["images"]) == 40
    assert (ended_with, int(limit) < 3 * 10**9) == ("0", True)
    code, _, err = end(start_python(MAIN, *arguments, "--max-ram", "100MB"))
    assert code == 3
    assert "hint: --max-ram " in err


def test_it_holds_few_pictures_at_once(
    command_line: CommandLine, coloured: Coloured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Counts(JsonOutput):
        def add(self, predictions: list[Prediction]) -> None:
            sizes.append(len(predictions))
            super().add(predictions)

    monkeypatch.setattr(module, "JsonOutput", Counts)
    photos = write_folder(tmp_path / "new", {f"{number}.png": FILES["red/0.png"] for number in range(300)})
    told = json.loads(command_line("predict", str(coloured.run.path), str(photos), "--json").out)
    assert sizes == [128, 128, 44]
    assert len(told["images"]) == 300


PREDICTIONS = [
    Prediction(f"{HOSTILE}.png", ((HOSTILE, 0.75), ("b", 0.2), ("c", 0.05)), None),
    Prediction("x" * 300, (), "not a readable image"),
]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_table_fits_and_shows_hostile_names_as_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    output = TableOutput("run: the final weights")
    output.add(PREDICTIONS)
    output.add([Prediction("later.png", (("b", 1.0),), None)])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert sum(line.startswith("image ") for line in said.splitlines()) == 1
    assert "75.0%" in said
    assert "".join(said.split()).count("x" * 300) <= 1


def test_csv_takes_any_name_and_gives_it_back(tmp_path: Path) -> None:
    surrogate = os.fsdecode(b"\xff.png") if sys.platform != "win32" else "a.png"
    with (tmp_path / "x.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        CsvOutput(file, 3).add([*PREDICTIONS, Prediction(surrogate, (("a", 1.0),), None)])
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        _, first, second, third = list(csv.reader(file))
    assert first == [f"{HOSTILE}.png", HOSTILE, "0.750000", "b", "0.200000", "c", "0.050000", ""]
    assert second == ["x" * 300, "", "", "", "", "", "", "not a readable image"]
    assert len(third) == 8
