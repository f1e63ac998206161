from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq.disk import free_bytes
from lowmem_seq.errors import UsageError
from lowmem_seq.report.status import Status, StatusReader, read_status, saved_steps
from lowmem_seq.report.summary import summarise, summarise_all
from lowmem_seq.runs.folder import RunFolder
from tests.checkpoint.builders import save_step
from tests.report.builders import (
    BATCH,
    crash,
    finish,
    form_world,
    pause,
    pause_for,
    record_memory,
    restart,
    save,
    start_session,
    stop,
    tell,
    train_to,
    validate,
)

CONTRACT = {
    "state",
    "step",
    "epoch",
    "images_seen",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "images_per_second",
    "wall_seconds",
    "tree_bytes",
    "peak_tree_bytes",
    "cap_bytes",
    "micro_batch",
    "accumulation",
    "parameters",
    "weights_sha256",
    "restarts",
    "peers",
}
OWN = {
    "run",
    "name",
    "total_steps",
    "cause",
    "saved_step",
    "saved_unix_seconds",
    "world",
    "paused_unix_seconds",
    "goes_on_unix_seconds",
    "eta_seconds",
    "last_event_unix_seconds",
    "last_restart_cause",
    "checkpoints",
    "free_bytes",
}


def held(run: RunFolder) -> Status:
    """The status while a process holds the run."""
    with run.locked():
        return read_status(run)


def seconds_left(run: RunFolder) -> float | None:
    """The time left while a process holds the run."""
    left: float | None = held(run).figures["eta_seconds"]
    return left


def test_a_half_made_run_has_every_key_and_knows_nothing(run: RunFolder) -> None:
    told = read_status(run).to_json()
    assert told.keys() == CONTRACT | OWN
    assert abs(told.pop("free_bytes") - free_bytes(run.path)) < 10**9
    assert {key: value for key, value in told.items() if value is not None} == {
        "run": str(run.path),
        "name": "tiny",
        "state": "crashed",
        "cause": "the trainer ended without a word",
        "checkpoints": [],
        "restarts": 0,
    }


def test_the_figures_are_those_of_the_report(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20, wall_seconds=3.5)
    record_memory(run, 500, 600)
    validate(run, 20)
    finish(run)
    told, summary = read_status(run).to_json(), summarise(run)
    shared = told.keys() & summary.keys() - {"images_per_second", "saved_step"}
    assert shared > CONTRACT - {"images_per_second"}
    assert {key: told[key] for key in shared} == {key: summary[key] for key in shared}
    assert (told["state"], told["test_accuracy"], told["accumulation"], told["wall_seconds"]) == (
        "finished",
        0.6,
        3,
        12.5,
    )
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_rate_is_the_most_recent_one(run: RunFolder) -> None:
    start_session(run)
    for step, rate in ((20, 50.0), (40, 100.0), (60, 10.0)):
        train_to(run, step, rate=rate)
    assert read_status(run).images_per_second == 10.0
    assert summarise(run)["images_per_second"] == 50.0


# Running or not, and why.


def test_states(run: RunFolder) -> None:
    def state() -> tuple[str, str | None, bool]:
        status = read_status(run)
        return status.figures["state"], status.cause, status.starting

    with run.locked():
        assert state() == ("running", None, True)
        start_session(run)
        assert state() == ("running", None, False)
        restart(run, "the trainer was ended by SIGKILL")
        assert state() == ("running", None, True)
        start_session(run)
        pause(run)
        assert state() == ("paused", "the checkpoint of step 40: No space left on device", False)
    assert state() == ("crashed", "the trainer ended without a word", False)
    crash(run, "the trainer was ended by SIGSEGV")
    assert state() == ("crashed", "the trainer was ended by SIGSEGV", False)
    stop(run, 20)
    assert state() == ("stopped", None, False)
    start_session(run, step=20)
    assert state() == ("crashed", "the trainer ended without a word", False)
    finish(run)
    assert state() == ("finished", None, False)


