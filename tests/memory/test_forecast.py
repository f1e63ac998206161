from __future__ import annotations

from dataclasses import replace

import pytest

from lowmem_seq.memory.footprint import Facts
from lowmem_seq.memory.forecast import LEAST_SPREAD, make_forecast
from lowmem_seq.memory.plan import Measurement, Setting
from lowmem_seq.memory.remembered import Knowledge
from tests.builders import tiny_config, tiny_plan

FACTS = Facts("cpu", "fp32", 7, 240, 10**6, 2 * 10**6, 16, 1000, 100, 500)
KNOWN = Knowledge(facts=FACTS, evaluated_images_per_second=400.0, save_seconds=2.0)
CONFIG = tiny_config(
    "recipe.effective_batch=32",
    "recipe.epochs=10",
    "recipe.evaluate_every_epochs=4",
    "checkpoint.every=100steps",
    "checkpoint.keep=3",
)


def at(rate: float, allocator: str = "default", lstm_path: str = "torch") -> Measurement:
    return Measurement(8, 1, 0, allocator, 10**8, 0, rate, lstm_path)


PLAN = replace(tiny_plan(8), measurements=(at(100.0), at(80.0), at(1.0, "lean"), at(1.0, lstm_path="function")))


def test_a_run_takes_its_steps_its_evaluations_and_its_saves() -> None:
    told = make_forecast(CONFIG, PLAN, KNOWN)
    assert told.total_steps == CONFIG.total_steps(1000) == 313
    assert told.epochs == pytest.approx(313 * 32 / 1000)
    assert told.training_seconds == pytest.approx(313 * 32 / 100)
    assert told.evaluation_seconds == pytest.approx((3 * 100 + 500) / 400)  # after epochs 4 and 8, and at the end
    every = tiny_config("recipe.effective_batch=32", "recipe.epochs=10", "recipe.evaluate_every_epochs=5")
    assert make_forecast(every, PLAN, KNOWN).evaluation_seconds == pytest.approx((2 * 100 + 500) / 400)
    assert told.saving_seconds == pytest.approx((3.13 + 1) * 2)
    assert told.seconds == pytest.approx(told.training_seconds + told.evaluation_seconds + told.saving_seconds)


def test_the_range_is_that_of_the_chosen_setting_s_measurements() -> None:
    told = make_forecast(CONFIG, PLAN, KNOWN)
    assert (told.images_per_second, told.slowest_images_per_second, told.measurement_count) == (100.0, 80.0, 2)
    slower = (told.training_seconds + told.evaluation_seconds) * 100 / 80
    assert told.most_seconds == pytest.approx(slower + told.saving_seconds)


def test_speed_varies_by_so_much_at_the_least() -> None:
    told = make_forecast(CONFIG, replace(PLAN, measurements=(at(100.0),)), KNOWN)
    assert told.slowest_images_per_second == pytest.approx((1 - LEAST_SPREAD) * 100)


def test_the_disk_holds_what_is_kept_what_is_being_written_and_the_final_weights() -> None:
    told = make_forecast(CONFIG, PLAN, KNOWN)
    assert told.checkpoint_bytes == 3 * 10**6 + 2 * 10**6 + 10**6  # weights, two moments, average, the rest
    assert told.checkpoint_count == 3 + 1 + 1
    assert told.disk_bytes == 5 * told.checkpoint_bytes + 10**6
    kept = tiny_config("recipe.effective_batch=32", "recipe.epochs=10", "checkpoint.keep_every_steps=100")
    assert make_forecast(kept, PLAN, KNOWN).checkpoint_count == 2 + 1 + 1 + 3


def test_the_length_may_be_given_in_steps() -> None:
    assert tiny_config("steps=7").total_steps(1000) == 7


@pytest.mark.parametrize(
    ("every", "seconds"), [("10s", (100.16 / 10 + 1) * 2), ("auto", 0.01 * 100.16 + 2), ("1steps", 314 * 2)]
)
def test_saves_are_counted_by_their_interval(every: str, seconds: float) -> None:
    config = tiny_config("recipe.effective_batch=32", "recipe.epochs=10", f"checkpoint.every={every}")
    assert make_forecast(config, PLAN, KNOWN).saving_seconds == pytest.approx(seconds)


def test_a_save_that_was_not_measured_costs_nothing_yet() -> None:
    config = tiny_config("recipe.epochs=10", "checkpoint.every=auto")
    assert make_forecast(config, PLAN, replace_save(0.0)).saving_seconds == 0


def replace_save(seconds: float) -> Knowledge:
    return Knowledge(facts=FACTS, evaluated_images_per_second=400.0, save_seconds=seconds)


def test_the_chosen_setting_counts_also_while_a_smaller_one_is_in_force() -> None:
    smaller = replace(PLAN.with_setting(Setting(4, 1)), chosen=Setting(8, 1))
    assert make_forecast(CONFIG, smaller, KNOWN).measurement_count == 2
