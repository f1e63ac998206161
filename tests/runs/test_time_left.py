from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from benchmarks.simulated import STORIES, Story, Trainer
from benchmarks.time_left import judge_story
from lowmem_seq.runs.events import Event
from lowmem_seq.runs.time_left import RECENT_SECONDS, TimeLeft
from tests.builders import tiny_config

BATCH, TRAIN_IMAGES, VALIDATION_IMAGES, TEST_IMAGES = 10, 100, 20, 40
"""Ten steps an epoch."""
EVERY = "checkpoint.every=1000steps"


def started(step: int = 0, total: int = 100, **more: Any) -> Event:
    return {
        "event": "session_started",
        "step": step,
        "total_steps": total,
        "effective_batch": BATCH,
        "train_images": TRAIN_IMAGES,
        "validation_images": VALIDATION_IMAGES,
        "test_images": TEST_IMAGES,
        **more,
    }


def trained(step: int, seconds: float) -> Event:
    return {"event": "train", "step": step, "seconds": seconds, "images_per_second": 1.0}


def validated(step: int, seconds: float) -> Event:
    return {"event": "validation", "step": step, "seconds": seconds}


def saved(seconds: float) -> Event:
    return {"event": "checkpoint", "step": 1, "seconds": seconds}


def left(events: Iterable[Event], *settings: str) -> float | None:
    """What the time left is told to be after these events."""
    estimate = TimeLeft(tiny_config(f"recipe.effective_batch={BATCH}", EVERY, *settings))
    for event in events:
        estimate.take(event)
    return estimate.seconds()


def test_nothing_is_told_before_there_is_anything_to_tell_it_from() -> None:
    assert left([]) is None
    assert left([started()]) is None
    assert left([trained(10, 5.0)]) is None


def test_until_the_first_figures_the_plan_is_believed() -> None:
    planned = {"event": "planned", "predicted_images_per_second": 100.0}  # 0.1 s a step
    evaluated = 0.45 * (10 * VALIDATION_IMAGES + TEST_IMAGES) / BATCH  # in steps
    assert left([planned, started()]) == pytest.approx((100 + evaluated) * 0.1)
    assert left([planned, started(), trained(10, 2.0)]) == pytest.approx((90 + evaluated) * 0.2)


def test_steps_evaluations_and_saves_are_counted_each_by_what_it_took() -> None:
    events = [started(), trained(10, 20.0), validated(10, 4.0), saved(3.0)]
    steps, validations, test = 90 * 2.0, 9 * 4.0, TEST_IMAGES / VALIDATION_IMAGES * 4.0
    expected = steps + validations + test + 3.0 * (1 + 1 / 3)  # the last save and the final weights
    assert left(events) == pytest.approx(expected)
    assert left([*events, {"event": "progress", "step": 15}]) == pytest.approx(expected - 5 * 2.0)


def test_saves_are_as_frequent_as_the_settings_say() -> None:
    events = [started(), trained(10, 10.0), validated(10, 0.0), saved(6.0)]
    assert left(events, "checkpoint.every=30steps") == pytest.approx(90 + 6.0 * (3 + 4 / 3))
    assert left(events, "checkpoint.every=45s") == pytest.approx(90 + 6.0 * (2 + 4 / 3))
    assert left(events, "checkpoint.every=auto") == pytest.approx(90 + 6.0 * (90 / 600 + 4 / 3))  # 1 % of the time


@pytest.mark.parametrize(
    ("total", "every", "step", "count"),
    [(100, 1, 0, 10), (100, 3, 0, 4), (95, 1, 0, 10), (95, 4, 0, 3), (100, 1, 10, 9), (100, 1, 100, 0)],
)
def test_validations_are_counted_as_the_loop_does_them(total: int, every: int, step: int, count: int) -> None:
    setting = f"recipe.evaluate_every_epochs={every}"
    events = [started(total=total), trained(max(step, 1), max(step, 1) * 1.0), validated(step, 20.0)]
    of_one = 20.0
    expected = (total - max(step, 1)) + count * of_one + TEST_IMAGES / VALIDATION_IMAGES * of_one
    told = left(events, setting)
    assert told is not None
    assert told == pytest.approx(expected, abs=1.0 if step == 0 else 1e-6)


