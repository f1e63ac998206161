from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lowmem_seq.data.dataset import Pixels
from lowmem_seq.data.pictures import UnreadableError, decode, fitted, is_image_name
from tests.data.builders import picture


def saved(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def plain(side: tuple[int, int], colour: object, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, side, colour)  # type: ignore[arg-type]


def test_a_picture_of_the_right_size_is_untouched() -> None:
    expected = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(decode(picture(3, 16), 16), expected)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(8, 40))
def test_every_size_becomes_the_square(width: int, height: int, image_size: int) -> None:
    pixels = decode(saved(plain((width, height), (10, 200, 30))), image_size)
    assert pixels.shape == (image_size, image_size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (10, 200, 30)).all()


def test_the_centre_is_cut_out() -> None:
    pixels: Pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    # Antialiasing reaches over the edge, as when the whole picture is resized before it is cut.
    assert (fitted(pixels, 10)[:, 1:-1] == 255).all()
    assert (fitted(pixels.swapaxes(0, 1).copy(), 10)[1:-1] == 255).all()


def test_it_is_antialiased() -> None:
    checker: Pixels = np.indices((64, 64)).sum(0).astype(np.uint8)[..., None].repeat(3, 2) % 2 * 255
    assert abs(fitted(checker, 8).astype(int) - 128).max() <= 2


def test_it_is_turned_as_exif_says() -> None:
    image = plain((8, 8), "black")
    image.putpixel((7, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    pixels = decode(saved(image, "PNG", exif=exif), 8)
    assert pixels[7, 7].tolist() == [255, 255, 255]


def test_a_large_photo_is_like_its_small_copy() -> None:
    """The JPEG decoder's own halving changes little against decoding all of it."""
    ramp: npt.NDArray[np.int64] = np.indices((640, 640)).sum(0) // 5 % 256
    photo = Image.fromarray(ramp.astype(np.uint8)).convert("RGB")
    whole = np.asarray(photo.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    difference = abs(decode(saved(photo, "JPEG", quality=95), 32) - whole)
    assert np.median(difference) <= 2


@pytest.mark.parametrize(
    ("image", "image_format", "expected"),
    [
        (plain((8, 8), 100, "L"), "PNG", (100, 100, 100)),
        (plain((8, 8), 1, "1"), "PNG", (255, 255, 255)),
        (plain((8, 8), (1, 2, 3, 0), "RGBA"), "PNG", (255, 255, 255)),
        (plain((8, 8), (10, 255), "LA"), "PNG", (10, 10, 10)),
        (plain((8, 8), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE), "GIF", (9, 8, 7)),
        (Image.fromarray(np.full((8, 8), 0xABCD, np.uint16)), "PNG", (0xAB, 0xAB, 0xAB)),
        (plain((8, 8), (255, 255, 255, 255), "CMYK"), "TIFF", (0, 0, 0)),
        (plain((8, 8), (9, 8, 7)), "BMP", (9, 8, 7)),
        (plain((8, 8), (9, 8, 7)), "PPM", (9, 8, 7)),
    ],
)
def test_every_kind_of_picture_becomes_rgb(image: Image.Image, image_format: str, expected: tuple[int]) -> None:
    assert (decode(saved(image, image_format), 8) == expected).all()


def test_transparency_in_a_palette() -> None:
    image = plain((8, 8), 0, "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert (decode(saved(image, "PNG", transparency=0), 8) == 255).all()
    assert (decode(saved(image, "PNG", transparency=b"\x00\xff"), 8) == 255).all()


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\0IDAT"
    )


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_picture_with_too_many_pixels(side: int) -> None:
    with pytest.raises(UnreadableError, match="over 89 million pixels"):
        decode(png_header(side, side), 32)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_one_error_or_a_picture(data: st.DataObject) -> None:
    image_format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF"]))
    damaged = bytearray(picture(1, 12, image_format))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), 8)
    except UnreadableError:
        return
    assert pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("data", [b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg></svg>", png_header(8, 8)])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(UnreadableError, match="not a readable image"):
        decode(data, 8)


def test_names_of_images() -> None:
    assert all(is_image_name(name) for name in ("a.jpg", "B.JPEG", "c.PNG", "d/e.webp"))
    assert not any(is_image_name(name) for name in ("a.txt", "jpg", "b.pt", "c.svg", "d.jpg.part"))
