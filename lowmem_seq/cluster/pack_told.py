"""What a host says of its packed images, and what another machine believes of that.

It travels as JSON. No path is in it: what the images were made from is told only where that is a name of the
catalogue. The other machine writes a pack.json of its own from it, and gives files the names that it knows itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from lowmem_seq.cluster.messages import Count
from lowmem_seq.data.catalogue import CATALOGUE, HOST
from lowmem_seq.data.dataset import PART_NAMES, PartName
from lowmem_seq.data.pack import PackDescription, PackedFile, PartCounts, SkippedFiles, file_sizes
from lowmem_seq.files import LARGEST_JSON_BYTES

MOST_TOLD_BYTES = LARGEST_JSON_BYTES
"""What is told is shorter than the pack.json that it is made of, and that has no more."""
PackFile = Literal["train.images", "train.labels", "test.images", "test.labels"]
Words = Annotated[str, Meta(max_length=255)]
Share = Annotated[float, Meta(ge=0, le=1)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class ToldFile(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the pack."""

    bytes: Annotated[int, Meta(ge=0, le=2**50)]
    sha256: Sha256


class ToldPack(Struct, frozen=True, forbid_unknown_fields=True):
    """A pack, as its host tells of it."""

    format_version: Literal[1]
    fingerprint: Sha256
    name: Words
    source: Words
    """A name of the catalogue, or `host`."""
    classes: Annotated[tuple[Words, ...], Meta(min_length=1, max_length=2**16)]
    image_size: Annotated[int, Meta(ge=8, le=1024)]
    test_part: Words
    by_class: dict[PartName, tuple[Count, ...]]
    """How many pictures each part has of each class."""
    mean: tuple[Share, Share, Share]
    deviation: tuple[Share, Share, Share]
    skipped: Annotated[dict[Words, Count], Meta(max_length=256)]
    """How many files were left out, by reason."""
    files: dict[PackFile, ToldFile]


def tell(pack: PackDescription) -> bytes:
    """Return what is told of a pack."""
    return msgspec.json.encode(
        ToldPack(
            format_version=pack.format_version,
            fingerprint=pack.fingerprint,
            name=pack.name[:255],
            source=pack.source if pack.source in CATALOGUE else HOST,
            classes=pack.classes,
            image_size=pack.image_size,
            test_part=pack.test_part,
            by_class={part: pack.parts[part].by_class for part in PART_NAMES},
            mean=pack.mean,
            deviation=pack.deviation,
            skipped=pack.skipped.reasons,
            files={name: ToldFile(file.bytes, file.sha256) for name, file in pack.files.items()},  # type: ignore[misc]
        )
    )


def believe(told: bytes) -> PackDescription:
    """Return the description of a pack that a host tells of.

    Raises:
        ValueError: it is none, or says what can't be.
    """
    try:
        pack = msgspec.json.decode(told, type=ToldPack)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it can't be read: {error}") from error
    if set(pack.by_class) != set(PART_NAMES) or len(set(pack.classes)) != len(pack.classes):
        raise ValueError("it has other parts than train and test, or a class twice")
    if any(len(counts) != len(pack.classes) for counts in pack.by_class.values()):
        raise ValueError(
            f"it does not say of each of its {len(pack.classes):,} classes how many pictures there are"
        )
    described = PackDescription(
        name=pack.name,
        source=pack.source if pack.source in CATALOGUE else HOST,
        classes=pack.classes,
        image_size=pack.image_size,
        fingerprint=pack.fingerprint,
        test_part=pack.test_part,
        parts={part: PartCounts(sum(pack.by_class[part]), pack.by_class[part]) for part in PART_NAMES},
        mean=pack.mean,
        deviation=pack.deviation,
        skipped=SkippedFiles(sum(pack.skipped.values()), pack.skipped, ()),
        files={name: PackedFile(file.bytes, file.sha256) for name, file in pack.files.items()},
    )
    if {name: file.bytes for name, file in described.files.items()} != file_sizes(described):
        raise ValueError("its files are not as long as so many pictures are")
    return described
