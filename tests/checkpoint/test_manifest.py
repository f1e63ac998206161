from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowmem_seq.checkpoint import manifest as manifest_module
from lowmem_seq.checkpoint.manifest import LARGEST_MANIFEST_BYTES, MANIFEST, Checkpoint, Fault, find_fault
from lowmem_seq.checkpoint.store import CheckpointStore, best_of
from tests.builders import NEEDS_LINKS, names
from tests.checkpoint.stores import (
    BLANK,
    IDENTITY,
    Told,
    as_version_1,
    change_weights,
    edit_manifest,
    newest,
    seal,
    write_step,
)


def empty(checkpoint: Checkpoint) -> None:
    for path in checkpoint.path.iterdir():
        path.unlink()


def make_folder_of(checkpoint: Checkpoint, name: str) -> None:
    (checkpoint.path / name).unlink()
    (checkpoint.path / name).mkdir()


OUTSIDE = {"bytes": 1, "sha256": "1" * 64}
DAMAGES: dict[str, tuple[Callable[[Checkpoint], object], str]] = {
    "truncated": (
        lambda saved: (saved.path / "model.safetensors").write_bytes(b"weig"),
        "model.safetensors has 4 bytes, and 12 are expected",
    ),
    "emptied": (
        lambda saved: (saved.path / "state.json").write_bytes(b""),
        "state.json has 0 bytes, and 11 are expected",
    ),
    "grown": (
        lambda saved: (saved.path / "state.json").write_text("x" * 100),
        "state.json has 100 bytes, and 11 are expected",
    ),
    "zeroed": (
        lambda saved: (saved.path / "state.json").write_bytes(bytes(11)),
        "state.json has changed since it was written",
    ),
    "flipped": (change_weights, "model.safetensors has changed since it was written"),
    "deleted": (lambda saved: (saved.path / "state.json").unlink(), "state.json is missing"),
    "swapped": (
        lambda saved: shutil.copy(saved.path / "manifest.json", saved.path / "state.json"),
        "state.json has ",
    ),
    "no manifest": (lambda saved: (saved.path / MANIFEST).unlink(), "manifest.json is missing"),
    "empty folder": (empty, "manifest.json is missing"),
    "torn manifest": (lambda saved: (saved.path / MANIFEST).write_text('{"step"'), "its manifest can't be read"),
    "manifest of bytes": (lambda saved: (saved.path / MANIFEST).write_bytes(b"\xff"), "its manifest can't be read"),
    "manifest is a list": (
        lambda saved: (saved.path / MANIFEST).write_text("[]"),
        "its manifest can't be read: it is no JSON object",
    ),
    "deep manifest": (
        lambda saved: (saved.path / MANIFEST).write_text("[" * 100_000),
        "its manifest can't be read: it is nested too deeply",
    ),
    "manifest without end": (
        lambda saved: (saved.path / MANIFEST).write_bytes(b" " * (LARGEST_MANIFEST_BYTES + 1)),
        "its manifest can't be read: manifest.json has over 1,000,000 bytes",
    ),
    **{
        f"no seal, format {version}": (
            lambda saved, version=version: (saved.path / MANIFEST).write_text(  # type: ignore[misc]
                json.dumps({"format_version": version, "step": 2})
            ),
            "its manifest can't be read: it has no checksum of its own",
        )
        for version in (2, 3)
    },
    "two seals": (
        lambda saved: edit_manifest(saved, note={"manifest_sha256": BLANK}),
        "its manifest can't be read: it has no checksum of its own",
    ),
    "edited manifest": (
        lambda saved: (saved.path / MANIFEST).write_text(
            (saved.path / MANIFEST).read_text().replace('"step": 2', '"step": 3')
        ),
        "its manifest can't be read: it has changed since it was written",
    ),
    "format zero": (
        lambda saved: edit_manifest(saved, format_version=0),
        "format version 0 is not known to this release",
    ),
    "format in words": (
        lambda saved: edit_manifest(saved, format_version="two"),
        "format version two is not known to this release",
    ),
    "no format": (
        lambda saved: (saved.path / MANIFEST).write_text(seal({"step": 2, "files": {}})),
        "its manifest can't be read: 'format_version'",
    ),
    "files is a list": (lambda saved: edit_manifest(saved, files=["a"]), "its manifest can't be read"),
    "files is a number": (lambda saved: edit_manifest(saved, files=3), "its manifest can't be read"),
    "no size": (
        lambda saved: edit_manifest(saved, files={"state.json": {}}),
        "its manifest can't be read: 'bytes'",
    ),
    "no files": (lambda saved: edit_manifest(saved, files={}), "its manifest names no files"),
    "other step": (lambda saved: edit_manifest(saved, step=7), "it holds step 7"),
    "10,000 files": (
        lambda saved: edit_manifest(saved, files={f"f{number}.x": {"bytes": 0} for number in range(10_000)}),
        "its manifest names 10000 files",
    ),
    **{
        f"names {name!r}": (
            lambda saved, name=name: edit_manifest(saved, files={name: OUTSIDE}),  # type: ignore[misc]
            f"its manifest names a file outside of it: {name}",
        )
        for name in (
            "../x",
            "../../config.yaml",
            "/etc/hostname",
            "/dev/zero",
            "..",
            ".",
            "",
            "folder/x.bin",
            "..\\x",
            "C:\\x.bin",
            "c:x.bin",
            ".hidden",
            "x",
            "x.bin\n",
            "x\x00.bin",
        )
    },
    "a folder": (
        lambda saved: make_folder_of(saved, "state.json"),
        "state.json is no plain file",
    ),
    "the manifest is a folder": (
        lambda saved: make_folder_of(saved, MANIFEST),
        "manifest.json is no plain file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_set_aside_and_the_one_before_it_wins(store: CheckpointStore, damage: str) -> None:
    older = write_step(store, 1)
    newer = write_step(store, 2)
    break_it, told = DAMAGES[damage]
    break_it(newer)
    fault = find_fault(newer)
    assert fault is not None
    assert fault.kind == "broken"
    assert fault.text.startswith(told)
    told_events = Told()
    assert newest(store, told_events) == older
    message = f"step-00000002 does not verify ({fault.text}); set aside as broken-step-00000002"
    assert told_events == [("checkpoint_passed_over", message)]
    assert names(store.folder) == ["broken-step-00000002", "step-00000001"]
    assert newest(store) == older


@NEEDS_LINKS
@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST])
def test_a_link_is_not_followed_also_where_it_leads_to_the_right_bytes(
    store: CheckpointStore, tmp_path: Path, name: str
) -> None:
    saved = write_step(store, 1)
    (saved.path / name).rename(tmp_path / name)
    (saved.path / name).symlink_to(tmp_path / name)
    assert find_fault(saved) == Fault("broken", f"{name} is no plain file")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["state.json", MANIFEST])
