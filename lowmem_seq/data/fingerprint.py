"""What a dataset is, as one number: equal on every system, for a folder and for a zip of it.

The fingerprint is the SHA-256 over the pack's settings and the sorted pairs of relative name and SHA-256 of the
file's bytes. The quick key is a hash over names, sizes and modification times: good enough to see on this machine
that nothing has changed, and cheap.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable

from lowmem_seq.data.dataset import Stamp

PACK_FORMAT = 1
RESIZE_RULE = "rgb-exif-draft2-bicubic-centre"
TEST_RULE = "15-percent-by-name"
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


def pack_settings(image_size: int) -> dict[str, object]:
    """What decides, beside the source's bytes, which pixels a pack holds."""
    return {
        "format_version": PACK_FORMAT,
        "image_size": image_size,
        "resize_rule": RESIZE_RULE,
        "test_rule": TEST_RULE,
    }


def normalised(name: str) -> str:
    """Return a relative name as it is on every system: NFC, `/` between parts, always encodable."""
    encodable = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return unicodedata.normalize("NFC", encodable)


def is_ignored(name: str) -> bool:
    """Whether a relative name is one that systems leave behind: .DS_Store, Thumbs.db, __MACOSX/... ."""
    return any(part.startswith(".") or part.casefold() in _SYSTEM_FILES for part in name.split("/"))


def fingerprint(files: Iterable[tuple[str, str]], image_size: int) -> str:
    """Return the SHA-256, in hexadecimal digits, of a dataset as it is packed at `image_size`.

    `files` holds each file's relative name and the SHA-256 of its bytes, in any order.
    """
    digest = hashlib.sha256(json.dumps(pack_settings(image_size), sort_keys=True).encode())
    for name, sha256 in sorted((normalised(name), sha256) for name, sha256 in files if not is_ignored(name)):
        digest.update(f"\n{json.dumps(name)} {sha256}".encode())
    return digest.hexdigest()


def quick_key(source: str, stamps: Iterable[Stamp], image_size: int) -> str:
    """Return the key under which an unchanged source's pack is remembered."""
    digest = hashlib.sha256(json.dumps([source, pack_settings(image_size)], sort_keys=True).encode())
    for stamp in sorted(stamps):
        digest.update(f"\n{json.dumps(stamp)}".encode())
    return digest.hexdigest()[:32]
