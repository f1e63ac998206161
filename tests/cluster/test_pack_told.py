"""What a host tells of its packed images: these bytes, no path, and nothing that can't be is believed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowmem_seq.cluster.pack_told import believe, tell
from lowmem_seq.data.catalogue import HOST
from lowmem_seq.data.pack import PackDescription, PackedFile, PartCounts, SkippedFiles

PACK = PackDescription(
    name="photos",
    source="/home/max/photos",
    classes=("Bär", "cat"),
    image_size=8,
    fingerprint="0f" * 32,
    test_part="15 % of each class",
    parts={"train": PartCounts(3, (1, 2)), "test": PartCounts(1, (1, 0))},
    mean=(0.5, 0.25, 0.125),
    deviation=(0.25, 0.0, 1.0),
    skipped=SkippedFiles(2, {"not an image file": 2}, (("private/notes.txt", "not an image file"), ("x", "-"))),
    files={
        "train.images": PackedFile(3 * 192, "a1" * 32),
        "train.labels": PackedFile(12, "a2" * 32),
        "test.images": PackedFile(192, "a3" * 32),
        "test.labels": PackedFile(4, "a4" * 32),
    },
)
TOLD = (
    '{"format_version":1,"fingerprint":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",'
    '"name":"photos","source":"host","classes":["Bär","cat"],"image_size":8,"test_part":"15 % of each class",'
    '"by_class":{"train":[1,2],"test":[1,0]},"mean":[0.5,0.25,0.125],"deviation":[0.25,0.0,1.0],'
    '"skipped":{"not an image file":2},"files":{"train.images":{"bytes":576,'
    '"sha256":"a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"},"train.labels":{"bytes":12,'
    '"sha256":"a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2"},"test.images":{"bytes":192,'
    '"sha256":"a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3"},"test.labels":{"bytes":4,'
    '"sha256":"a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4"}}}'
).encode()


def test_what_is_told_is_these_bytes() -> None:
    assert tell(PACK) == TOLD


def test_what_is_believed_names_neither_a_place_nor_files_of_the_host() -> None:
    expected = msgspec.structs.replace(PACK, source=HOST, skipped=SkippedFiles(2, {"not an image file": 2}, ()))
    assert believe(TOLD) == expected
    assert b"max" not in TOLD
    assert b"notes" not in TOLD


def test_a_dataset_of_the_catalogue_stays_one() -> None:
    """Whether its pictures may be mirrored hangs on it."""
    mnist = msgspec.structs.replace(PACK, source="mnist")
    assert believe(tell(mnist)).source == "mnist"


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(TOLD), **changes}).encode()


FILES = json.loads(TOLD)["files"]
NAMES = [f"class {number}" for number in range(2**16 + 1)]
FAULTS: list[tuple[bytes, str]] = [
    (b"", "can't be read"),
    (b"[" * 100_000, "can't be read"),
    (b"\xff\xfe", "can't be read"),
    (TOLD[:-1], "can't be read"),
    (changed(format_version=2), "can't be read"),
    (changed(also=1), "can't be read"),
    (changed(fingerprint="../../etc/cron.d"), "can't be read"),
    (changed(fingerprint="0F" * 32), "can't be read"),
    (changed(fingerprint="0f" * 31), "can't be read"),
    (changed(image_size=2**40), "can't be read"),
    (changed(image_size=16), "not as long as"),
    (changed(name="x" * 256), "can't be read"),
    (changed(classes=[]), "can't be read"),
    (changed(classes=NAMES), "can't be read"),
    (changed(classes=["cat", "cat"]), "a class twice"),
    (changed(classes=["cat"]), "of each of its 1 classes"),
    (changed(by_class={"train": [1, 2]}), "other parts"),
    (changed(by_class={"train": [1, 2], "test": [1, 0], "../x": [1, 1]}), "can't be read"),
    (changed(by_class={"train": [1, 2], "test": [-1, 2]}), "can't be read"),
    (changed(by_class={"train": [2**31, 2], "test": [1, 0]}), "can't be read"),
    (changed(by_class={"train": [2**31 - 1, 2], "test": [1, 0]}), "not as long as"),
    (changed(mean=[0.5, 0.5]), "can't be read"),
    (changed(mean=[0.5, 0.5, 2.0]), "can't be read"),
    (changed(deviation=[float("nan"), 0.5, 0.5]), "can't be read"),
    (changed(files={**FILES, "../../.bashrc": FILES["train.labels"]}), "can't be read"),
    (changed(files={**FILES, "description": FILES["train.labels"]}), "can't be read"),
    (changed(files={name: FILES[name] for name in list(FILES)[1:]}), "not as long as"),
    (changed(files={**FILES, "train.images": {"bytes": 2**60, "sha256": "a1" * 32}}), "can't be read"),
    (changed(files={**FILES, "train.images": {"bytes": 2**49, "sha256": "a1" * 32}}), "not as long as"),
    (changed(files={**FILES, "train.images": {"bytes": 576, "sha256": "a1"}}), "can't be read"),
]


@pytest.mark.parametrize(("told", "words"), FAULTS, ids=range(len(FAULTS)))
def test_what_can_not_be_is_not_believed(told: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        believe(told)


@given(st.data())
def test_damaged_bytes_are_refused_or_mean_a_pack_that_can_be(data: st.DataObject) -> None:
    damaged = bytearray(TOLD)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(TOLD) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = believe(bytes(damaged))
    except ValueError:
        return
    assert set(found.files) == set(PACK.files)
    assert believe(tell(found)) == found
