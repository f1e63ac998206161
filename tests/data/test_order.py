from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.data.order import SampleOrder

sizes = st.integers(1, 3000)
seeds = st.integers(0, 2**63 - 1)


def epoch_of(order: SampleOrder, epoch: int) -> npt.NDArray[np.int64]:
    """All samples of an epoch, in their order."""
    return order.at(np.arange(epoch * order.size, (epoch + 1) * order.size))[1]


@given(sizes, seeds, st.integers(0, 10**6))
def test_every_epoch_holds_each_sample_once(size: int, seed: int, epoch: int) -> None:
    order = SampleOrder(size, seed)
    epochs, samples = order.at(np.arange(epoch * size, (epoch + 1) * size))
    assert (epochs == epoch).all()
    assert np.array_equal(np.sort(samples), np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 65_537])
def test_sizes_around_powers_hold_each_sample_once(size: int) -> None:
    assert np.array_equal(np.sort(epoch_of(SampleOrder(size, 0), 1)), np.arange(size))


# Pinned: a change here changes every run that is under way.


def test_the_order_is_pinned() -> None:
    order = SampleOrder(10, 0)
    assert epoch_of(order, 0).tolist() == [2, 4, 6, 7, 1, 5, 3, 0, 9, 8]
    assert epoch_of(order, 1).tolist() == [6, 2, 4, 9, 0, 3, 8, 7, 1, 5]


def test_a_large_order_is_pinned_at_far_positions() -> None:
    epochs, samples = SampleOrder(50_000, 3).at(np.array([0, 1, 49_999, 50_000, 35 * 50_000 + 17]))
    assert epochs.tolist() == [0, 0, 0, 1, 35]
    assert samples.tolist() == [27184, 562, 4156, 32829, 11310]


@given(st.integers(1, 300), seeds, st.data())
def test_any_range_is_that_range_of_the_whole(size: int, seed: int, data: st.DataObject) -> None:
    order = SampleOrder(size, seed)
    whole = order.at(np.arange(3 * size))
    start = data.draw(st.integers(0, 3 * size))
    stop = data.draw(st.integers(start, 3 * size))
    part = order.at(np.arange(start, stop))
    for got, wanted in zip(part, whole, strict=True):
        assert np.array_equal(got, wanted[start:stop])


@given(st.integers(1, 300), seeds, st.sets(st.integers(1, 899), max_size=12))
def test_any_cut_into_micro_batches_gives_the_same_order(size: int, seed: int, cuts: set[int]) -> None:
    order = SampleOrder(size, seed)
    edges = [0, *sorted(cuts), 900]
    pieces = [order.at(np.arange(a, b))[1] for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(pieces), order.at(np.arange(900))[1])


def test_positions_may_come_in_any_order() -> None:
    order = SampleOrder(100, 5)
    positions = np.array([250, 3, 99, 100, 3])
    assert np.array_equal(order.at(positions)[1], order.at(np.arange(251))[1][positions])


@given(st.integers(50, 3000), seeds)
def test_epochs_and_seeds_are_shuffled_differently(size: int, seed: int) -> None:
    order = SampleOrder(size, seed)
    first = epoch_of(order, 0)
    for other in (epoch_of(order, 1), epoch_of(SampleOrder(size, seed ^ 1), 0), np.arange(size)):
        assert (first == other).mean() < 0.2


def test_samples_are_spread_evenly_over_the_places() -> None:
    size, epochs = 64, 2000
    places = np.argsort(SampleOrder(size, 1).at(np.arange(epochs * size))[1].reshape(epochs, size), axis=1)
    five_sigmas = 5 * size / np.sqrt(12 * epochs)
    assert np.abs(places.mean(0) - (size - 1) / 2).max() < five_sigmas


def test_a_far_seek_costs_what_a_near_one_costs() -> None:
    order = SampleOrder(10**6, 0)
    began = time.perf_counter()
    order.at(np.arange(10**15, 10**15 + 128))
    assert time.perf_counter() - began < 60.0  # walking there would take days
