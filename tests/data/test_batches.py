from __future__ import annotations

from itertools import pairwise, repeat

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lowmem_seq.config import AugmentationConfig
from lowmem_seq.data.augmentation import MIX_SHARE, MIXING_DRAWS
from lowmem_seq.data.batches import Batch, TrainingBatches, evaluation_batches
from lowmem_seq.data.draws import Purpose, uniforms
from lowmem_seq.data.order import SampleOrder
from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import Parts, open_parts

SEED = 11
EVERYTHING = AugmentationConfig(
    flip=True, crop_padding=2, rotate_degrees=15, zoom=0.2, colour=0.3, erase=0.5, mixup=0.4, cutmix=0.4
)
PLAIN = AugmentationConfig(flip=False, crop_padding=0)


@pytest.fixture(scope="module")
def parts(tiny_pack: Pack) -> Parts:
    return open_parts(tiny_pack, None, 0.1, SEED)


def batches(parts: Parts, augmentation: AugmentationConfig, label_smoothing: float = 0.1) -> TrainingBatches:
    about = parts.train.pack.description
    return TrainingBatches(
        parts.train, len(parts.classes), about.mean, about.deviation, SEED, augmentation, label_smoothing
    )


def assert_same(got: Batch, wanted: Batch) -> None:
    torch.testing.assert_close(got.images, wanted.images, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.targets, wanted.targets, atol=1e-6, rtol=0)
    assert np.array_equal(got.epochs, wanted.epochs)
    assert np.array_equal(got.samples, wanted.samples)


def joined(pieces: list[Batch]) -> Batch:
    return Batch(
        torch.cat([piece.images for piece in pieces]),
        torch.cat([piece.targets for piece in pieces]),
        np.concatenate([piece.epochs for piece in pieces]),
        np.concatenate([piece.samples for piece in pieces]),
    )


def test_a_batch_has_the_shapes_it_promises_and_follows_the_order(parts: Parts) -> None:
    size = parts.train.size
    batch = batches(parts, EVERYTHING).read(size - 5, size + 6, mixing=True)
    assert batch.images.shape == (11, 16, 16, 3)
    assert batch.images.dtype == torch.float32
    assert batch.targets.shape == (11, 3)
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(11))
    assert batch.epochs.tolist() == [0] * 5 + [1] * 6
    assert np.array_equal(batch.samples, SampleOrder(size, SEED).at(np.arange(size - 5, size + 6))[1])


@pytest.mark.parametrize("mixing", [True, False])
@given(start=st.integers(0, 90), length=st.integers(1, 24), data=st.data())
def test_no_cut_changes_what_a_sample_is(
    parts: Parts, mixing: bool, start: int, length: int, data: st.DataObject
) -> None:
    cuts = data.draw(st.sets(st.integers(start, start + length), max_size=5))
    edges = sorted({start, start + length, *cuts})
    whole = batches(parts, EVERYTHING).read(start, start + length, mixing)
    cut = batches(parts, EVERYTHING)  # one object, so that its buffer is used again at other sizes
    pieces = [cut.read(first, stop, mixing) for first, stop in pairwise(edges)]
    assert_same(joined(pieces), whole)


def test_single_samples_are_those_of_the_batch(parts: Parts) -> None:
    source = batches(parts, EVERYTHING)
    assert_same(joined([source.read(place, place + 1, True) for place in range(16)]), source.read(0, 16, True))


def test_a_sample_is_mixed_with_its_neighbour_in_the_order(parts: Parts) -> None:
    always = structs.replace(PLAIN, mixup=1.0)
    mixed = batches(parts, always, 0.0).read(0, 8, mixing=True)
    plain = batches(parts, always, 0.0).read(0, 8, mixing=False)
    partners = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    drawn = uniforms(SEED, plain.epochs, plain.samples, Purpose.MIXING, MIXING_DRAWS)
    share = torch.from_numpy(drawn[:, MIX_SHARE]) / 2
    expected = torch.lerp(plain.images, plain.images[partners], share[:, None, None, None])
    torch.testing.assert_close(mixed.images, expected, atol=1e-5, rtol=0)
    expected = torch.lerp(plain.targets, plain.targets[partners], share[:, None])
    torch.testing.assert_close(mixed.targets, expected, atol=1e-6, rtol=0)


def test_mixing_off_is_as_if_it_had_no_share(parts: Parts) -> None:
    never = structs.replace(EVERYTHING, mixup=0.0, cutmix=0.0)
    assert_same(
        batches(parts, EVERYTHING).read(3, 14, mixing=False), batches(parts, never).read(3, 14, mixing=True)
    )


def test_without_augmentation_a_batch_is_the_normalised_pictures(parts: Parts) -> None:
    batch = batches(parts, PLAIN, 0.3).read(5, 12, mixing=True)
    about = parts.train.pack.description
    pixels = torch.from_numpy(parts.train.read(batch.samples)).double() / 255
    expected = (pixels - torch.tensor(about.mean)) / torch.tensor(about.deviation)
    torch.testing.assert_close(batch.images, expected.float(), atol=1e-5, rtol=0)
    labels = torch.from_numpy(parts.train.labels[batch.samples].astype(np.int64))
    torch.testing.assert_close(batch.targets, torch.eye(3)[labels] * 0.7 + 0.1)


def test_a_batch_keeps_its_values_when_the_next_is_read(parts: Parts) -> None:
    source = batches(parts, PLAIN)
    first = source.read(0, 8, mixing=False)
    before = first.images.clone()
    source.read(8, 16, mixing=False)
    assert torch.equal(first.images, before)


def test_each_epoch_shows_every_picture_once_and_changed_anew(parts: Parts) -> None:
    size = parts.train.size
    source = batches(parts, AugmentationConfig(flip=True, crop_padding=2))
    first, second = source.read(0, size, False), source.read(size, 2 * size, False)
    assert sorted(first.samples) == sorted(second.samples) == list(range(size))
    by_sample = [batch.images[torch.from_numpy(np.argsort(batch.samples))] for batch in (first, second)]
    same = [torch.equal(one, other) for one, other in zip(*by_sample, strict=True)]
    assert sum(same) < size / 4


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_evaluation_reads_every_picture_once_in_its_place(parts: Parts, size: int) -> None:
    about = parts.test.pack.description
    read = list(evaluation_batches(parts.test, about.mean, about.deviation, repeat(size)))
    assert [len(labels) for _, labels in read] == [min(size, 12 - start) for start in range(0, 12, size)]
    assert torch.cat([labels for _, labels in read]).tolist() == parts.test.labels.tolist()
    pixels = torch.from_numpy(parts.test.read(np.arange(12))).double() / 255
    expected = (pixels - torch.tensor(about.mean)) / torch.tensor(about.deviation)
    torch.testing.assert_close(torch.cat([images for images, _ in read]), expected.float(), atol=1e-5, rtol=0)


def test_an_evaluation_can_change_its_size_on_the_way(parts: Parts) -> None:
    about = parts.test.pack.description
    read = list(evaluation_batches(parts.test, about.mean, about.deviation, iter([5, 4, 2, 1])))
    assert [len(labels) for _, labels in read] == [5, 4, 2, 1]
    assert torch.cat([labels for _, labels in read]).tolist() == parts.test.labels.tolist()