def test_the_trainers_lock_alone_is_a_run_that_runs(run: RunFolder) -> None:
    start_session(run)
    with run.writing():
        assert read_status(run).figures["state"] == "running"


def test_a_pause_says_what_waits_and_why(run: RunFolder) -> None:
    start_session(run)
    pause(run)
    status = held(run)
    assert status.paused is not None
    assert status.paused.startswith("the checkpoint of step 40 can't be written: No space left on device (5 B are")
    assert status.cause == "the checkpoint of step 40: No space left on device"
    tell(run, "unpaused", what="the checkpoint of step 40", seconds=2.0)
    assert held(run).paused is None


def test_a_pause_of_a_laptop_says_since_when_and_for_what(run: RunFolder) -> None:
    start_session(run)
    pause_for(run, "power", "hours", at=1000.0)
    tell(run, "slept", at=1500.0, seconds=400.0)
    tell(run, "paused", at=2000.0, waits_for=["hours"], cause="it is late", until_unix_seconds=9000.0)
    status = held(run)
    assert (status.figures["state"], status.cause, status.starting) == ("paused", "it is late", False)
    assert status.paused is not None
    assert status.paused.startswith("it is late; the run goes on at ")
    assert (status.waits_for, status.paused_unix_seconds) == (("hours",), 1000.0)
    assert (status.goes_on_unix_seconds, status.to_json()["cause"]) == (9000.0, "it is late")
    tell(run, "unpaused", seconds=1000.0)
    status = held(run)
    assert (status.figures["state"], status.starting, status.waits_for) == ("running", True, ())
    assert (status.paused, status.paused_unix_seconds, status.goes_on_unix_seconds) == (None, None, None)


def test_a_pause_whose_words_are_odd_is_a_pause_all_the_same(run: RunFolder) -> None:
    start_session(run)
    tell(run, "paused", waits_for=["rain"], cause="the weather", until_unix_seconds=2.0**40)
    status = held(run)
    assert (status.waits_for, status.goes_on_unix_seconds) == (("rain",), None)


def test_the_ranks_of_engine_mode_are_told_while_they_train(run: RunFolder) -> None:
    tell(run, "session_opened", supervisor_pid=1)
    assert held(run).to_json()["world"] is None
    form_world(run)
    start_session(run)
    world = held(run).to_json()["world"]
    assert (world["address"], world["backend"]) == ("127.0.0.1:29500", "gloo")
    assert world["ranks"] == [
        {"machine": "hp", "device": "cpu", "precision": "fp32", "images_per_second": 300.0, "samples": 30},
        {"machine": "mac", "device": "cpu", "precision": "fp32", "images_per_second": 100.0, "samples": 10},
    ]
    assert read_status(run).world is None  # nobody holds it
    tell(run, "session_opened", supervisor_pid=2)
    assert held(run).world is None


def test_a_crash_that_gave_no_cause_says_so(run: RunFolder) -> None:
    start_session(run)
    tell(run, "session_ended", state="crashed")
    assert read_status(run).cause == "the trainer ended, and did not say why"


def test_a_state_that_is_none_counts_as_a_crash(run: RunFolder) -> None:
    start_session(run)
    tell(run, "session_ended", state="\x1b[31m", cause="odd")
    status = read_status(run)
    assert (status.figures["state"], status.cause) == ("crashed", "odd")


def test_restarts_with_the_cause_of_the_last(run: RunFolder) -> None:
    assert read_status(run).last_restart_cause is None
    start_session(run)
    restart(run, "the trainer was ended by SIGKILL")
    start_session(run)
    restart(run, "the trainer ended with code 1, for want of memory")
    start_session(run)
    status = read_status(run)
    assert (status.figures["restarts"], status.last_restart_cause) == (
        2,
        "the trainer ended with code 1, for want of memory",
    )


