from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.memory.expected import COMPUTED_AT_ONCE, HEAP_BYTES, Expectation
from lowmem_seq.memory.footprint import Facts, held_without_images
from lowmem_seq.memory.plan import Setting
from lowmem_seq.memory.prediction import predict_bytes

MB = 10**6
FACTS = Facts("cpu", "bf16", 7, 240 * MB, 30 * MB, 0, 32, 7200, 800, 2000)
SHARES = (0.182, 0.182, 0.182, 0.182, 0.091, 0.091, 0.090)
IMAGE = 3 * MB
RECOMPUTED = 7
KERNELS = 70 * MB
"""What is held beside weights, gradients, optimizer and images, and grows with nothing."""


def peak(setting: Setting) -> int:
    """The peak of a machine on which everything adds up."""
    share = COMPUTED_AT_ONCE * 0.182 if setting.recomputed_layers else 1
    others = (setting.workers - 1) * HEAP_BYTES
    images = round(setting.workers * setting.micro_batch * IMAGE * share)
    return held_without_images(FACTS, setting.workers) + KERNELS + others + images


def expectation(*seen: Setting) -> Expectation:
    return Expectation(FACTS, SHARES, {setting: peak(setting) for setting in seen})


settings = st.builds(Setting, st.integers(1, 128), st.integers(1, 2), st.sampled_from([0, RECOMPUTED]))


def test_nothing_is_expected_where_nothing_was_seen() -> None:
    assert expectation().bytes_of(Setting(8, 1)) is None


@given(st.sets(settings, min_size=1, max_size=8), settings)
def test_what_was_seen_is_expected_again(seen: set[Setting], one: Setting) -> None:
    assert expectation(*seen, one).bytes_of(one) == peak(one)


@given(settings)
def test_two_sizes_of_one_worker_tell_of_all_settings(one: Setting) -> None:
    expected = expectation(Setting(4, 1), Setting(8, 1)).bytes_of(one)
    assert expected == pytest.approx(peak(one), abs=MB)


@given(st.integers(9, 128))
def test_one_size_alone_takes_all_above_the_floor_to_grow(size: int) -> None:
    floor = held_without_images(FACTS, 1)
    grown = predict_bytes({8: peak(Setting(8, 1))}, size, floor)
    assert expectation(Setting(8, 1)).bytes_of(Setting(size, 1)) == grown > peak(Setting(size, 1))


def test_an_image_is_known_from_two_sizes_of_the_same_way() -> None:
    assert not expectation(Setting(8, 1), Setting(16, 2)).knows_an_image(Setting(8, 1))
    assert expectation(Setting(8, 1), Setting(16, 1)).knows_an_image(Setting(8, 2, RECOMPUTED))
    only_recomputed = expectation(Setting(8, 1, RECOMPUTED), Setting(16, 1, RECOMPUTED))
    assert only_recomputed.knows_an_image(Setting(8, 2, RECOMPUTED))
    assert not only_recomputed.knows_an_image(Setting(8, 1))


def test_some_recomputed_layers_are_expected_between_none_and_all() -> None:
    seen = expectation(Setting(4, 1), Setting(8, 1))
    told = [seen.bytes_of(Setting(64, 1, layers)) or 0 for layers in range(RECOMPUTED + 1)]
    assert told == sorted(told, reverse=True)
    assert told[0] == pytest.approx(peak(Setting(64, 1)), abs=MB)
    assert told[-1] == pytest.approx(peak(Setting(64, 1, RECOMPUTED)), abs=MB)


@given(st.integers(1, 64), st.integers(1, 2))
def test_no_setting_is_expected_to_hold_more_than_a_larger_one_did(size: int, workers: int) -> None:
    larger = Setting(64, 2)
    assert (expectation(larger).bytes_of(Setting(size, workers)) or 0) <= peak(larger)


@given(st.sets(settings, min_size=1, max_size=6), settings)
def test_of_more_images_hardly_less_is_expected_than_is_held(seen: set[Setting], one: Setting) -> None:
    alike = [point for point in seen if point.recomputed_layers == one.recomputed_layers]
    expected = expectation(*seen).bytes_of(one)
    if alike and all(one.micro_batch >= point.micro_batch and one.workers >= point.workers for point in alike):
        assert expected is not None
        assert expected >= 0.93 * peak(one)  # KERNELS may be counted for one worker alone
