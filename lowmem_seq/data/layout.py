"""From the names in a folder or zip to classes and parts: CLASS/file, or train/CLASS/file and test/CLASS/file.

One top folder that wraps everything is taken off. `val`, `valid` or `validation` is the test part where there is
no `test`. Where there is neither, 15 % of each class are put aside by a hash of the files' names: independent of
any seed, so that every run on this dataset is judged on the same pictures.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

from lowmem_seq.data.dataset import PART_NAMES, PartName, Skipped
from lowmem_seq.data.pictures import is_image_name
from lowmem_seq.errors import DataError

TEST_PERCENT = 15
PUT_ASIDE = f"{TEST_PERCENT} % of each class, chosen by a hash of the files' names, because there is no test folder"
"""What pack.json says where a dataset has no test part of its own."""
LAYOUT_HINT = "lay the images out as CLASS/file, or as train/CLASS/file and test/CLASS/file"
_VALIDATION_FOLDERS = ("val", "valid", "validation")
_PART_FOLDERS = ("train", "test", *_VALIDATION_FOLDERS)


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """An image file with its place in the dataset; `position` is its place in the folder or zip."""

    name: str
    part: PartName
    label: int
    position: int


@dataclass(frozen=True)
class Layout:
    """A dataset's classes and files, in the order of the pack, and how its test part came about."""

    classes: tuple[str, ...]
    files: list[PlacedFile]
    test_part: str


def arrange(names: list[str], folders: list[str], skipped: Skipped) -> Layout:
    """Return the layout of the files with these relative names; what has no place is counted in `skipped`.

    `folders` are the folders' relative names: an empty one would not be seen in the files' names.

    Raises:
        DataError: no images, a class folder without images, a class without train images, or a single class.
    """
    images: list[tuple[int, list[str]]] = []  # position and path of each image file
    folder_paths = {tuple(folder.split("/")) for folder in folders}
    for position, name in enumerate(names):
        path = name.split("/")
        folder_paths.update([tuple(path[:-1])] if len(path) > 1 else [])
        if is_image_name(name):
            images.append((position, path))
        else:
            skipped.add(name, "not an image file")
    if not images:
        raise DataError("there are no image files in it.", LAYOUT_HINT)
    depth = _wrapping_depth([path for _, path in images], folder_paths)
    images = [(position, path[depth:]) for position, path in images]
    inner_folders = {path[depth:] for path in folder_paths if len(path) > depth}
    parts, test_part = _parts_of([path for _, path in images], inner_folders)
    class_depth = 1 if parts else 0

    placed: list[tuple[PartName, str, str, int]] = []  # part, class, name, position
    for position, path in images:
        if len(path) < class_depth + 2:
            skipped.add(names[position], "not in a class folder")
        elif parts and path[0].casefold() not in parts:
            skipped.add(names[position], "outside of the folders that are read")
        else:
            part = parts[path[0].casefold()] if parts else "train"
            placed.append((part, path[class_depth], "/".join(path), position))
    with_images = {tuple(name.split("/")[: class_depth + 1]) for _, _, name, _ in placed}
    class_folders = {
        path[: class_depth + 1]
        for path in inner_folders
        if len(path) > class_depth and (not parts or path[0].casefold() in parts)
    }
    _check_classes(sorted("/".join(path) for path in class_folders - with_images), placed)
    if "test" not in parts.values():
        placed = _with_test_part(placed)
    classes = sorted({class_name for _, class_name, _, _ in placed})
    labels = {class_name: label for label, class_name in enumerate(classes)}
    files = [PlacedFile(name, part, labels[class_name], position) for part, class_name, name, position in placed]
    files.sort(key=lambda file: (PART_NAMES.index(file.part), file.label, file.name))
    return Layout(tuple(classes), files, test_part)


def _wrapping_depth(images: list[list[str]], folders: set[tuple[str, ...]]) -> int:
    """How many top folders wrap the whole dataset."""
    depth = 0
    while True:
        tops = {path[depth] for path in images} | {path[depth] for path in folders if len(path) > depth}
        leaves_classes = all(len(path) > depth + 2 for path in images)
        if len(tops) != 1 or not leaves_classes or tops.pop().casefold() in _PART_FOLDERS:
            return depth
        depth += 1


def _parts_of(images: list[list[str]], folders: set[tuple[str, ...]]) -> tuple[dict[str, PartName], str]:
    """Which top folders, in small letters, are which part, and what pack.json says about the test part.

    No folders at all mean the layout CLASS/file. A folder named train that directly holds images is a class.
    """
    tops = {path[0].casefold(): path[0] for path in folders}
    nested = {path[0].casefold() for path in images if len(path) > 2}
    if "train" not in nested:
        if nested and nested <= set(_PART_FOLDERS):
            raise DataError(f"it has a folder {tops[min(nested)]}, but none named train.", LAYOUT_HINT)
        return {}, PUT_ASIDE
    validations = [name for name in _VALIDATION_FOLDERS if name in tops]
    if "test" in tops:
        unread = f"; the folder {tops[validations[0]]} is not read" if validations else ""
        return {"train": "train", "test": "test"}, f"the folder {tops['test']}{unread}"
    if validations:
        sentence = f"the folder {tops[validations[0]]}, because there is no test folder"
        return {"train": "train", validations[0]: "test"}, sentence
    return {"train": "train"}, PUT_ASIDE


def _check_classes(empty_folders: list[str], placed: list[tuple[PartName, str, str, int]]) -> None:
    if empty_folders:
        raise DataError(
            f"{len(empty_folders)} class folder(s) hold no images: {', '.join(empty_folders[:10])}.",
            "put images into them, or remove them",
        )
    in_train = {class_name for part, class_name, _, _ in placed if part == "train"}
    only_in_test = sorted({class_name for _, class_name, _, _ in placed} - in_train)
    if only_in_test:
        raise DataError(f"no train images for the class(es) {', '.join(only_in_test[:10])}.", LAYOUT_HINT)
    if len(in_train) < 2:
        found = f"only the class {min(in_train)}" if in_train else "no class folders"
        raise DataError(f"it has {found}, and telling apart needs at least two.", LAYOUT_HINT)


def _with_test_part(placed: list[tuple[PartName, str, str, int]]) -> list[tuple[PartName, str, str, int]]:
    """Move a share of each class to the test part, by the hash of the files' names."""
    by_class: defaultdict[str, list[tuple[bytes, str, int]]] = defaultdict(list)
    for _, class_name, name, position in placed:
        by_class[class_name].append((hashlib.sha256(name.encode()).digest(), name, position))
    moved: list[tuple[PartName, str, str, int]] = []
    for class_name, ranked in by_class.items():
        ranked.sort()
        aside = max((TEST_PERCENT * len(ranked) + 50) // 100, 1 if len(ranked) >= 2 else 0)
        for rank, (_, name, position) in enumerate(ranked):
            moved.append(("test" if rank < aside else "train", class_name, name, position))
    return moved