# Time.


def test_the_time_left_is_told_while_a_process_holds_the_run(run: RunFolder) -> None:
    start_session(run, step=20)
    assert seconds_left(run) is None
    train_to(run, 30, rate=BATCH / 2.0)  # 2 s a step
    assert seconds_left(run) == pytest.approx(30 * 2.0)
    assert read_status(run).figures["eta_seconds"] is None
    save(run, 30, seconds=6.0)
    assert seconds_left(run) == pytest.approx(30 * 2.0 + 6.0 * (60 / 300 + 4 / 3))
    pause(run)
    assert seconds_left(run) == pytest.approx(30 * 2.0 + 6.0 * (60 / 300 + 4 / 3))
    crash(run, "killed")
    start_session(run, step=20)
    assert seconds_left(run) == pytest.approx(40 * 2.0 + 6.0 * (80 / 300 + 4 / 3))


def test_a_night_with_a_closed_lid_is_not_counted(run: RunFolder) -> None:
    start_session(run, at=1000.0)
    train_to(run, 20, rate=BATCH / 1.0, at=1020.0)
    train_to(run, 40, rate=BATCH / 1.0, at=1040.0 + 8 * 3600)
    assert seconds_left(run) == pytest.approx(20.0)


def as_it_stands(status: Status) -> Status:
    """A status without what other programs change between two looks."""
    return dataclasses.replace(status, free_bytes=None)


def test_a_reader_goes_on_from_where_it_was(run: RunFolder) -> None:
    reader = StatusReader(run)
    assert list(reader.news()) == []
    assert as_it_stands(reader.status()) == as_it_stands(read_status(run))
    start_session(run)
    train_to(run, 20)
    assert [event["event"] for event in reader.news()] == ["session_started", "train"]
    assert list(reader.news()) == []
    restart(run, "the trainer was ended by SIGKILL")
    save_step(run, 10)
    with run.locked():
        assert [event["event"] for event in reader.news()] == ["session_ended", "trainer_restarted"]
        assert as_it_stands(reader.status()) == as_it_stands(read_status(run))


def test_ages_are_those_of_the_last_events(run: RunFolder) -> None:
    start_session(run, at=1000.0)
    record_memory(run, 1, 2, at=1015.0)
    train_to(run, 20, at=1020.0)
    status = held(run)
    assert (status.memory_unix_seconds, status.heard_unix_seconds) == (1015.0, 1020.0)
    assert status.to_json()["last_event_unix_seconds"] == 1020.0


@pytest.mark.parametrize("at", [-1.0, 1e300, "yesterday", None])
def test_a_time_that_is_none_is_not_known(run: RunFolder, at: Any) -> None:
    line = json.dumps({"time_unix_seconds": at, "event": "memory", "tree_bytes": 1, "peak_tree_bytes": 2})
    run.events.path.write_text(line + "\n", encoding="utf-8")
    status = read_status(run)
    assert (status.heard_unix_seconds, status.memory_unix_seconds) == (None, None)


# What lies there.


def test_the_newest_checkpoint_is_the_folders_and_its_time_the_events(run: RunFolder) -> None:
    saved = [save_step(run, step) for step in (10, 20)]
    save(run, 10, at=1010.0)
    save(run, 20, at=1020.0)
    status = read_status(run)
    assert (status.saved_step, status.saved_unix_seconds, status.lost_step) == (20, 1020.0, None)
    assert status.checkpoints == tuple(
        (checkpoint.step, sum(file.stat().st_size for file in checkpoint.path.iterdir())) for checkpoint in saved
    )
    assert status.to_json()["checkpoints"] == [{"step": step, "bytes": size} for step, size in status.checkpoints]
    shutil.rmtree(saved[1].path)
    status = read_status(run)
    assert (status.saved_step, status.saved_unix_seconds) == (10, 1010.0)


