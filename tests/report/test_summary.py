from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.config import RunConfig
from lowmem_seq.errors import UsageError
from lowmem_seq.files import write_text
from lowmem_seq.report.summary import UNKNOWN, find_runs, summarise, summarise_all
from lowmem_seq.runs.folder import RunFolder, create_run
from tests.builders import NEEDS_LINKS, tiny_config
from tests.report.builders import (
    crash,
    finish,
    pause,
    record_memory,
    restart,
    save,
    start_session,
    stop,
    tell,
    train_to,
)


def told(run: RunFolder, *keys: str) -> list[Any]:
    summary = summarise(run)
    return [summary[key] for key in keys]


def test_a_run_before_its_first_event_has_every_key_and_knows_nothing(run: RunFolder) -> None:
    summary = summarise(run)
    assert list(summary) == list(UNKNOWN)
    known = {key: value for key, value in summary.items() if value is not None}
    assert known == {
        "run": str(run.path),
        "name": "tiny",
        "state": "crashed",
        "data": "shapes",
        "sessions": 0,
        "restarts": 0,
    }


def test_a_finished_run_is_summed_up(run: RunFolder) -> None:
    start_session(run)
    record_memory(run, tree=500, peak=600)
    train_to(run, 20, loss=2.0, rate=50.0)
    train_to(run, 40, loss=1.7, rate=100.0)
    save(run, 40)
    train_to(run, 60, loss=1.4, rate=90.0)
    record_memory(run, tree=400, peak=550)
    finish(run)
    assert summarise(run) == {
        "run": str(run.path),
        "name": "tiny",
        "state": "finished",
        "data": "shapes",
        "classes": ["a", "b"],
        "parameters": 1234,
        "step": 60,
        "saved_step": 40,
        "total_steps": 60,
        "epoch": 6.0,
        "images_seen": 2400,
        "train_loss": 1.4,
        "val_loss": 1.2,
        "val_accuracy": 0.5,
        "test_loss": 1.1,
        "test_accuracy": 0.6,
        "class_accuracies": [0.5, 0.7],
        "images_per_second": 90.0,
        "wall_seconds": 12.5,
        "tree_bytes": 400,
        "peak_tree_bytes": 600,
        "cap_bytes": 10**9,
        "device": "cpu",
        "precision": "fp32",
        "micro_batch": 16,
        "accumulation": 3,
        "weights_sha256": "ab",
        "sessions": 1,
        "restarts": 0,
        "peers": None,
        "eta_seconds": None,
        "machines": None,
    }


def test_a_summary_is_json(run: RunFolder) -> None:
    start_session(run)
    finish(run)
    assert json.loads(json.dumps(summarise(run), allow_nan=False)) == summarise(run)


def test_a_held_run_is_running_whatever_its_events_say(run: RunFolder) -> None:
    start_session(run)
    finish(run)
    with run.locked():
        assert told(run, "state") == ["running"]
    assert told(run, "state") == ["finished"]


def test_a_session_without_an_end_crashed_also_after_one_that_ended(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20)
    assert told(run, "state", "step") == ["crashed", 20]
    stop(run, 25)
    assert told(run, "state", "step", "sessions") == ["stopped", 25, 1]
    start_session(run, step=25)
    assert told(run, "state", "step", "sessions") == ["crashed", 25, 2]
    finish(run)
    assert told(run, "state", "sessions") == ["finished", 2]


def test_a_crash_that_was_told_of_keeps_what_was_known(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20)
    crash(run, "killed")
    assert told(run, "state", "step", "wall_seconds") == ["crashed", 20, None]


def test_a_run_stands_where_its_last_session_took_it_up(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 40)
    assert told(run, "step", "epoch", "images_seen") == [40, 4.0, 1600]
    start_session(run, step=25)
    assert told(run, "step", "epoch", "images_seen") == [25, 2.5, 1000]


