from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.data.dataset import SKIPPED_LISTED_AT_MOST, Skipped
from lowmem_seq.data.layout import Layout, arrange
from lowmem_seq.errors import DataError


def names_of(layout: Layout, part: str) -> list[str]:
    return [file.name for file in layout.files if file.part == part]


def names(*folders: str, count: int = 10) -> list[str]:
    return [f"{folder}/{number:02d}.jpg" for folder in folders for number in range(count)]


def test_train_and_test_folders() -> None:
    found = names("test/dog", "train/dog", "test/cat", "train/cat", count=2)
    layout = arrange(found, [], Skipped())
    assert layout.classes == ("cat", "dog")
    assert names_of(layout, "train") == names("train/cat", "train/dog", count=2)
    assert names_of(layout, "test") == names("test/cat", "test/dog", count=2)
    assert layout.test_part == "the folder test"
    assert all(found[file.position] == file.name for file in layout.files)
    assert {file.name.split("/")[1] for file in layout.files if file.label == 1} == {"dog"}


def test_capital_letters_of_parts_do_not_matter() -> None:
    layout = arrange(names("Train/cat", "Train/dog", "TEST/cat"), [], Skipped())
    assert len(names_of(layout, "test")) == 10


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_validation_folder_is_the_test_part_where_there_is_no_other(name: str) -> None:
    layout = arrange(names("train/cat", "train/dog", f"{name}/cat"), [], Skipped())
    assert names_of(layout, "test") == names(f"{name}/cat")
    assert layout.test_part == f"the folder {name}, because there is no test folder"


def test_a_validation_folder_beside_a_test_folder_is_not_read() -> None:
    skipped = Skipped()
    layout = arrange(names("train/cat", "train/dog", "test/cat", "val/cat"), [], skipped)
    assert names_of(layout, "test") == names("test/cat")
    assert "the folder val is not read" in layout.test_part
    assert skipped.reasons == {"outside of the folders that are read": 10}


def test_without_a_test_folder_15_percent_of_each_class_are_put_aside() -> None:
    for prefix in ("", "train/"):
        found = names(f"{prefix}cat", count=100) + names(f"{prefix}dog", count=3) + names(f"{prefix}eel", count=1)
        layout = arrange(found, [], Skipped())
        test_names = names_of(layout, "test")
        assert sum("cat" in name for name in test_names) == 15
        assert sum("dog" in name for name in test_names) == 1
        assert sum("eel" in name for name in test_names) == 0
        assert layout.test_part.startswith("15 % of each class")


def test_what_is_put_aside_is_pinned_and_stays_when_a_class_joins() -> None:
    few = names_of(arrange(names("cat", "dog"), [], Skipped()), "test")
    assert few == ["cat/02.jpg", "cat/09.jpg", "dog/01.jpg", "dog/09.jpg"]
    many = names_of(arrange(names("ant", "cat", "dog"), [], Skipped()), "test")
    assert set(few) <= set(many)


@given(st.permutations(names("cat", "dog", count=4)))
def test_the_order_of_the_listing_does_not_matter(found: list[str]) -> None:
    expected = arrange(sorted(found), [], Skipped())
    layout = arrange(found, [], Skipped())
    assert [file.name for file in layout.files] == [file.name for file in expected.files]
    assert layout.classes == expected.classes


@pytest.mark.parametrize("wrapper", ["photos", "archive/photos"])
def test_wrapping_folders_are_taken_off(wrapper: str) -> None:
    found = [f"{wrapper}/{name}" for name in names("train/cat", "train/dog", "test/cat")]
    layout = arrange([*found, f"{wrapper}/README.txt"], ["archive"] if "/" in wrapper else [], Skipped())
    assert names_of(layout, "test") == names("test/cat")


def test_a_class_may_be_called_train() -> None:
    assert arrange(names("bus", "train"), [], Skipped()).classes == ("bus", "train")


def test_folders_below_a_class_belong_to_it() -> None:
    assert arrange([*names("cat/black", "cat/white"), *names("dog")], [], Skipped()).classes == ("cat", "dog")


def test_what_has_no_place_is_counted() -> None:
    skipped = Skipped()
    arrange([*names("cat", "dog"), "cat/notes.txt", "cover.jpg"], [], skipped)
    assert dict(skipped.listed) == {"cat/notes.txt": "not an image file", "cover.jpg": "not in a class folder"}


def test_only_a_thousand_skipped_files_are_listed() -> None:
    skipped = Skipped()
    arrange([*names("cat", "dog"), *(f"cat/{n}.txt" for n in range(1500))], [], skipped)
    assert len(skipped.listed) == SKIPPED_LISTED_AT_MOST
    assert skipped.reasons.total() == 1500


@pytest.mark.parametrize(
    ("found", "folders", "message"),
    [
        ([], [], "no image files"),
        (["cat/notes.txt"], ["cat"], "no image files"),
        (names("cat"), [], "only the class cat"),
        (["1.jpg", "2.jpg"], [], "no class folders"),
        (names("cat", "dog"), ["eel", "fox"], r"2 class folder\(s\) hold no images: eel, fox"),
        ([*names("cat", "dog"), "eel/notes.txt"], [], "eel"),
        (names("train/cat", "train/dog", "test/cat"), ["test/dog"], "test/dog"),
        (names("train/cat", "train/dog", "test/eel"), [], "no train images for the class"),
        (names("test/cat", "test/dog"), [], "none named train"),
    ],
)
def test_layouts_that_cannot_be_used(found: list[str], folders: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        arrange(found, folders, Skipped())
    assert caught.value.hint