def test_a_save_that_no_event_tells_of_has_the_time_of_its_manifest(run: RunFolder) -> None:
    saved = save_step(run, 30)
    os.utime(saved.path / "manifest.json", (1030, 1030))
    assert (read_status(run).saved_step, read_status(run).saved_unix_seconds) == (30, 1030.0)
    (saved.path / "manifest.json").unlink()
    assert (read_status(run).saved_step, read_status(run).saved_unix_seconds) == (30, None)


def test_saves_whose_checkpoints_are_gone_are_told_of(run: RunFolder) -> None:
    save(run, 10)
    save(run, 20)
    status = read_status(run)
    assert (status.saved_step, status.lost_step, status.to_json()["saved_step"]) == (None, 20, None)


def test_what_is_broken_or_half_written_is_no_checkpoint(run: RunFolder) -> None:
    saved = save_step(run, 10)
    saved.path.rename(saved.path.with_name("broken-step-00000010"))
    (run.checkpoints / "step-00000020.partial-0123abcd").mkdir()
    assert read_status(run).checkpoints == ()


def test_saved_steps_are_those_with_a_number(run: RunFolder) -> None:
    save(run, 10, at=1010.0)
    save(run, 20, at=1e300)
    tell(run, "checkpoint", step=[1])
    tell(run, "checkpoint")
    assert saved_steps(run) == {10: 1010.0, 20: None}


# Folders that are not as they should be.


def test_a_torn_last_line_hides_nothing_else(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20)
    with run.events.path.open("ab") as file:
        file.write(b'{"event": "train", "step": 99')
    assert read_status(run).figures["step"] == 20


def train_at_no_rate(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20, rate=0.0)


ODD: dict[str, Callable[[RunFolder], None]] = {
    "a step in words": lambda run: tell(run, "train", step="ten", images_per_second=1.0),
    "no rate": lambda run: tell(run, "train", step=1),
    "a rate of nothing": train_at_no_rate,
    "a step without end": lambda run: tell(run, "train", step=1e999, images_per_second=1.0),
    "no number": lambda run: tell(run, "train", step=float("nan"), images_per_second=1.0),
    "a list as a loss": lambda run: tell(run, "train", step=1, train_loss=[1], images_per_second=1.0),
    "a list as a step": lambda run: tell(run, "checkpoint", step=[1]),
    "no peak": lambda run: tell(run, "memory", tree_bytes=1),
    "a pause for no cause": lambda run: tell(run, "paused", waits_for=["power"]),
    "ranks in words": lambda run: tell(run, "world_formed", address="a", backend="gloo", ranks=["hp"]),
    "a rank of endless speed": lambda run: form_world(run, rate=1e999),
    "epochs in words": lambda run: tell(run, "session_started", step=1, epochs="many"),
}


@pytest.mark.parametrize("kind", ODD)
def test_events_that_make_no_sense_are_told_of(run: RunFolder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **_: dumps(value))  # somebody else's JSON: NaN and Infinity
    ODD[kind](run)
    with run.locked(), pytest.raises(UsageError) as caught:
        read_status(run)
    assert caught.value.message.startswith(f"an event in {run.path / 'events.jsonl'} is not as expected (")
    assert caught.value.hint == "restore it from a copy of the run"


OF_STATUS_ALONE = (
    *("no rate", "a rate of nothing", "epochs in words"),
    *("a pause for no cause", "ranks in words", "a rank of endless speed"),
)


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in OF_STATUS_ALONE])
def test_a_report_tells_of_them_too(run: RunFolder, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **_: dumps(value))
    ODD[kind](run)
    (told,) = summarise_all([run])
    assert told["state"].startswith(f"unreadable: an event in {run.path / 'events.jsonl'} is not as expected (")


def test_a_disk_that_does_not_answer_is_not_known(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("lowmem_seq.report.status.free_bytes", fail)
    assert read_status(run).free_bytes is None