def test_a_save_and_a_stop_tell_the_step_as_well(run: RunFolder) -> None:
    start_session(run)
    save(run, 7)
    assert told(run, "step", "epoch", "images_seen", "saved_step") == [7, 0.7, 280, 7]
    stop(run, 9)
    assert told(run, "step", "epoch", "images_seen", "saved_step") == [9, 0.9, 360, 7]


def test_the_time_that_was_used_is_known_while_it_trains(run: RunFolder) -> None:
    start_session(run)
    assert told(run, "wall_seconds") == [None]
    train_to(run, 20, wall_seconds=7.5)
    assert told(run, "wall_seconds") == [7.5]


def test_restarts_are_counted_over_all_sessions(run: RunFolder) -> None:
    start_session(run)
    restart(run, "the trainer was ended by SIGKILL")
    start_session(run)
    restart(run, "the trainer was ended by SIGSEGV")
    assert told(run, "restarts") == [2]


def test_the_cap_is_known_once_it_is_planned(run: RunFolder) -> None:
    tell(run, "planned", cap_bytes=5)
    assert told(run, "cap_bytes", "peak_tree_bytes") == [5, None]
    record_memory(run, 1, 2)
    assert told(run, "cap_bytes", "peak_tree_bytes") == [10**9, 2]


def test_a_held_run_that_waits_for_the_disk_is_paused(run: RunFolder) -> None:
    start_session(run)
    pause(run)
    assert told(run, "state") == ["crashed"]
    with run.locked():
        assert told(run, "state") == ["paused"]
        record_memory(run, 1, 2)
        assert told(run, "state") == ["paused"]
        tell(run, "unpaused", what="the checkpoint of step 40", seconds=3.0)
        assert told(run, "state") == ["running"]


def by_its_end(run: RunFolder) -> None:
    crash(run, "the trainer said: it could not be written")


def by_a_resume(run: RunFolder) -> None:
    tell(run, "session_opened", supervisor_pid=1)


def by_a_plan(run: RunFolder) -> None:
    tell(run, "planned", cap_bytes=5)


@pytest.mark.parametrize("ends", [by_its_end, by_a_resume, by_a_plan, start_session])
def test_a_pause_ends_with_who_paused(run: RunFolder, ends: Callable[[RunFolder], None]) -> None:
    start_session(run)
    pause(run)
    ends(run)
    with run.locked():
        assert told(run, "state") == ["running"]


def test_a_smaller_micro_batch_needs_more_of_them(run: RunFolder) -> None:
    start_session(run, micro_batch=40)
    assert told(run, "micro_batch", "accumulation") == [40, 1]
    run.events.append("setting_changed", step=3, micro_batch_before=40, micro_batch=20)
    assert told(run, "micro_batch", "accumulation") == [20, 2]


@pytest.mark.parametrize("torn", [b'{"event": "train", "step": 99', b"\xff\xfe", b'{"event": "test", "test_loss"'])
def test_a_torn_last_line_hides_nothing_else(run: RunFolder, torn: bytes) -> None:
    start_session(run)
    train_to(run, 20)
    with run.events.path.open("ab") as file:
        file.write(torn)
    assert told(run, "state", "step", "test_loss") == ["crashed", 20, None]


def test_events_that_are_not_known_are_passed_over(run: RunFolder) -> None:
    start_session(run)
    run.events.append("invented_later", step=99, state="odd")
    assert told(run, "state", "step") == ["crashed", 0]


@pytest.mark.parametrize(
    "odd",
    [
        {"event": "session_ended", "state": 5},
        {"event": "session_started", "classes": 5, "step": 0},
        {"event": "test", "class_accuracies": "high"},
        {"event": "test", "class_accuracies": [0.5, "high"]},
    ],
    ids=str,
)
def test_what_is_neither_text_nor_a_list_where_it_should_be_is_told(run: RunFolder, odd: dict[str, Any]) -> None:
    tell(run, odd.pop("event"), **odd)
    (told,) = summarise_all([run])
    assert "is not as expected (ValueError: " in told["state"]
    assert next(iter(odd)) in told["state"]


