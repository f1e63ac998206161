from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from lowmem_seq.report.clock import MOST_SPANS
from lowmem_seq.report.history import MOST_HAPPENINGS, History
from lowmem_seq.report.series import MOST_STRETCHES
from lowmem_seq.report.summary import summarise
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.folder import RunFolder
from tests.report.builders import BATCH, TRAIN_IMAGES, finish, record_memory, restart, start_session, tell, train_to

SMALLER = {"micro_batch_before": 16, "micro_batch": 8, "cause": "memory was short"}


def history_of(run: RunFolder) -> History:
    history = History()
    for event in run.events:
        history.take(event)
    return history


def curve(history: History, name: str) -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in (history.by_step | history.by_time)[name]]


def test_a_run_becomes_curves(run: RunFolder) -> None:
    start_session(run, at=1000.0)
    train_to(run, 20, loss=2.0, rate=50.0, learning_rate=0.1, at=1010.0)
    record_memory(run, tree=500, peak=600, at=1015.0)
    train_to(run, 40, loss=1.5, rate=100.0, learning_rate=0.2, at=1020.0)
    finish(run)
    history = history_of(run)
    assert curve(history, "train_loss") == [(20, 2.0), (40, 1.5)]
    assert curve(history, "learning_rate") == [(20, 0.1), (40, 0.2)]
    assert curve(history, "images_per_second") == [(10, 50.0), (20, 100.0)]
    assert curve(history, "tree_bytes") == [(15, 500)]
    assert curve(history, "val_accuracy") == [(60, 0.5)]
    assert curve(history, "test_loss") == [(60, 1.1)]
    assert history.epochs_per_step == BATCH / TRAIN_IMAGES
    assert history.last["test"]["confusion"] == [[1, 1], [3, 7]]
    assert history.odd_count == 0


def test_a_session_that_goes_on_after_the_test_takes_it_back(run: RunFolder) -> None:
    start_session(run)
    finish(run)
    start_session(run, step=60)
    assert "test" not in history_of(run).last


def test_what_a_crash_undid_is_left_out_of_the_curves_and_counted(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20, loss=2.0)
    train_to(run, 40, loss=1.9)
    restart(run, "the trainer was ended by SIGKILL")
    start_session(run, step=25)
    train_to(run, 45, loss=1.8)
    history = history_of(run)
    assert curve(history, "train_loss") == [(20, 2.0), (45, 1.8)]
    assert history.repeated_steps == 15


def test_who_reads_and_who_listens_share_one_pass(run: RunFolder) -> None:
    start_session(run)
    train_to(run, 20)
    history = History()
    assert summarise(run, history.listening(run.events)) == summarise(run)
    assert history.event_count == 2
    assert curve(history, "train_loss") == [(20, 1.5)]


def test_changes_of_setting_are_marked(run: RunFolder) -> None:
    start_session(run, at=0.0)
    tell(run, "setting_changed", at=30.0, step=3, **SMALLER)
    tell(run, "setting_changed", at=90.0, micro_batch_before=8, micro_batch=16, cause="memory was calm for 60 s")
    marks = history_of(run).marks
    assert [(mark.seconds, mark.kind) for mark in marks] == [(30, "smaller"), (90, "larger")]
    assert marks[0].text == "computes smaller: micro-batch 16 -> 8 (memory was short)"


@pytest.mark.parametrize(
    "odd",
    [
        {"event": "train", "step": "many", "train_loss": 1.0},
        {"event": "train", "step": 1e300, "train_loss": 1.0},
        {"event": "train", "step": float("inf")},
        {"event": "train"},
        {"event": "memory", "tree_bytes": []},
        {"event": "session_started", "step": 1, "effective_batch": "many"},
        {"event": "setting_changed", "micro_batch_before": None, "micro_batch": 3},
        {"event": "config_changed", "changes": [1]},
        {"event": "checkpoint", "seconds": "long", "time_unix_seconds": {}},
        {"event": "peer_joined"},
        {"event": "test", "step": 10**400},
    ],
    ids=str,
)
def test_an_odd_event_is_counted_and_hides_no_other(odd: dict[str, Any]) -> None:
    history = History()
    for event in ({"event": "train", "step": 1, "train_loss": 2.0, "images_per_second": 3.0}, odd):
        history.take(event)
    history.take({"event": "validation", "step": 2, "val_loss": 2.0, "val_accuracy": 0.5})
    assert history.odd_count == 1
    assert curve(history, "train_loss") == [(1, 2.0)]
    assert curve(history, "val_loss") == [(2, 2.0)]


def test_a_start_that_an_earlier_release_told_less_of_is_none_the_less_one() -> None:
    history = History()
    history.take({"event": "session_started", "step": 0})
    assert (history.odd_count, history.epochs_per_step) == (0, None)
    assert [one.text for one in history.happenings] == ["training began"]


def many_events(count: int) -> list[Event]:
    """Events of all that is kept, as of a very long and very unlucky run."""
    one: list[Event] = [
        {"event": "train", "step": 1, "train_loss": 1.0, "learning_rate": 0.1, "images_per_second": 5.0},
        {"event": "memory", "tree_bytes": 5, "cap_bytes": 9},
        {"event": "setting_changed", **SMALLER},
        {"event": "paused", "what": "the checkpoint", "cause": "full"},
        {"event": "unpaused", "seconds": 1.0},
        {"event": "session_opened"},
    ]
    return [{**one[i % len(one)], "time_unix_seconds": 10.0 * i, "step": i} for i in range(count)]


def test_memory_does_not_grow_with_the_events() -> None:
    history = History()
    for event in many_events(20_000):
        history.take(event)
    assert all(len(series) <= 4 * MOST_STRETCHES for series in (history.by_step | history.by_time).values())
    assert len(history.happenings) == len(history.marks) == MOST_HAPPENINGS
    assert len(history.clock.spans) == MOST_SPANS + 1  # and the one under way
    assert history.counts.total() == 9_999  # three of six
    more = many_events(20_000)
    tracemalloc.start()
    for event in more:
        history.take(event)
    grown_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown_bytes < 2_000_000  # what was kept before is replaced by what is traced