def test_where_an_evaluation_is_dear_a_slower_machine_makes_it_dearer() -> None:
    events = [started(), trained(10, 10.0), validated(10, 100.0)]
    before = left(events)
    events += [trained(step, RECENT_SECONDS) for step in range(20, 60, 10)]  # 18 times as slow, for long enough
    told = left(events)
    assert before is not None
    assert told == pytest.approx(18 * (50 + 9 * 100 + 200))


def test_what_is_left_after_the_test_is_nothing() -> None:
    assert left([started(), trained(100, 50.0), {"event": "test", "step": 100, "seconds": 3.0}]) == 0.0


def test_one_long_moment_counts_little() -> None:
    steady = [trained(step, 1.0) for step in range(1, 51)]
    calm, stalled = left([started(), *steady]), left([started(), *steady, trained(51, 60.0)])
    assert calm is not None
    assert stalled is not None
    assert stalled < 1.05 * calm


def test_steps_of_long_ago_do_not_count() -> None:
    slow = [trained(step, 100.0) for step in range(1, 11)]
    fast = [trained(step, 10.0) for step in range(11, 40)]
    told = left([started(), *slow, *fast], "recipe.evaluate_every_epochs=100")
    assert told == pytest.approx(10.0 * (61 + 0.45 * (VALIDATION_IMAGES + TEST_IMAGES) / BATCH))


def test_a_restart_goes_on_with_the_speed_that_was_known() -> None:
    events = [started(micro_batch=8), trained(10, 20.0), validated(10, 4.0), trained(17, 14.0)]
    restarted = left([*events, started(10, micro_batch=8)])
    assert restarted == left(events[:3])
    other = [*events, started(10, micro_batch=4)]  # another setting has another speed
    assert left(other) is None
    assert left([*other, trained(20, 80.0)]) == pytest.approx(8.0 * (80 + 9 * 2 + 4))


def test_a_machine_that_joined_leaves_the_validation_to_the_host() -> None:
    alone = [started(), trained(10, 10.0), validated(10, 2.0)]
    joined = [{"event": "session_opened"}, {"event": "member_welcome"}, *alone]
    told, told_alone = left(joined), left(alone)
    assert told_alone is not None
    assert told == pytest.approx(told_alone - 9 * 2.0)
    assert left([*joined, {"event": "session_opened"}, started(10)]) == pytest.approx(told_alone)


def test_steps_that_others_did_count_for_the_speed() -> None:
    """Images/s are of this machine; a step of a run among several takes what the clock says."""
    event = {**trained(10, 5.0), "images_per_second": 4.0}
    assert left([started(), event, validated(10, 0.0)]) == pytest.approx(90 * 0.5)


def test_events_of_an_earlier_release_tell_their_time_by_their_rate() -> None:
    event = {"event": "train", "step": 10, "images_per_second": 4.0}
    assert left([started(), event, {"event": "validation", "step": 10}], "recipe.evaluate_every_epochs=100") == (
        pytest.approx(2.5 * (90 + 0.45 * (VALIDATION_IMAGES + TEST_IMAGES) / BATCH))
    )


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_it_is_true_to_a_tenth_but_for_five_minutes_after_a_change(story: Story) -> None:
    judged = judge_story(story, seconds_between=60.0)
    assert judged.looks > 5
    assert judged.largest_error <= 0.1


def test_a_simulated_run_ends_when_its_time_is_over() -> None:
    story = Story("short", (("recipe.evaluate_every_epochs", 1),), epochs=2, noise=0.0)
    trainer = Trainer(story)
    expected = trainer.seconds_left()
    kinds = [event["event"] for event in trainer.go()]
    assert trainer.active_seconds == pytest.approx(expected)
    assert kinds.count("validation") == 2
    assert kinds[-3:] == ["checkpoint", "test", "session_ended"]
