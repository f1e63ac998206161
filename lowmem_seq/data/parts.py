"""What a run reads of a pack: its classes in its order, and validation pictures cut from the train part by seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lowmem_seq.data.dataset import PART_NAMES, PartName, Pixels
from lowmem_seq.data.draws import Purpose, bits
from lowmem_seq.data.pack import Pack
from lowmem_seq.errors import DataError, UsageError, nearest

Compact = npt.NDArray[np.unsignedinteger]
"""Numbers in the smallest type that holds the largest: a run keeps them for each picture as long as it lasts. Two
million pictures took 32 MB as 64-bit integers, and take 10."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some pictures of a pack, numbered from 0, with labels from 0 in the order of the run's classes."""

    pack: Pack
    pack_part: PartName
    positions: Compact
    """Where each picture is in the pack's part: (N,), ascending."""
    labels: Compact
    """(N,)"""

    @property
    def size(self) -> int:
        """How many pictures there are."""
        return len(self.positions)

    def cut(self, start: int, end: int) -> Part:
        """Return the pictures from number `start` to the one before `end`."""
        return replace(self, positions=self.positions[start:end], labels=self.labels[start:end])

    def read(self, indices: npt.NDArray[np.integer], out: Pixels | None = None) -> Pixels:
        """Return the pictures at these numbers: (B, H, W, 3), in `out` where it is given."""
        return self.pack.read(self.pack_part, self.positions[indices], out)


@dataclass(frozen=True, eq=False)
class Parts:
    """The three parts of a run's data."""

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]


def open_parts(pack: Pack, classes: tuple[str, ...] | None, validation_fraction: float, seed: int) -> Parts:
    """Return the parts of a run on `pack`; `classes` null takes all, in the pack's order.

    Of each class's train pictures, sorted by their draw for this seed, the first `validation_fraction` (rounded,
    at least one and never all) are the validation part: none is counted twice, and none moves with the plan.

    Raises:
        UsageError: an unknown class, one named twice, or fewer than two.
        DataError: no test pictures, or too few train pictures to put any aside.
    """
    chosen = _chosen_classes(pack.classes, classes)
    train_positions, train_labels = _of_classes(pack, "train", chosen)
    test_positions, test_labels = _of_classes(pack, "test", chosen)
    if not len(test_positions):
        raise DataError(
            f"the pack {pack.folder} has no test pictures of the classes {', '.join(chosen)}.",
            "add test/CLASS/file, or leave out the folder test: then 15 % of each class are put aside",
        )
    keys = bits(seed, 0, train_positions, Purpose.VALIDATION)  # (N,)
    put_aside = np.zeros(len(train_positions), np.bool_)
    for label in range(len(chosen)):
        members = np.flatnonzero(train_labels == label)
        if len(members) >= 2:
            count = min(max(1, round(validation_fraction * len(members))), len(members) - 1)
            put_aside[members[np.argsort(keys[members], kind="stable")[:count]]] = True
    if not put_aside.any():
        raise DataError(
            f"the pack {pack.folder} has {len(train_positions)} train picture(s) of {len(chosen)} classes: too few "
            "to put any aside for validation.",
            "add pictures: at least two a class",
        )
    return Parts(
        train=Part(pack, "train", train_positions[~put_aside], train_labels[~put_aside]),
        validation=Part(pack, "train", train_positions[put_aside], train_labels[put_aside]),
        test=Part(pack, "test", test_positions, test_labels),
        classes=chosen,
    )


def parts_by_name(pack: Pack, classes: tuple[str, ...]) -> dict[PartName, Part]:
    """Return a pack's train and test pictures with labels in the order of other classes, matched by name.

    Raises:
        DataError: the pack has classes that are none of these.
    """
    unknown = [name for name in pack.classes if name not in classes]
    if unknown:
        known = f"the classes it knows are {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}"
        raise DataError(
            f"the model doesn't know {len(unknown)} of the {len(pack.classes)} classes: {', '.join(unknown[:20])}"
            f"{', ...' if len(unknown) > 20 else ''}.",
            f"{nearest(unknown[0], list(classes))} {known}; rename or remove the folders of others".strip(),
        )
    new_labels = np.array([classes.index(name) for name in pack.classes])
    return {
        part: Part(pack, part, _compact(np.arange(pack.size(part))), _compact(new_labels[pack.labels(part)]))
        for part in PART_NAMES
    }


def _chosen_classes(known: tuple[str, ...], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    if wanted is None:
        return known
    for name in wanted:
        if name not in known:
            listed = f"the classes are {', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
            raise UsageError(f"there is no class {name!r} in this dataset.", nearest(name, list(known)) or listed)
    repeated = sorted({name for name in wanted if wanted.count(name) > 1})
    if repeated:
        raise UsageError(f"the class {repeated[0]!r} is named twice.", "name each class once: --classes a,b,c")
    if len(wanted) < 2:
        raise UsageError(f"{len(wanted)} class(es) are too few to tell apart.", "name two at least: --classes a,b")
    return wanted


def _of_classes(pack: Pack, part: PartName, classes: tuple[str, ...]) -> tuple[Compact, Compact]:
    """The positions of these classes' pictures, and their labels in this order: (N,) each."""
    new_labels = np.full(len(pack.classes), -1, np.int64)
    new_labels[[pack.classes.index(name) for name in classes]] = np.arange(len(classes))
    labels = new_labels[pack.labels(part)]
    positions = np.flatnonzero(labels >= 0)
    return _compact(positions), _compact(labels[positions])


def _compact(numbers: npt.NDArray[np.int64]) -> Compact:
    """Return the same numbers, none of them below 0, in the smallest type that holds the largest."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))
