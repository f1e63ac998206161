from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.data.draws import Purpose, bits, uniforms

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def split_mix_64(seed: int, number: int) -> int:
    """The output `number`, counted from 1, of the published SplitMix64 in Python's own integers."""
    z = (seed + number * GOLDEN) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_the_oracle_is_the_published_generator() -> None:
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [split_mix_64(1234567, number) for number in (1, 2, 3, 4)] == known


numbers = st.integers(0, 2**63 - 1)


@given(numbers, numbers, numbers, st.sampled_from(Purpose))
def test_bits_are_a_chain_of_the_published_generator(seed: int, epoch: int, sample: int, purpose: Purpose) -> None:
    key = seed
    for part in (int(purpose), epoch, sample):
        key = split_mix_64(key, part + 1)
    assert bits(seed, epoch, sample, purpose).tolist() == [key]


# Pinned: a change here changes every run that is under way.


def test_bits_are_pinned() -> None:
    assert bits(0, 0, np.arange(4), Purpose.ORDER).tolist() == [
        0x80ABE802AC1E182E,
        0x949F48C1E9EB8A36,
        0x20ADF28678236723,
        0xAAD558F08377BCFF,
    ]
    assert bits(2**63 - 1, 0, 0, Purpose.DROPOUT).tolist() == [0x7B8A821981E2C799]


@pytest.mark.parametrize(
    ("purpose", "number", "word"),
    [
        (Purpose.ORDER, 1, 0x0FD36D2CE85A1B4F),
        (Purpose.VALIDATION, 2, 0x41EC759B94729888),
        (Purpose.AUGMENTATION, 3, 0x30EDEF1AE0FFFF63),
        (Purpose.MIXING, 4, 0x6A78EFAB630595EE),
        (Purpose.DROP_PATH, 5, 0x621A9523922D835F),
        (Purpose.DROPOUT, 6, 0x6DB2AE3E007DF777),
        (Purpose.INITIALISATION, 7, 0xE31E328D71B58888),
    ],
)
def test_purposes_are_pinned(purpose: Purpose, number: int, word: int) -> None:
    assert purpose == number
    assert bits(7, 3, 17, purpose).tolist() == [word]


def test_every_purpose_is_pinned() -> None:
    assert sorted(Purpose) == list(range(1, 8))


def test_uniforms_are_pinned() -> None:
    drawn = uniforms(7, 3, np.array([17, 18]), Purpose.AUGMENTATION, 3)
    assert drawn.dtype == np.float32
    assert (drawn * 2**24).astype(np.int64).tolist() == [
        [0xE85126, 0x64CC26, 0x79DDC5],
        [0x0423BB, 0xEEF540, 0xAABA5F],
    ]


@given(numbers, numbers, st.lists(numbers, min_size=1, max_size=5), st.integers(1, 8))
def test_uniforms_are_in_range_and_a_sample_s_own(seed: int, epoch: int, samples: list[int], count: int) -> None:
    drawn = uniforms(seed, epoch, np.array(samples), Purpose.MIXING, count)
    assert drawn.shape == (len(samples), count)
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert np.array_equal(drawn * 2**24, np.floor(drawn * 2**24))
    for place, sample in enumerate(samples):
        alone = uniforms(seed, epoch, np.array([sample]), Purpose.MIXING, count + 2)
        assert np.array_equal(alone[0, :count], drawn[place])


def test_epochs_and_samples_pair_up_and_a_scalar_goes_with_all() -> None:
    epochs, samples = np.array([0, 1, 1]), np.array([5, 5, 6])
    pairs = bits(3, epochs, samples, Purpose.ORDER)
    assert pairs.tolist() == [
        bits(3, int(epoch), int(sample), Purpose.ORDER)[0] for epoch, sample in zip(epochs, samples, strict=True)
    ]
    assert np.array_equal(bits(3, 1, samples, Purpose.ORDER), bits(3, np.full(3, 1), samples, Purpose.ORDER))


def test_every_part_of_the_key_matters() -> None:
    samples = np.arange(1000)
    columns = [bits(seed, epoch, samples, purpose) for seed in (0, 1) for epoch in (0, 1, 2) for purpose in Purpose]
    assert len(np.unique(np.concatenate(columns))) == 2 * 3 * len(Purpose) * 1000


def test_draws_are_even_and_unrelated() -> None:
    n = 20_000
    first = uniforms(0, 0, np.arange(n), Purpose.AUGMENTATION, 2).astype(np.float64)
    next_epoch = uniforms(0, 1, np.arange(n), Purpose.AUGMENTATION, 1).astype(np.float64)
    other_purpose = uniforms(0, 0, np.arange(n), Purpose.MIXING, 1).astype(np.float64)
    columns = np.concatenate([first, next_epoch, other_purpose, np.roll(first[:, :1], 1, axis=0)], axis=1)  # (n, 5)
    five_sigmas = 5 / np.sqrt(n)
    assert np.abs(columns.mean(0) - 0.5).max() < five_sigmas * np.sqrt(1 / 12)
    correlations = np.corrcoef(columns, rowvar=False) - np.eye(columns.shape[1])
    assert np.abs(correlations).max() < five_sigmas
    counts = np.histogram(columns[:, 0], bins=16, range=(0, 1))[0]
    assert ((counts - n / 16) ** 2 / (n / 16)).sum() < 44.3  # chi-square, 15 degrees: one in 10,000
