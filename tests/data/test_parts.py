from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq.data.pack import Pack
from lowmem_seq.data.parts import Parts, open_parts, parts_by_name
from lowmem_seq.errors import DataError, UsageError
from tests.data.builders import write_pack


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    labels = [0] * 50 + [1] * 31 + [2] * 2 + [1] * 9
    return write_pack(tmp_path_factory.mktemp("pack") / "p", {"train": labels, "test": [0, 1, 2, 2]})


def cut(parts: Parts) -> list[int]:
    return [int(position) for position in parts.validation.positions]


@settings(deadline=None)
@given(fraction=st.floats(0.01, 0.89), seed=st.integers(0, 2**63 - 1))
def test_train_and_validation_are_a_stratified_cut(pack: Pack, fraction: float, seed: int) -> None:
    parts = open_parts(pack, None, fraction, seed)
    together = np.concatenate([parts.train.positions, parts.validation.positions])
    assert sorted(together.tolist()) == list(range(92))
    counts = np.bincount(parts.validation.labels, minlength=3).tolist()
    assert counts == [min(max(1, round(fraction * n)), n - 1) for n in (50, 40, 2)]
    for part in (parts.train, parts.validation):
        assert np.array_equal(part.labels, pack.labels("train")[part.positions])
        assert (np.diff(part.positions.astype(np.int64)) > 0).all()
    assert cut(parts) == cut(open_parts(pack, None, fraction, seed))


def test_a_picture_takes_few_bytes_as_long_as_a_run_lasts(tmp_path: Path) -> None:
    labels = [0, 1] * 150 + [256]  # positions beyond a byte, and so is a label of one in 257 classes
    pack = write_pack(tmp_path / "many", {"train": labels, "test": [0]}, tuple(f"{n:03}" for n in range(257)))
    parts = open_parts(pack, None, 0.1, 0)
    assert (parts.train.positions.dtype.name, parts.train.labels.dtype.name) == ("uint16", "uint16")
    assert parts.train.positions.tolist()[-1] == 300
    assert parts.train.labels.tolist()[-1] == 256
    few = open_parts(pack, pack.classes[:2], 0.1, 0).train
    assert (few.positions.dtype.name, few.labels.dtype.name) == ("uint16", "uint8")


def test_the_cut_is_pinned(pack: Pack) -> None:
    assert cut(open_parts(pack, None, 0.1, 7)) == [9, 27, 29, 43, 48, 53, 62, 72, 73, 82]


def test_another_seed_cuts_elsewhere(pack: Pack) -> None:
    assert cut(open_parts(pack, None, 0.2, 1)) != cut(open_parts(pack, None, 0.2, 2))


def test_a_subset_of_classes_in_the_order_of_the_run(pack: Pack) -> None:
    parts = open_parts(pack, ("c", "a"), 0.2, 0)
    assert parts.classes == ("c", "a")
    assert parts.train.size + parts.validation.size == 52
    assert parts.test.labels.tolist() == [1, 0, 0]
    assert parts.test.positions.tolist() == [0, 2, 3]
    everything = open_parts(pack, None, 0.2, 0)
    in_a = everything.validation.positions[everything.validation.labels == 0]
    assert np.array_equal(parts.validation.positions[parts.validation.labels == 1], in_a)


def test_reading_by_number(pack: Pack) -> None:
    part = open_parts(pack, ("b", "c"), 0.2, 0).train
    numbers = np.array([5, 0, 5, part.size - 1])
    out = np.empty((4, 8, 8, 3), np.uint8)
    assert part.read(numbers, out) is out
    assert np.array_equal(out, pack.read("train", part.positions[numbers]))


@pytest.mark.parametrize(
    ("classes", "message", "hint"),
    [
        (("a", "B"), "no class 'B'", "did you mean 'b'?"),
        (("a", "zebra"), "no class 'zebra'", "the classes are a, b, c"),
        (("a", "b", "a"), "'a' is named twice", "each class once"),
        (("a",), "too few", "two at least"),
        ((), "too few", "two at least"),
    ],
)
def test_classes_that_cannot_be_used(pack: Pack, classes: tuple[str, ...], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_parts(pack, classes, 0.1, 0)
    assert hint in caught.value.hint


def test_no_test_pictures(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 0, 1, 1, 2, 2], "test": [2]})
    assert open_parts(pack, None, 0.1, 0).test.size == 1
    with pytest.raises(DataError, match="no test pictures of the classes a, b"):
        open_parts(pack, ("a", "b"), 0.1, 0)


def test_too_few_pictures_for_validation(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "p", {"train": [0, 1, 2], "test": [0, 1, 2]})
    with pytest.raises(DataError, match="too few"):
        open_parts(pack, None, 0.5, 0)


def test_others_are_labelled_by_the_names_that_a_model_knows(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", {"train": [0, 1, 1], "test": [1, 0]}, classes=("dog", "ant"))
    parts = parts_by_name(pack, ("ant", "bee", "dog"))
    assert parts["train"].labels.tolist() == [2, 0, 0]
    assert parts["test"].labels.tolist() == [0, 2]
    assert np.array_equal(parts["test"].read(np.array([1])), pack.read("test", np.array([1])))
    with pytest.raises(DataError, match=r"doesn't know 1 of the 2 classes: dog\."):
        parts_by_name(pack, ("ant", "dig"))