def test_every_run_under_the_root_is_found_oldest_first(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "middle", "oldest")):
        path = create_run(tmp_path / name, tiny_config()).path
        os.utime(path, (10**9 - age, 10**9 - age))
    (tmp_path / "no-run").mkdir()
    assert [run.path.name for run in find_runs([], tmp_path)] == ["oldest", "middle", "newest"]
    assert [run.path.name for run in find_runs([tmp_path / "middle"], tmp_path)] == ["middle"]


def test_a_run_that_lost_its_settings_is_found_and_told_to_be_broken(run: RunFolder) -> None:
    start_session(run)
    run.config_file.unlink()
    (found,) = find_runs([run.path], run.path)
    (told,) = summarise_all([found])
    assert told["state"].startswith("unreadable: ")
    assert "config.yaml" in told["state"]
    assert [one.path for one in find_runs([], run.path.parent)] == [run.path]  # among all of a folder, too


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (lambda root: [], "there is no run under {}."),
        (lambda root: [root], "there is no run in {}."),
    ],
)
def test_where_there_is_no_run_it_is_said(
    tmp_path: Path, paths: Callable[[Path], list[Path]], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        find_runs(paths(tmp_path), tmp_path)
    assert caught.value.message == message.format(tmp_path)
    assert "lowmem-seq" in caught.value.hint


def test_one_unreadable_run_spoils_no_other(tmp_path: Path, run: RunFolder) -> None:
    config: RunConfig = tiny_config()
    broken = create_run(tmp_path / "broken", config)
    write_text(broken.config_file, config.to_yaml().replace("format_version: 1", "format_version: 9"))
    first, second = summarise_all([broken, run])
    assert first["state"].startswith("unreadable: ")
    assert "format version 9" in first["state"]
    assert first.keys() == second.keys() == UNKNOWN.keys()
    assert second["state"] == "crashed"


@NEEDS_LINKS
def test_a_run_with_a_link_is_not_read(tmp_path: Path, run: RunFolder) -> None:
    start_session(run)
    run.events.path.rename(tmp_path / "elsewhere")
    run.events.path.symlink_to(tmp_path / "elsewhere")
    (told,) = summarise_all([run])
    link = f"{run.events.path} is a link, and a run's files must lie in its own folder."
    assert told == {**UNKNOWN, "run": str(run.path), "state": f"unreadable: {link}"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_a_run_with_a_pipe_is_not_read(run: RunFolder) -> None:
    os.mkfifo(run.events.path)
    writer = threading.Thread(target=run.events.path.write_bytes, args=(b"",))  # so that a reader would not wait
    writer.start()
    (told,) = summarise_all([run])
    reader = os.open(run.events.path, os.O_RDONLY | os.O_NONBLOCK)  # open until the writer has come and gone
    writer.join()
    os.close(reader)
    assert told["state"] == f"unreadable: {run.events.path} is a pipe or a device."


def test_a_run_that_the_disk_refuses_spoils_no_other(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: RunFolder) -> None:
        raise PermissionError("the disk says no")

    monkeypatch.setattr(RunFolder, "is_locked", refuse)
    (told,) = summarise_all([run])
    assert told["state"] == "unreadable: it can't be read: the disk says no"


def test_other_machines_are_counted_while_the_run_goes_on(run: RunFolder) -> None:
    start_session(run)
    tell(run, "peers_present", others=1)
    with run.locked():
        assert told(run, "peers") == [1]
        tell(run, "peers_present", others=0)
        assert told(run, "peers") == [0]
        start_session(run, step=10)  # the trainer was started again
        assert told(run, "peers") == [0]
        tell(run, "session_opened", supervisor_pid=1)
        assert told(run, "peers") == [None]
    tell(run, "peers_present", others=2)
    assert told(run, "peers") == [None]