def test_a_pipe_and_a_device_are_not_read(store: CheckpointStore, name: str, kind: str) -> None:
    path = write_step(store, 1).path / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        try:
            os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("making a device needs root")
    fault = find_fault(store.all()[0])
    assert fault == Fault("broken", f"{name} is no plain file")


@pytest.mark.usefixtures("unsynced")
def test_any_changed_byte_of_a_manifest_is_found(store: CheckpointStore) -> None:
    saved = write_step(store, 7, accuracy=0.5)
    whole = (saved.path / MANIFEST).read_bytes()
    for place in range(len(whole)):
        for bits in (0x01, 0x20, 0xFF):
            flipped = bytearray(whole)
            flipped[place] ^= bits
            (saved.path / MANIFEST).write_bytes(flipped)
            fault = find_fault(saved)
            assert fault is not None, f"byte {place}: {flipped!r}"
            assert fault.kind == "broken"


@pytest.mark.usefixtures("unsynced")
def test_a_manifest_that_is_cut_anywhere_is_found(store: CheckpointStore) -> None:
    saved = write_step(store, 7)
    whole = (saved.path / MANIFEST).read_bytes()
    for length in range(len(whole)):
        (saved.path / MANIFEST).write_bytes(whole[:length])
        fault = find_fault(saved)
        assert fault is not None
        assert fault.kind == "broken"


def test_checkpoints_of_the_first_release_still_verify(store: CheckpointStore) -> None:
    saved = write_step(store, 1)
    as_version_1(saved)
    assert newest(store) == saved
    assert best_of([saved]) is None
    change_weights(saved)
    assert find_fault(saved) == Fault("broken", "model.safetensors has changed since it was written")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such modes of files")
def test_a_manifest_that_may_not_be_read_is_unreadable_and_not_broken(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_step(store, 1)

    def refuse(path: Path, largest_bytes: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifest_module, "read_limited", refuse)
    assert find_fault(saved) == Fault("unreadable", "manifest.json can't be read: Permission denied")


def test_a_checkpoint_without_an_identity_is_foreign_too(store: CheckpointStore) -> None:
    fault = find_fault(write_step(store, 1, identity={}), IDENTITY)
    assert fault is not None
    assert fault.kind == "foreign"
