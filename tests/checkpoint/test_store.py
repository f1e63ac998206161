from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq.checkpoint import store as module
from lowmem_seq.checkpoint.store import MANIFEST, Checkpoint, CheckpointStore, find_fault
from lowmem_seq.errors import NoCheckpointError
from lowmem_seq.files import is_temporary, read_json, sha256_of, write_json

IDENTITY = {"experiment_sha256": "e" * 64, "data_fingerprint": "d" * 64}


def writer_of(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def write_step(store: CheckpointStore, step: int) -> Checkpoint:
    """A checkpoint with two small files that tell the step."""
    writers = {
        "model.safetensors": writer_of(b"weights of %d" % step),
        "state.json": writer_of(json.dumps({"step": step}).encode()),
    }
    return store.save(step, writers, IDENTITY)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse_complaints(fault: str) -> None:
    raise AssertionError(f"nothing was to be complained of: {fault}")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_where_nothing_was_ever_saved_there_is_none(store: CheckpointStore) -> None:
    assert store.all() == []
    assert store.newest_valid(refuse_complaints) is None
    store.folder.mkdir()
    assert store.newest_valid(refuse_complaints) is None


def test_a_checkpoint_is_a_folder_with_a_manifest_of_its_files(store: CheckpointStore) -> None:
    saved = write_step(store, 200)
    assert saved == Checkpoint(store.folder / "step-00000200", 200)
    assert names(saved.path) == ["manifest.json", "model.safetensors", "state.json"]
    manifest = read_json(saved.path / MANIFEST)
    assert manifest == {
        "format_version": 1,
        "step": 200,
        **IDENTITY,
        "files": {
            name: {"bytes": (saved.path / name).stat().st_size, "sha256": sha256_of(saved.path / name)}
            for name in ("model.safetensors", "state.json")
        },
    }
    assert find_fault(saved) is None
    assert store.newest_valid(refuse_complaints) == saved


def test_the_manifest_is_written_last(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[list[str]] = []

    def recorded(path: Path, value: object) -> None:
        there.append(names(path.parent))
        write_json(path, value)

    monkeypatch.setattr(module, "write_json", recorded)
    write_step(store, 1)
    assert there == [["model.safetensors", "state.json"]]


@settings(max_examples=10)  # every save is synced to the disk
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8, unique=True), st.integers(1, 4))
def test_the_newest_stay_and_the_newest_of_all_is_found(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store") / "checkpoints", keep)
    for step in sorted(steps):
        write_step(store, step)
    assert [checkpoint.step for checkpoint in store.all()] == sorted(steps)[-keep:]
    newest = store.newest_valid(refuse_complaints)
    assert newest is not None
    assert newest.step == max(steps)


def test_nothing_is_deleted_before_its_successor_verifies(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_step(store, 1)
    write_step(store, 2)
    seen: list[list[str]] = []

    def fault(checkpoint: Checkpoint) -> str:
        seen.append(names(store.folder))
        return "the disk lies"

    monkeypatch.setattr(module, "find_fault", fault)
    with pytest.raises(NoCheckpointError, match="the disk lies") as caught:
        write_step(store, 3)
    assert caught.value.hint == "check the disk"
    assert seen == [["step-00000001", "step-00000002", "step-00000003"]]
    assert names(store.folder) == seen[0]


def test_a_save_that_fails_midway_leaves_the_old_ones(store: CheckpointStore) -> None:
    write_step(store, 1)
    write_step(store, 2)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.save(3, {"a": writer_of(b"a"), "b": fail}, IDENTITY)
    assert names(store.folder) == ["step-00000001", "step-00000002"]
    newest = store.newest_valid(refuse_complaints)
    assert newest is not None
    assert newest.step == 2


def test_saving_a_step_twice_keeps_the_first(store: CheckpointStore) -> None:
    first = write_step(store, 5)
    before = read_json(first.path / MANIFEST)
    assert write_step(store, 5) == first
    assert read_json(first.path / MANIFEST) == before
    assert names(store.folder) == ["step-00000005"]


def edit_manifest(checkpoint: Checkpoint, **changes: Any) -> None:
    manifest = read_json(checkpoint.path / MANIFEST)
    write_json(checkpoint.path / MANIFEST, {**manifest, **changes})


def flip_a_bit(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


OUTSIDE = {"bytes": 1, "sha256": "0" * 64}
DAMAGES: dict[str, tuple[Callable[[Checkpoint], object], str]] = {
    "truncated": (
        lambda saved: (saved.path / "model.safetensors").write_bytes(b"weig"),
        "model.safetensors has 4 bytes, and 12 are expected",
    ),
    "grown": (
        lambda saved: (saved.path / "state.json").write_text("x" * 100),
        "state.json has 100 bytes, and 11 are expected",
    ),
    "flipped": (flip_a_bit, "model.safetensors has changed since it was written"),
    "deleted": (lambda saved: (saved.path / "state.json").unlink(), "state.json is missing"),
    "no manifest": (lambda saved: (saved.path / MANIFEST).unlink(), "manifest.json is missing"),
    "torn manifest": (lambda saved: (saved.path / MANIFEST).write_text('{"step"'), "its manifest can't be read"),
    "manifest of bytes": (lambda saved: (saved.path / MANIFEST).write_bytes(b"\xff"), "its manifest can't be read"),
    "manifest is a list": (lambda saved: (saved.path / MANIFEST).write_text("[]"), "its manifest can't be read"),
    "files is a list": (lambda saved: edit_manifest(saved, files=["a"]), "its manifest can't be read"),
    "no size": (lambda saved: edit_manifest(saved, files={"state.json": {}}), "its manifest can't be read"),
    "no files": (lambda saved: edit_manifest(saved, files={}), "its manifest names no files"),
    "later format": (
        lambda saved: edit_manifest(saved, format_version=2),
        "format version 2 is not known to this release",
    ),
    "other step": (lambda saved: edit_manifest(saved, step=7), "it holds step 7"),
    "path upwards": (
        lambda saved: edit_manifest(saved, files={"../../config.yaml": OUTSIDE}),
        "its manifest names a file outside of it: ../../config.yaml",
    ),
    "absolute path": (
        lambda saved: edit_manifest(saved, files={"/etc/hostname": OUTSIDE}),
        "its manifest names a file outside of it: /etc/hostname",
    ),
    "folder": (lambda saved: edit_manifest(saved, files={"..": OUTSIDE}), ".. has"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_set_aside_and_the_one_before_it_wins(store: CheckpointStore, damage: str) -> None:
    older = write_step(store, 1)
    newer = write_step(store, 2)
    break_it, told = DAMAGES[damage]
    break_it(newer)
    fault = find_fault(newer)
    assert fault is not None
    assert told in fault
    complaints: list[str] = []
    assert store.newest_valid(complaints.append) == older
    assert complaints == [f"checkpoint step-00000002 does not verify ({fault}); set aside as broken-step-00000002"]
    assert names(store.folder) == ["broken-step-00000002", "step-00000001"]
    assert store.newest_valid(refuse_complaints) == older


def test_where_none_verifies_it_is_an_error_and_stays_one(store: CheckpointStore) -> None:
    for step in (1, 2):
        flip_a_bit(write_step(store, step))
    complaints: list[str] = []
    with pytest.raises(NoCheckpointError) as caught:
        store.newest_valid(complaints.append)
    assert caught.value.exit_code == 6
    assert len(complaints) == 2
    for name in ("step-00000001: model.safetensors has changed", "step-00000002: model.safetensors has changed"):
        assert name in caught.value.message
    assert "lowmem-seq train" in caught.value.hint
    with pytest.raises(NoCheckpointError, match="broken-step-00000001, broken-step-00000002"):
        store.newest_valid(refuse_complaints)


def test_a_checkpoint_put_back_from_a_copy_is_taken(store: CheckpointStore, tmp_path: Path) -> None:
    saved = write_step(store, 2)
    shutil.copytree(saved.path, tmp_path / "copy")
    flip_a_bit(saved)
    with pytest.raises(NoCheckpointError):
        store.newest_valid(lambda fault: None)
    shutil.copytree(tmp_path / "copy", saved.path)
    assert store.newest_valid(refuse_complaints) == saved


def test_the_same_step_can_break_twice(store: CheckpointStore) -> None:
    write_step(store, 1)
    for _ in range(2):
        flip_a_bit(write_step(store, 2))
        newest = store.newest_valid(lambda fault: None)
        assert newest is not None
        assert newest.step == 1


def test_leftovers_of_a_kill_are_removed_and_strangers_stay(store: CheckpointStore) -> None:
    saved = write_step(store, 1)
    leftover = store.folder / "step-00000002.partial-0123abcd"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (store.folder / "notes").mkdir()
    (store.folder / "step-7").mkdir()
    (store.folder / "step-00000009").write_text("a file")
    assert is_temporary(leftover)
    assert store.newest_valid(refuse_complaints) == saved
    assert names(store.folder) == ["notes", "step-00000001", "step-00000009", "step-7"]
