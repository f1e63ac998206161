from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from lowmem_seq.errors import UsageError
from lowmem_seq.files import LARGEST_JSON_BYTES, read_json, write_text
from lowmem_seq.runs.folder import RunFolder, create_run, default_run_path, open_run
from tests.builders import NEEDS_LINKS, names, tiny_config


def test_a_new_run_holds_its_settings_and_its_environment(tmp_path: Path) -> None:
    config = tiny_config("seed=7")
    run = create_run(tmp_path / "runs" / "first", config)
    assert names(run.path) == ["config.yaml", "environment.json", "lock"]
    assert run.config == config
    assert read_json(run.environment_file)["format_version"] == 1
    assert open_run(run.path).config == config


def test_an_empty_folder_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert create_run(tmp_path / "mine", tiny_config()).config_file.is_file()


def test_a_folder_with_a_run_is_refused_with_the_way_to_go_on(run: RunFolder) -> None:
    with pytest.raises(UsageError) as caught:
        create_run(run.path, tiny_config())
    assert caught.value.message == f"the run folder {run.path} is not empty."
    assert caught.value.hint == f"lowmem-seq resume {run.path}"


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is not empty") as caught:
        create_run(tmp_path, tiny_config())
    assert caught.value.hint == "choose another: --run-dir DIR"
    assert names(tmp_path) == ["photo.jpg"]


def test_what_a_start_left_that_was_killed_at_once_is_no_run_yet(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "environment.json").write_text("{}")
    (path / "config.yaml.partial-0123abcd").write_text("half")
    run = create_run(path, tiny_config("seed=7"))
    assert run.config.seed == 7
    assert read_json(run.environment_file)["format_version"] == 1


def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="can't be made") as caught:
            create_run(path, tiny_config())
        assert caught.value.hint == "choose another: --run-dir DIR"


@pytest.mark.parametrize(("made", "told"), [(False, "there is no folder"), (True, "there is no run in")])
def test_opening_what_is_no_run_is_refused(tmp_path: Path, made: bool, told: str) -> None:
    path = tmp_path / "nothing"
    if made:
        path.mkdir()
    with pytest.raises(UsageError) as caught:
        open_run(path)
    assert caught.value.message == f"{told} {path}."
    assert "lowmem-seq report" in caught.value.hint


def test_opening_a_run_checks_its_settings(run: RunFolder) -> None:
    write_text(run.config_file, run.config_file.read_text().replace("epochs: 4", "epochs: -4"))
    with pytest.raises(UsageError, match=r"recipe\.epochs"):
        open_run(run.path)


def test_json_of_a_run_is_an_object_or_not_there_yet(run: RunFolder) -> None:
    assert run.read_json(run.path / "nothing.json") is None
    for content, told in (
        ("{", "can't be read"),
        ("[" * 100_000, "can't be read: it is nested too deeply"),
        ("9" * (LARGEST_JSON_BYTES + 1), rf"can't be read: plan\.json has over {LARGEST_JSON_BYTES:,} bytes"),
        ("[1]", "holds no JSON object"),
    ):
        write_text(run.plan_file, content)
        with pytest.raises(UsageError, match=told) as caught:
            run.read_json(run.plan_file)
        assert str(run.plan_file) in caught.value.message
        assert caught.value.hint == "restore it from a copy of the run"


def test_a_run_s_default_name_says_preset_and_time_and_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda pattern: "20260102-030405")
    taken = []
    for _ in range(3):
        path = default_run_path("small", tmp_path)
        path.mkdir()
        taken.append(path.name)
    stem = "small-20260102-030405"
    assert taken == [stem, f"{stem}-2", f"{stem}-3"]


IN_A_RUN = [
    "config.yaml",
    "events.jsonl",
    "lock",
    "checkpoints",
    "checkpoints/step-00000001",
    "checkpoints/step-00000001/model.safetensors",
    "checkpoints/step-00000001.partial-0123abcd",
    "report.html",
    "deep/down/anything",
]


@NEEDS_LINKS
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", IN_A_RUN)
def test_a_link_anywhere_in_a_run_is_refused(run: RunFolder, tmp_path: Path, name: str, there: bool) -> None:
    link, target = run.path / name, tmp_path / "elsewhere"
    link.parent.mkdir(parents=True, exist_ok=True)
    if name == "config.yaml":
        link.rename(target)
    elif there:
        target.mkdir()
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(UsageError) as caught:
        open_run(run.path)
    assert caught.value.exit_code == 2
    assert caught.value.message == f"{link} is a link, and a run's files must lie in its own folder."
    assert caught.value.hint == "copy the run with its links resolved: cp -rL RUN_DIR COPY"
    assert link.is_symlink()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("name", ["plan.json", "events.jsonl", "checkpoints/step-00000001/state.json"])
def test_a_pipe_that_a_read_would_wait_at_is_refused(run: RunFolder, name: str) -> None:
    pipe = run.path / name
    pipe.parent.mkdir(parents=True, exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(UsageError) as caught:
        open_run(run.path)
    assert caught.value.message == f"{pipe} is a pipe or a device."


@NEEDS_LINKS
def test_a_run_may_be_opened_by_a_link_to_its_folder(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "newest").symlink_to(run.path)
    assert open_run(tmp_path / "newest").config == run.config


@NEEDS_LINKS
def test_leftovers_of_killed_writes_are_removed_and_nothing_else(run: RunFolder, tmp_path: Path) -> None:
    before = names(run.path)
    (tmp_path / "mine").write_text("mine")
    (run.path / "plan.json.partial-0123abcd").write_text("half")
    (run.path / "model.safetensors.partial-0123abcd").mkdir()
    (run.path / "model.safetensors.partial-0123abcd" / "model.safetensors").write_text("half")
    (run.path / "data.json.partial-0123abcd").symlink_to(tmp_path)
    run.remove_leftovers()
    assert names(run.path) == before
    assert (tmp_path / "mine").read_text() == "mine"
