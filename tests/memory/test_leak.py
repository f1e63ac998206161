from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from lowmem_seq.memory.leak import LEAST_GROWTH_BYTES, SPAN_SECONDS, SPANS, LeakWatch, line

MB = 10**6
STEP_SECONDS = 0.5
WARNED_AFTER_STEPS = round((SPANS + 1) * SPAN_SECONDS / STEP_SECONDS)


def watch_steps(held: Sequence[float], room_bytes: int, total_steps: int) -> list[tuple[int, str]]:
    """What is noticed, and after which step, where these bytes are held after the steps."""
    now = [0.0]
    watch = LeakWatch(room_bytes, lambda: now[0])
    noticed = []
    for step, size in enumerate(held, start=1):
        now[0] += STEP_SECONDS
        words = watch.step_ended(int(size), total_steps - step)
        if words is not None:
            noticed.append((step, words))
    return noticed


def noisy(bytes_a_step: float, steps: int, start: float = 500 * MB) -> list[float]:
    draws = random.Random(7)
    return [start + bytes_a_step * step + draws.uniform(0, 30 * MB) for step in range(steps)]


def test_growth_that_does_not_fit_the_run_is_noticed_once() -> None:
    noticed = watch_steps(noisy(0.2 * MB, 1000), room_bytes=1000 * MB, total_steps=10_000)
    assert len(noticed) == 1
    step, words = noticed[0]
    assert step <= WARNED_AFTER_STEPS
    assert words.startswith("memory grows by ")
    assert words.endswith("1.00 GB are there")


def test_growth_that_fits_the_run_is_none() -> None:
    assert watch_steps(noisy(0.2 * MB, 1000), room_bytes=1000 * MB, total_steps=1200) == []


def test_noise_is_no_growth() -> None:
    for seed in range(20):
        draws = random.Random(seed)
        held = [500 * MB + draws.uniform(0, 200 * MB) for _ in range(2000)]
        assert watch_steps(held, room_bytes=701 * MB, total_steps=10**7) == []


def test_a_start_that_fills_up_and_stays_is_none() -> None:
    held = [500 * MB * (1 - 0.99**step) for step in range(3000)]
    assert watch_steps(held, room_bytes=505 * MB, total_steps=10**5) == []


def test_steps_up_and_down_are_none() -> None:
    held = [500 * MB + (step // 40 % 2) * 100 * MB for step in range(3000)]
    assert watch_steps(held, room_bytes=610 * MB, total_steps=10**6) == []


def test_little_growth_is_what_allocators_do() -> None:
    steps = round(SPANS * SPAN_SECONDS / STEP_SECONDS)
    slope = 0.9 * LEAST_GROWTH_BYTES / steps
    assert watch_steps([slope * step for step in range(steps + 30)], 10 * MB, 10**6) == []


def test_after_a_change_what_was_held_before_counts_nothing() -> None:
    now = [0.0]
    watch = LeakWatch(1000 * MB, lambda: now[0])
    for step in range(1, 2000):
        now[0] += STEP_SECONDS
        if step % 100 == 0:
            watch.start_anew()
        assert watch.step_ended(500 * MB + 200_000 * step, 10**6) is None


def test_the_line_through_points_is_theirs() -> None:
    assert line([(0, 1), (1, 3), (2, 5)]) == (2.0, 0.0)
    slope, error = line([(0, 0), (1, 1), (2, 0)])
    assert slope == 0.0
    assert error == pytest.approx((2 / 3 / 2) ** 0.5)
