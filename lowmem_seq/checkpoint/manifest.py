"""One checkpoint's manifest: its files by size and SHA-256, and whether they are there as they were written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowmem_seq.files import parse_json, read_limited, sha256_of, writing

FORMAT_VERSION = 2
"""Version 1 (2026-11-22) had no `manifest_sha256` and no `metrics`; it can still be read."""
MANIFEST = "manifest.json"
LARGEST_MANIFEST_BYTES = 10**6
MOST_FILES = 64
_SEAL = '"manifest_sha256": "{}"'
_SEALED = re.compile(_SEAL.format("([0-9a-f]{64})"))
_FILE_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Checkpoint:
    """One saved step."""

    path: Path
    step: int


@dataclass(frozen=True)
class Fault:
    """What keeps a checkpoint from being used.

    broken: it is not as it was written. unreadable: the disk doesn't let it be read, now. newer: a later release
    wrote it. foreign: it belongs to another experiment.
    """

    kind: Literal["broken", "unreadable", "newer", "foreign"]
    text: str


def write_manifest(folder: Path, told: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint whose other files are there.

    Args:
        folder: where they are.
        told: the step, what the checkpoint belongs to, `metrics` and `files`.
    """
    with writing(folder / MANIFEST) as file:
        file.write(sealed({"format_version": FORMAT_VERSION, **told}))


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest's bytes with `manifest_sha256`: the SHA-256 of the bytes with zeros in its place."""
    text = json.dumps({**manifest, "manifest_sha256": _NO_DIGEST}, indent=2, allow_nan=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace(_SEAL.format(_NO_DIGEST), _SEAL.format(digest)).encode()


def read_manifest(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        OSError: it can't be read.
        ValueError: it is not as it was written.
    """
    _require_file(checkpoint.path / MANIFEST)
    content = read_limited(checkpoint.path / MANIFEST, LARGEST_MANIFEST_BYTES)
    manifest = parse_json(content)
    if not isinstance(manifest, dict):
        raise ValueError("it is no JSON object")
    if "manifest_sha256" in manifest or manifest.get("format_version") != 1:
        digests = _SEALED.findall(content.decode("utf-8"))
        if len(digests) != 1:
            raise ValueError("it has no checksum of its own")
        blank = _SEALED.sub(_SEAL.format(_NO_DIGEST), content.decode("utf-8"))
        if hashlib.sha256(blank.encode()).hexdigest() != digests[0]:
            raise ValueError("it has changed since it was written")
    return manifest


class _NoPlainFileError(ValueError):
    """A link, a folder, a pipe or a device stands where a file should."""


def find_fault(checkpoint: Checkpoint, identity: Mapping[str, str] | None = None) -> Fault | None:
    """Return what keeps a checkpoint from being used, or None if every file is as its manifest says.

    Args:
        checkpoint: what is looked at; nothing is changed.
        identity: what it must belong to; None asks for nothing.
    """
    try:
        return _find_fault(checkpoint, identity or {})
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        if isinstance(error, FileNotFoundError):
            return Fault("broken", f"{name} is missing")
        return Fault("unreadable", f"{name} can't be read: {error.strerror}")
    except _NoPlainFileError as error:
        return Fault("broken", str(error))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Fault("broken", f"its manifest can't be read: {error}")


def _find_fault(checkpoint: Checkpoint, identity: Mapping[str, str]) -> Fault | None:
    manifest = read_manifest(checkpoint)
    version = manifest["format_version"]
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        later = isinstance(version, int) and version > FORMAT_VERSION
        text = f"format version {version} is not known to this release"
        return Fault("newer" if later else "broken", text)
    if manifest["step"] != checkpoint.step:
        return Fault("broken", f"it holds step {manifest['step']}")
    files: dict[str, Any] = manifest["files"]
    if not 0 < len(files) <= MOST_FILES:
        return Fault("broken", f"its manifest names {len(files) or 'no'} files")
    for name, expected in files.items():
        if not _FILE_NAME.fullmatch(name):
            return Fault("broken", f"its manifest names a file outside of it: {name}")
        size = _require_file(checkpoint.path / name)
        if size != expected["bytes"]:
            return Fault("broken", f"{name} has {size} bytes, and {expected['bytes']} are expected")
        if sha256_of(checkpoint.path / name) != expected["sha256"]:
            return Fault("broken", f"{name} has changed since it was written")
    differing = [key for key, value in identity.items() if manifest.get(key) != value]
    if differing:
        return Fault("foreign", f"belongs to another experiment (other {' and '.join(differing)})")
    return None


def _require_file(path: Path) -> int:
    """Return a file's size.

    Raises:
        OSError: it is not there.
        ValueError: it is a link, a folder or a device.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise _NoPlainFileError(f"{path.name} is no plain file")
    return status.st_size
