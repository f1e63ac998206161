"""Small datasets for the tests: pictures, folders, zips, a pack."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from lowmem_seq.data.dataset import PartName, Pixels, Skipped
from lowmem_seq.data.pack import Pack, PackHeader, writing_pack


def picture(number: int, side: int = 8, image_format: str = "PNG") -> bytes:
    """A file with a noisy picture that is different for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


def coloured_files(**colours: tuple[int, int, int]) -> dict[str, bytes]:
    """20 pictures of a colour with some noise below each name, 24x20 pixels: `red/0.png`, ... ."""
    files = {}
    for name, colour in colours.items():
        for number in range(20):
            noise = np.random.default_rng(number).integers(-30, 31, (20, 24, 3))
            file = io.BytesIO()
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
            files[f"{name}/{number}.png"] = file.getvalue()
    return files


def class_files(*prefixes: str, count: int = 4) -> dict[str, bytes]:
    """`count` pictures below each prefix: `cat/0.png`, `cat/1.png`, ... ."""
    names = [f"{prefix}/{number}.png" for prefix in prefixes for number in range(count)]
    return {name: picture(number) for number, name in enumerate(names)}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_pack(
    folder: Path,
    labels: dict[PartName, list[int]],
    classes: tuple[str, ...] = ("a", "b", "c"),
    image_size: int = 8,
) -> Pack:
    """A pack of noise with these labels."""
    header = PackHeader(
        name="test", source="test", classes=classes, image_size=image_size, fingerprint="0" * 64, test_part="-"
    )
    noise = np.random.default_rng(0)
    with writing_pack(folder, header, Skipped()) as writer:
        for part, part_labels in labels.items():
            for label in part_labels:
                pixels: Pixels = noise.integers(0, 256, (image_size, image_size, 3), np.uint8)
                writer.add(part, pixels, label)
    return Pack.open(folder)
