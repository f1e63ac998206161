from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lowmem_seq.cli.data import data_app
from lowmem_seq.errors import DataError, UsageError
from tests.data.builders import class_files, write_folder

runner = CliRunner()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LOWMEM_SEQ_CACHE", str(folder))
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", class_files("cat", "dog") | {"cat/notes.txt": b"x"})


def said(*arguments: str) -> str:
    result = runner.invoke(data_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_catalogue_is_listed() -> None:
    text = said("list")
    for words in ("cifar10 ", "fashion-mnist", "170 MB", "60,000", "packed", "--data FOLDER"):
        assert words in text
    assert "other packs" not in text
    listed = json.loads(said("list", "--json"))
    assert listed["catalogue"][0]["name"] == "cifar10"
    assert listed["catalogue"][2]["flip_makes_sense"] is False
    assert listed["catalogue"][0]["packed_image_sizes"] == []
    assert listed["other_packs"] == []


def test_a_pack_that_was_added_is_listed_and_shown(photos: Path) -> None:
    text = said("add", str(photos), "--image-size", "16")
    assert "6 train and 2 test images of 2 classes, 16 px" in text
    assert "left out: 1 (not an image file)" in text
    (other,) = json.loads(said("list", "--json"))["other_packs"]
    assert other["source"] == str(photos)
    assert other["path"] in text
    assert "photos-16px-" in said("list")
    for name in (other["path"], Path(other["path"]).name, str(photos)):
        shown = json.loads(said("show", name, "--image-size", "16", "--json"))
        assert shown["verified"] is True
        assert shown["fingerprint"] == other["fingerprint"]
        assert shown["parts"]["train"] == {"images": 6, "by_class": [3, 3]}
    text = said("show", other["path"])
    for words in (other["fingerprint"], "15 % of each class", "cat/notes.txt (not an image file)", "red 0."):
        assert words in text


def test_add_as_json(photos: Path) -> None:
    added = json.loads(said("add", str(photos), "--json"))
    assert added["classes"] == 2
    assert (added["train_images"], added["test_images"], added["image_size"]) == (6, 2, 32)
    assert added["pack_bytes"] == 8 * (32 * 32 * 3 + 4)


def test_show_verifies_the_hashes(photos: Path) -> None:
    path = Path(json.loads(said("add", str(photos), "--json"))["path"])
    data = (path / "train.images").read_bytes()
    (path / "train.images").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="damaged"):
        said("show", str(photos))


def test_what_is_not_packed_is_not_shown(photos: Path) -> None:
    with pytest.raises(DataError, match="not packed at 32 px") as caught:
        said("show", str(photos))
    assert caught.value.hint == f"lowmem-seq data add {photos}"
    with pytest.raises(DataError) as other_size:
        said("show", "shapes", "--image-size", "64")
    assert other_size.value.hint == "lowmem-seq data add shapes --image-size 64"


@pytest.mark.parametrize("size", ["7", "1025"])
def test_image_sizes_out_of_range(photos: Path, size: str) -> None:
    for command in ("add", "show"):
        with pytest.raises(UsageError, match="not from 8 to 1024"):
            said(command, str(photos), "--image-size", size)


def test_unknown_names() -> None:
    for command in ("add", "show"):
        with pytest.raises(UsageError) as caught:
            said(command, "shape")
        assert "did you mean 'shapes'?" in caught.value.hint


def test_reading_commands_import_no_torch(photos: Path) -> None:
    said("add", str(photos))
    code = (
        "import sys\nfrom lowmem_seq.cli.data import data_app\n"
        "data_app(sys.argv[1:], standalone_mode=False)\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    for arguments in (["list"], ["show", str(photos)]):
        command = [sys.executable, "-c", code, *arguments]
        child = subprocess.run(command, capture_output=True, text=True, check=True)
        assert child.stderr.split() == ["False"]
