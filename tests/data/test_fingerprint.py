from __future__ import annotations

import unicodedata
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.data.dataset import Stamp
from lowmem_seq.data.fingerprint import fingerprint, is_ignored, normalised, quick_key
from lowmem_seq.data.prepare import prepare
from tests.data.builders import class_files, picture, write_folder, write_zip

FILES = [("cat/1.png", "aa"), ("cat/2.png", "bb"), ("dog/é.png", "cc")]


def test_the_value_is_pinned() -> None:
    assert fingerprint(FILES, 32) == "1a6cff3916c3b93eeb80295cecaf9ea2174a703ffed5a52fb990399b8d2c19cb"


@given(st.permutations(FILES))
def test_the_order_does_not_matter(files: list[tuple[str, str]]) -> None:
    assert fingerprint(files, 32) == fingerprint(FILES, 32)


def test_the_spelling_of_accents_does_not_matter() -> None:
    decomposed = [(unicodedata.normalize("NFD", name), sha256) for name, sha256 in FILES]
    assert decomposed != FILES
    assert fingerprint(decomposed, 32) == fingerprint(FILES, 32)


def test_what_systems_leave_behind_does_not_matter() -> None:
    litter = [".DS_Store", "cat/.DS_Store", "dog/Thumbs.db", "desktop.ini", "__MACOSX/cat/._1.png"]
    assert all(is_ignored(name) for name in litter)
    assert fingerprint(FILES + [(name, "00") for name in litter], 32) == fingerprint(FILES, 32)


def test_names_bytes_and_settings_do_matter() -> None:
    others = [
        fingerprint(FILES, 33),
        fingerprint(FILES[:2], 32),
        fingerprint([*FILES[:2], ("dog/é.png", "cd")], 32),
        fingerprint([*FILES[:2], ("dog/e.png", "cc")], 32),
        fingerprint([*FILES, FILES[0]], 32),
    ]
    assert len({*others, fingerprint(FILES, 32)}) == 6


@given(st.text(st.characters(codec=None), max_size=20))
def test_any_name_is_encodable_and_stays_as_it_is_when_normalised_again(name: str) -> None:
    once = normalised(name)
    once.encode("utf-8")
    assert normalised(once) == once


def test_the_quick_key_sees_names_sizes_and_times() -> None:
    stamps = [Stamp("a", 1, 2), Stamp("b", 3, 4)]
    key = quick_key("/photos", stamps, 32)
    assert quick_key("/photos", stamps[::-1], 32) == key
    assert quick_key("/photos", stamps, 33) != key
    assert quick_key("/other", stamps, 32) != key
    assert quick_key("/photos", [Stamp("a", 1, 3), stamps[1]], 32) != key
    assert quick_key("/photos", [Stamp("a", 9, 2), stamps[1]], 32) != key


def test_a_folder_and_zips_of_it_are_the_same_dataset(tmp_path: Path) -> None:
    files = class_files("cat", "Köter") | {"cat/notes.txt": b"not an image"}
    folder = prepare(str(write_folder(tmp_path / "photos", files)), 8)
    litter = {".DS_Store": b"x", "cat/Thumbs.db": b"y", "__MACOSX/cat/._0.png": picture(1)}
    decomposed = {unicodedata.normalize("NFD", name): data for name, data in reversed(files.items())}
    zipped = prepare(str(write_zip(tmp_path / "flat.zip", decomposed | litter)), 8)
    wrapped = {f"photos/{name}": data for name, data in files.items()} | {"photos/.DS_Store": b"x"}
    wrapped_zip = prepare(str(write_zip(tmp_path / "wrapped.zip", wrapped | litter)), 8)
    assert folder.fingerprint == zipped.fingerprint == wrapped_zip.fingerprint
    assert folder.folder == zipped.folder == wrapped_zip.folder
    assert folder.classes == ("Köter", "cat")
