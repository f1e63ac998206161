"""One picture from its file's bytes to the square of RGB pixels that a pack holds.

The rule: turned as its EXIF says, colour over white where it is transparent, the shorter side brought to the
image size (bicubic, antialiased), the centre cut out. A picture that has the right size already is untouched.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from lowmem_seq.data.dataset import Pixels

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
MAX_PIXELS = 89_478_485  # Pillow's own limit, beyond which it warns of a decompression bomb


class UnreadableError(Exception):
    """A file that can't be read as a picture; its text is the reason that pack.json lists."""


def is_image_name(name: str) -> bool:
    """Whether the name ends like one of the formats that are read."""
    return any(name.lower().endswith(suffix) for suffix in SUFFIXES)


def decode(data: bytes, image_size: int) -> Pixels:
    """Return the picture in `data` as (image_size, image_size, 3).

    Raises:
        UnreadableError: it is broken, of another format, or larger than 89 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which doesn't matter here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.format == "JPEG" and min(image.size) > 4 * image_size:
                    # The decoder itself halves a photo, up to 3 times, but never below twice the size wanted.
                    image.draft("RGB", (2 * image_size, 2 * image_size))
                return fitted(np.asarray(_as_rgb(ImageOps.exif_transpose(image))), image_size)
    except MemoryError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UnreadableError(f"over {MAX_PIXELS // 10**6} million pixels") from error
    except Exception as error:  # decoders let every kind of error through when a file is broken
        raise UnreadableError("not a readable image") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip them, not scale them
        high_bytes = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(high_bytes.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fitted(pixels: Pixels, image_size: int) -> Pixels:
    """Return pixels: (H, W, 3) as (image_size, image_size, 3)."""
    height, width, _ = pixels.shape
    if height == width == image_size:
        return pixels
    shorter = min(height, width)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    # Cutting the centre square and resizing it in one call is the same as resizing first, without its rounding.
    scaled = Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC, box)
    return np.asarray(scaled)  # (image_size, image_size, 3)
