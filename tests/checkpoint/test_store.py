from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq import files
from lowmem_seq.checkpoint import manifest as manifest_module
from lowmem_seq.checkpoint import store as module
from lowmem_seq.checkpoint.manifest import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST,
    Checkpoint,
    Fault,
    find_fault,
    read_manifest,
)
from lowmem_seq.checkpoint.store import KEPT_BROKEN, CheckpointStore, Retention, Tell, best_of
from lowmem_seq.disk import is_trouble
from lowmem_seq.errors import NoCheckpointError, UsageError
from lowmem_seq.files import (
    REMOVED_MARK,
    TEMPORARY_MARK,
    is_temporary,
    read_json,
    sha256_of,
    sync_written,
    temporary_beside,
)
from tests.builders import NEEDS_LINKS, names
from tests.checkpoint.builders import flip_a_bit
from tests.disks import RefusingDisk, UnsyncedDisk

IDENTITY = {"experiment_sha256": "e" * 64, "data_fingerprint": "d" * 64}
BLANK = "0" * 64


def writer_of(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def writers_of(step: int, version: str = "") -> dict[str, Callable[[Path], None]]:
    """Two small files that tell the step."""
    return {
        "model.safetensors": writer_of(f"weights of {step}{version}".encode()),
        "state.json": writer_of(json.dumps({"step": step}).encode()),
    }


def write_step(
    store: CheckpointStore,
    step: int,
    accuracy: float | None = None,
    identity: Mapping[str, str] = IDENTITY,
    version: str = "",
) -> Checkpoint:
    return store.save(step, writers_of(step, version), identity, {"val_accuracy": accuracy})


def refuse_complaints(event: str, message: str) -> None:
    raise AssertionError(f"nothing was to be told: {event}: {message}")


def ignore(event: str, message: str) -> None:
    pass


class Told(list[tuple[str, str]]):
    """Hears what is told of checkpoints, the event and its message."""

    def __call__(self, event: str, message: str) -> None:
        self.append((event, message))


def newest(store: CheckpointStore, tell: Tell = refuse_complaints) -> Checkpoint | None:
    return store.newest_valid(IDENTITY, tell)


def folder_of(step: int) -> str:
    return f"step-{step:08d}"


def steps_of(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in store.all()]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", Retention(newest=2))


@pytest.fixture
def unsynced() -> Iterator[None]:
    with files.using(UnsyncedDisk()):
        yield


def seal(manifest: Mapping[str, Any]) -> str:
    """A manifest's text as docs/concepts/checkpoints.md says: its checksum is that of the text with 64 zeros."""
    text = json.dumps({**manifest, "manifest_sha256": BLANK}, indent=2) + "\n"
    return text.replace(f'"manifest_sha256": "{BLANK}"', f'"manifest_sha256": "{sha256_of_text(text)}"')


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def edit_manifest(checkpoint: Checkpoint, **changes: Any) -> None:
    """Change a manifest as somebody would who knows how its checksum is made."""
    manifest = {**read_json(checkpoint.path / MANIFEST), **changes}
    (checkpoint.path / MANIFEST).write_text(seal(manifest))


def change_weights(checkpoint: Checkpoint) -> None:
    flip_a_bit(checkpoint.path / "model.safetensors")


def empty(checkpoint: Checkpoint) -> None:
    for path in checkpoint.path.iterdir():
        path.unlink()


def make_folder_of(checkpoint: Checkpoint, name: str) -> None:
    (checkpoint.path / name).unlink()
    (checkpoint.path / name).mkdir()


# what is written


def test_where_nothing_was_ever_saved_there_is_none(store: CheckpointStore) -> None:
    assert store.all() == []
    assert newest(store) is None
    store.folder.mkdir()
    assert newest(store) is None


def test_a_checkpoint_is_a_folder_with_a_manifest_of_its_files_and_of_itself(store: CheckpointStore) -> None:
    metrics = {"val_accuracy": 0.5, "val_loss": None}
    saved = store.save(200, writers_of(200), IDENTITY, metrics)
    assert saved == Checkpoint(store.folder / "step-00000200", 200)
    assert names(saved.path) == ["manifest.json", "model.safetensors", "state.json"]
    manifest = {
        "format_version": 2,
        "step": 200,
        **IDENTITY,
        "metrics": metrics,
        "files": {
            name: {"bytes": (saved.path / name).stat().st_size, "sha256": sha256_of(saved.path / name)}
            for name in ("model.safetensors", "state.json")
        },
    }
    assert (saved.path / MANIFEST).read_text() == seal(manifest)
    assert read_manifest(saved) == read_json(saved.path / MANIFEST)
    assert find_fault(saved) is None
    assert newest(store) == saved


def test_files_are_synced_before_the_manifest_and_all_before_the_name_and_old_ones_go_last(
    store: CheckpointStore,
) -> None:
    write_step(store, 1)
    write_step(store, 2)
    disk = RefusingDisk()
    with files.using(disk):
        write_step(store, 3)
    assert disk.asked == [
        "make folder step-00000003~",
        "sync file step-00000003~/model.safetensors",
        "sync file step-00000003~/state.json",
        "sync file step-00000003~/manifest.json~",
        "rename step-00000003~/manifest.json~ to step-00000003~/manifest.json",
        "sync folder step-00000003~",
        "sync folder step-00000003~",
        "rename step-00000003~ to step-00000003",
        "sync folder checkpoints",
        "rename step-00000001 to step-00000001!",
        "sync folder checkpoints",
        "remove tree step-00000001!",
    ]


def test_nothing_is_deleted_before_its_successor_verifies(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_step(store, 1)
    write_step(store, 2)
    seen: list[list[str]] = []

    def fault(checkpoint: Checkpoint) -> Fault:
        seen.append(names(store.folder))
        return Fault("broken", "the disk lies")

    monkeypatch.setattr(module, "find_fault", fault)
    with pytest.raises(OSError, match="what was written reads back otherwise: the disk lies") as caught:
        write_step(store, 3)
    assert caught.value.errno == errno.EIO
    assert [name.partition(TEMPORARY_MARK)[0] for name in seen[0]] == [folder_of(1), folder_of(2), folder_of(3)]
    assert is_temporary(store.folder / seen[0][2])
    assert len(seen) == 1
    assert names(store.folder) == [folder_of(1), folder_of(2)]


def test_a_checkpoint_that_can_not_be_read_back_is_the_disk_s_refusal_and_deletes_nothing(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_step(store, 1)
    write_step(store, 2)
    monkeypatch.setattr(module, "find_fault", lambda checkpoint: Fault("unreadable", "state.json can't be read"))
    with pytest.raises(OSError, match=r"state\.json can't be read") as caught:
        write_step(store, 3)
    assert caught.value.errno == errno.EIO
    monkeypatch.undo()
    assert names(store.folder) == [folder_of(1), folder_of(2)]
    write_step(store, 3)
    assert names(store.folder) == [folder_of(2), folder_of(3)]


def test_a_checkpoint_is_not_replaced_by_one_that_reads_back_otherwise(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_step(store, 2, version=" first")

    def write_wrongly(path: Path) -> None:
        sync_written(path)
        if path.name == "state.json":  # after the weights were hashed
            flip_a_bit(path.with_name("model.safetensors"))

    monkeypatch.setattr(module, "sync_written", write_wrongly)
    with pytest.raises(OSError, match=r"reads back otherwise: model\.safetensors has changed") as caught:
        write_step(store, 2, version=" second")
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(saved.path))
    assert names(store.folder) == [folder_of(2)]
    assert (saved.path / "model.safetensors").read_bytes() == b"weights of 2 first"
    assert newest(store) == saved


def test_a_save_makes_its_own_folder_and_never_the_run_s(tmp_path: Path) -> None:
    """As where a disk was pulled out, and its mount point is an empty folder of another one."""
    (tmp_path / "run").mkdir()
    store = CheckpointStore(tmp_path / "run" / "checkpoints", Retention(newest=2))
    write_step(store, 1)
    (tmp_path / "run").rename(tmp_path / "pulled out")
    written: list[Path] = []
    with pytest.raises(OSError, match="the run folder is gone") as caught:
        store.save(2, {"a.b": written.append}, IDENTITY)
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, str(tmp_path / "run"))
    assert is_trouble(caught.value)
    assert written == []
    assert names(tmp_path) == ["pulled out"]
    (tmp_path / "pulled out").rename(tmp_path / "run")
    write_step(store, 2)
    assert steps_of(store) == [1, 2]


def test_a_disk_that_is_pulled_out_in_the_middle_of_a_save_is_trouble(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    store = CheckpointStore(tmp_path / "run" / "checkpoints", Retention(newest=2))
    write_step(store, 1)

    def pull_out(path: Path) -> None:
        (tmp_path / "run").rename(tmp_path / "pulled out")
        path.write_bytes(b"half")

    with pytest.raises(OSError, match="the run folder is gone") as caught:
        store.save(2, {"a.b": pull_out}, IDENTITY)
    assert caught.value.errno == errno.ENODEV
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert names(tmp_path) == ["pulled out"]
    (tmp_path / "pulled out").rename(tmp_path / "run")
    write_step(store, 2)
    assert names(store.folder) == [folder_of(1), folder_of(2)]


def test_a_save_that_fails_midway_leaves_the_old_ones(store: CheckpointStore) -> None:
    write_step(store, 1)
    write_step(store, 2)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.save(3, {"a.b": writer_of(b"a"), "b.c": fail}, IDENTITY)
    assert names(store.folder) == ["step-00000001", "step-00000002"]
    assert newest(store) == Checkpoint(store.folder / folder_of(2), 2)


def test_with_too_little_room_nothing_is_begun(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def free_bytes(folder: Path) -> int:
        asked.append(folder)
        return 999_999

    monkeypatch.setattr(module, "free_bytes", free_bytes)
    written: list[Path] = []
    store.save(1, writers_of(1), IDENTITY, expected_bytes=999_999)
    with pytest.raises(OSError, match=r"1\.00 MB are needed, 1\.00 MB are free") as caught:
        store.save(2, {"a.b": written.append}, IDENTITY, expected_bytes=1_000_000)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(store.folder)
    assert asked == [store.folder] * 2
    assert written == []
    assert names(store.folder) == [folder_of(1)]


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    write_step(store, 4)
    first = write_step(store, 5)
    assert write_step(store, 5, version=" again") == first
    assert (first.path / "model.safetensors").read_bytes() == b"weights of 5 again"
    assert names(store.folder) == [folder_of(4), folder_of(5)]
    assert newest(store) == first


def test_saving_a_step_again_mends_a_broken_one(store: CheckpointStore) -> None:
    change_weights(write_step(store, 5))
    write_step(store, 5)
    assert newest(store) == Checkpoint(store.folder / folder_of(5), 5)


SAVES: dict[str, tuple[list[int], int]] = {
    "the first": ([], 1),
    "one that deletes another": ([1, 2], 3),
    "one of a step that is there": ([1, 2], 2),
}


@pytest.mark.parametrize("to_the_end", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("kind", SAVES)
def test_wherever_the_disk_refuses_a_save_the_checkpoint_before_it_or_its_own_is_found(
    tmp_path: Path, kind: str, to_the_end: bool
) -> None:
    before, step = SAVES[kind]

    def attempt(refuse_at: int | None) -> tuple[CheckpointStore, int, bool]:
        store = CheckpointStore(tmp_path / f"refused at {refuse_at}", Retention(newest=2))
        with files.using(UnsyncedDisk()):
            for old in before:
                write_step(store, old, version=" before")
        disk = RefusingDisk(refuse_at, to_the_end)
        try:
            with files.using(disk):
                write_step(store, step, version=" after")
        except OSError:
            return store, len(disk.asked), False
        return store, len(disk.asked), True

    old = f"weights of {before[-1]} before" if before else None
    new = f"weights of {step} after"
    requests = attempt(None)[1]
    for number in range(requests):
        store, _, done = attempt(number)
        found = newest(store, ignore)
        weights = None if found is None else (found.path / "model.safetensors").read_text()
        assert weights in ({new} if done else {old, new})
        assert not any(is_temporary(path) for path in store.folder.parent.rglob("*"))
        write_step(store, step, version=" after")
        assert steps_of(store) == sorted({*before, step})[-2:]
        shutil.rmtree(store.folder)


# which one is found


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=8, unique=True), st.integers(1, 4))
@pytest.mark.usefixtures("unsynced")
def test_the_newest_stay_and_the_newest_of_all_is_found(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store") / "checkpoints", Retention(keep))
    for step in sorted(steps):
        write_step(store, step)
    assert steps_of(store) == sorted(steps)[-keep:]
    found = newest(store)
    assert found is not None
    assert found.step == max(steps)


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


def as_version_1(checkpoint: Checkpoint) -> None:
    """Write the manifest as the first release did: without a checksum of its own, without metrics."""
    manifest = read_json(checkpoint.path / MANIFEST)
    del manifest["manifest_sha256"], manifest["metrics"]
    text = json.dumps({**manifest, "format_version": 1}, indent=2) + "\n"
    (checkpoint.path / MANIFEST).write_text(text)


def test_checkpoints_of_the_first_release_still_verify(store: CheckpointStore) -> None:
    saved = write_step(store, 1)
    as_version_1(saved)
    assert newest(store) == saved
    assert best_of([saved]) is None
    change_weights(saved)
    assert find_fault(saved) == Fault("broken", "model.safetensors has changed since it was written")


def test_a_checkpoint_of_a_later_release_is_refused_and_nothing_is_moved(store: CheckpointStore) -> None:
    for step in (1, 2):
        write_step(store, step)
    edit_manifest(store.all()[1], format_version=3)
    store.save(3, writers_of(3), IDENTITY)
    change_weights(store.all()[-1])
    before = names(store.folder)
    later = store.folder / folder_of(2)
    assert find_fault(Checkpoint(later, 2)) == Fault("newer", "format version 3 is not known to this release")
    with pytest.raises(NoCheckpointError) as caught:
        newest(store)
    assert caught.value.message == (
        f"{later} was written by a later release: format version 3 is not known to this release."
    )
    assert caught.value.hint == "pip install --upgrade lowmem-seq"
    assert names(store.folder) == before


def test_where_none_verifies_it_is_an_error_and_nothing_is_moved(store: CheckpointStore) -> None:
    for step in (1, 2):
        change_weights(write_step(store, step))
    for _ in range(2):
        with pytest.raises(NoCheckpointError) as caught:
            newest(store)
        assert caught.value.exit_code == 6
        assert caught.value.message == (
            f"no checkpoint in {store.folder} verifies (step-00000002: model.safetensors has changed since it was "
            "written; step-00000001: model.safetensors has changed since it was written)."
        )
        assert "lowmem-seq train" in caught.value.hint
        assert names(store.folder) == [folder_of(1), folder_of(2)]


@pytest.mark.parametrize("prefix", ["broken-", "unread-", "foreign-"])
def test_where_only_those_set_aside_are_left_the_run_does_not_start_from_scratch(
    store: CheckpointStore, prefix: str
) -> None:
    for step in (1, 2):
        path = write_step(store, step).path
        path.rename(path.with_name(f"{prefix}{path.name}"))
    with pytest.raises(NoCheckpointError, match=rf"verifies \({prefix}step-00000001; {prefix}step-00000002\)"):
        newest(store)


def test_a_checkpoint_put_back_from_a_copy_is_taken(store: CheckpointStore, tmp_path: Path) -> None:
    saved = write_step(store, 2)
    shutil.copytree(saved.path, tmp_path / "copy")
    change_weights(saved)
    with pytest.raises(NoCheckpointError):
        newest(store)
    shutil.rmtree(saved.path)
    shutil.copytree(tmp_path / "copy", saved.path)
    assert newest(store) == saved


def refuse_to_read(monkeypatch: pytest.MonkeyPatch, code: int, *folders: str) -> None:
    """The disk doesn't let the weights in these folders be read."""

    def read(path: Path) -> str:
        if path.parent.name.startswith(folders) and path.name == "model.safetensors":
            raise OSError(code, os.strerror(code), str(path))
        return sha256_of(path)

    monkeypatch.setattr(manifest_module, "sha256_of", read)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_checkpoint_that_can_not_be_read_now_is_passed_over(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    older, newer = write_step(store, 1), write_step(store, 2)
    refuse_to_read(monkeypatch, code, folder_of(2))
    fault = Fault("unreadable", f"model.safetensors can't be read: {os.strerror(code)}")
    assert find_fault(newer) == fault
    told = Told()
    assert newest(store, told) == older
    message = f"step-00000002 does not verify ({fault.text}); set aside as unread-step-00000002"
    assert told == [("checkpoint_passed_over", message)]
    assert names(store.folder) == [folder_of(1), "unread-step-00000002"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_while_none_can_be_read_nothing_is_moved_and_the_next_attempt_works(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write_step(store, 1)
    newer = write_step(store, 2)
    before = names(store.folder)
    refuse_to_read(monkeypatch, code, "step-")
    for _ in range(2):
        with pytest.raises(NoCheckpointError, match=r"model\.safetensors can't be read: "):
            newest(store)
        assert names(store.folder) == before
    monkeypatch.undo()
    assert newest(store) == newer


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such modes of files")
def test_a_manifest_that_may_not_be_read_is_unreadable_and_not_broken(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_step(store, 1)

    def refuse(path: Path, largest_bytes: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifest_module, "read_limited", refuse)
    assert find_fault(saved) == Fault("unreadable", "manifest.json can't be read: Permission denied")


FOREIGN = {**IDENTITY, "experiment_sha256": "f" * 64}


def test_checkpoints_of_another_experiment_are_refused_and_stay(store: CheckpointStore) -> None:
    write_step(store, 1, identity={"experiment_sha256": "f" * 64, "data_fingerprint": "f" * 64})
    write_step(store, 2, identity=FOREIGN)
    with pytest.raises(UsageError) as caught:
        newest(store)
    assert caught.value.exit_code == 2
    assert caught.value.message == (
        f"{store.folder / folder_of(2)} belongs to another experiment (other experiment_sha256)."
    )
    assert "restore the run's config.yaml" in caught.value.hint
    assert steps_of(store) == [1, 2]
    both = find_fault(store.all()[0], IDENTITY)
    assert both == Fault("foreign", "belongs to another experiment (other experiment_sha256 and data_fingerprint)")


def test_a_checkpoint_without_an_identity_is_foreign_too(store: CheckpointStore) -> None:
    fault = find_fault(write_step(store, 1, identity={}), IDENTITY)
    assert fault is not None
    assert fault.kind == "foreign"


def test_a_foreign_checkpoint_is_passed_over_for_one_of_this_experiment(store: CheckpointStore) -> None:
    ours = write_step(store, 1)
    write_step(store, 2, identity=FOREIGN)
    told = Told()
    assert newest(store, told) == ours
    assert told == [
        (
            "checkpoint_passed_over",
            "step-00000002 does not verify (belongs to another experiment (other experiment_sha256)); "
            "set aside as foreign-step-00000002",
        )
    ]
    assert names(store.folder) == ["foreign-step-00000002", "step-00000001"]


@pytest.mark.usefixtures("unsynced")
def test_what_was_set_aside_and_may_be_whole_is_never_deleted(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write_step(store, 1)
    for version in (" first", " second", " third"):
        write_step(store, 2, identity=FOREIGN, version=version)
        assert newest(store, ignore) == older
        write_step(store, 3, version=version)
        with monkeypatch.context() as patch:
            refuse_to_read(patch, errno.EIO, folder_of(3))
            assert newest(store, ignore) == older
    for step in range(4, 9):
        write_step(store, step)
    assert names(store.folder) == [
        "foreign-step-00000002",
        "foreign-step-00000002-2",
        "foreign-step-00000002-3",
        folder_of(7),
        folder_of(8),
        "unread-step-00000003",
        "unread-step-00000003-2",
        "unread-step-00000003-3",
    ]
    for number, version in (("", " first"), ("-2", " second"), ("-3", " third")):
        for kind, step in (("foreign", 2), ("unread", 3)):
            weights = store.folder / f"{kind}-{folder_of(step)}{number}" / "model.safetensors"
            assert weights.read_text() == f"weights of {step}{version}"


def test_one_that_was_set_aside_and_can_be_read_again_counts_when_it_is_renamed_back(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = write_step(store, 1), write_step(store, 2)
    with monkeypatch.context() as patch:
        refuse_to_read(patch, errno.EIO, folder_of(2))
        assert newest(store, ignore) == older
    (store.folder / "unread-step-00000002").rename(newer.path)
    assert newest(store) == newer


# what a kill leaves


def test_leftovers_of_a_kill_are_removed_and_strangers_stay(store: CheckpointStore) -> None:
    saved = write_step(store, 1)
    leftover = store.folder / "step-00000002.partial-0123abcd"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (store.folder / "broken-step-00000003.partial-0123abcd").mkdir()
    (store.folder / "step-00000004.partial-0123abcd").write_text("a file")
    strangers = ["notes", "step-000000005", "step-7", "step-00000009"]
    for name in strangers[:-1]:
        (store.folder / name).mkdir()
    (store.folder / strangers[-1]).write_text("a file")
    assert newest(store) == saved
    assert names(store.folder) == sorted([*strangers, "step-00000001"])
    assert store.all() == [saved]


@NEEDS_LINKS
def test_links_are_no_checkpoints_and_what_they_lead_to_stays(store: CheckpointStore, tmp_path: Path) -> None:
    saved = write_step(store, 1)
    shutil.copytree(saved.path, tmp_path / "elsewhere")
    for name in (folder_of(2), f"{folder_of(3)}.partial-0123abcd"):
        (store.folder / name).symlink_to(tmp_path / "elsewhere")
    assert newest(store) == saved
    assert names(store.folder) == [folder_of(1), folder_of(2)]
    assert len(names(tmp_path / "elsewhere")) == 3


def test_steps_are_ordered_as_numbers_however_long(store: CheckpointStore) -> None:
    for step in (99_999_999, 100_000_000, 999):
        write_step(store, step)
    assert steps_of(store) == [99_999_999, 100_000_000]


def unname(checkpoint: Checkpoint, mark: str = TEMPORARY_MARK) -> Path:
    """Give a checkpoint a temporary name, as a kill before or between two renames leaves it."""
    return checkpoint.path.rename(temporary_beside(checkpoint.path, mark))


def test_a_whole_checkpoint_that_had_not_got_its_name_yet_gets_it(store: CheckpointStore) -> None:
    write_step(store, 1)
    newer = write_step(store, 2)
    unname(newer)
    told = Told()
    assert newest(store, told) == newer
    assert told == [("checkpoint_recovered", "step-00000002 was whole and had not got its name yet: recovered")]
    assert names(store.folder) == [folder_of(1), folder_of(2)]


def test_a_kill_between_the_renames_of_a_replacement_loses_nothing(store: CheckpointStore) -> None:
    for version in (" old", " new"):
        saved = write_step(store, 2, version=version)
        unname(saved)
    told = Told()
    assert newest(store, told) == saved
    assert [event for event, _ in told] == ["checkpoint_recovered"]
    assert names(store.folder) == [folder_of(2)]
    assert (saved.path / "model.safetensors").read_text() in ("weights of 2 old", "weights of 2 new")


def test_of_two_leftovers_of_a_step_the_whole_one_is_taken(store: CheckpointStore) -> None:
    saved = write_step(store, 2)
    for part in ("model.safetensors", MANIFEST):
        shutil.copytree(saved.path, temporary_beside(saved.path), ignore=shutil.ignore_patterns(part))
    unname(saved)
    assert newest(store, ignore) == saved
    assert names(store.folder) == [folder_of(2)]


def test_a_leftover_gives_way_to_the_checkpoint_of_its_name(store: CheckpointStore) -> None:
    saved = write_step(store, 2)
    shutil.copytree(saved.path, temporary_beside(saved.path))
    assert newest(store) == saved
    assert names(store.folder) == [folder_of(2)]


def test_a_checkpoint_that_was_being_deleted_is_not_brought_back(store: CheckpointStore) -> None:
    doomed, kept = write_step(store, 1), write_step(store, 2)
    unname(doomed, REMOVED_MARK)
    assert newest(store) == kept
    assert names(store.folder) == [folder_of(2)]


def test_a_leftover_that_can_not_be_read_now_stays_for_the_next_attempt(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = write_step(store, 1), write_step(store, 2)
    leftover = unname(newer)
    refuse_to_read(monkeypatch, errno.EIO, leftover.name)
    assert newest(store) == older
    assert names(store.folder) == [folder_of(1), leftover.name]
    monkeypatch.undo()
    assert newest(store, ignore) == newer


# what a save finds of earlier ones


def leave_temporaries(store: CheckpointStore) -> None:
    """What saves leave that the disk did not let delete it: of every kind, and none of it is needed."""
    third, fourth = write_step(store, 3), write_step(store, 4)
    unname(third, REMOVED_MARK)
    shutil.copytree(fourth.path, temporary_beside(fourth.path))
    for number in range(2):
        half = temporary_beside(store.folder / folder_of(5 + number))
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"half")
    (store.folder / "broken-step-00000001.removed-0123abcd").mkdir()
    (store.folder / "notes.partial-0123abcd").write_text("half")


def test_a_save_deletes_what_earlier_ones_could_not(store: CheckpointStore) -> None:
    write_step(store, 2)
    leave_temporaries(store)
    write_step(store, 5)
    assert names(store.folder) == [folder_of(4), folder_of(5)]


def test_what_earlier_saves_left_goes_before_room_is_looked_for(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_step(store, 2)
    leave_temporaries(store)
    seen: list[list[str]] = []

    def free_bytes(folder: Path) -> int:
        seen.append(names(folder))
        return 0

    monkeypatch.setattr(module, "free_bytes", free_bytes)
    with pytest.raises(OSError, match="are needed"):
        store.save(5, writers_of(5), IDENTITY, expected_bytes=1)
    assert seen == [[folder_of(4)]]


class KeepingDisk(UnsyncedDisk):
    """Deletes no folder."""

    def remove_tree(self, folder: Path) -> None:
        raise OSError(errno.EIO, "error", str(folder))


def test_a_broken_one_that_could_not_be_deleted_is_none_of_those_that_stay(store: CheckpointStore) -> None:
    write_step(store, 1)
    stay = ["broken-step-00000002", "broken-step-00000003"]
    for name in (*stay, "broken-step-00000009.removed-0123abcd"):
        (store.folder / name).mkdir()
    with files.using(KeepingDisk()):
        write_step(store, 4)
    assert names(store.folder) == [*stay, "broken-step-00000009.removed-0123abcd", folder_of(1), folder_of(4)]
    write_step(store, 5)
    assert names(store.folder) == [*stay, folder_of(4), folder_of(5)]


def test_while_the_disk_deletes_nothing_a_save_succeeds_and_later_ones_delete(store: CheckpointStore) -> None:
    with files.using(KeepingDisk()):
        for step in (1, 2, 3, 4):
            write_step(store, step)
            write_step(store, step, version=" again")
    assert [name for name in names(store.folder) if not is_temporary(Path(name))] == [folder_of(3), folder_of(4)]
    assert len(names(store.folder)) > 6
    write_step(store, 5)
    assert names(store.folder) == [folder_of(4), folder_of(5)]


def test_the_only_whole_checkpoint_stays_under_its_temporary_name_until_another_is_whole(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refused a save in its place twice: the new one's name, and to give the old one its name back."""
    only = unname(write_step(store, 2, version=" before"))
    seen: list[list[str]] = []

    def free_bytes(folder: Path) -> int:
        seen.append(names(folder))
        return 0

    monkeypatch.setattr(module, "free_bytes", free_bytes)
    for _ in range(2):
        with pytest.raises(OSError, match="are needed"):
            store.save(2, writers_of(2), IDENTITY, expected_bytes=1)
    assert seen == [[only.name]] * 2
    monkeypatch.undo()
    write_step(store, 2, version=" after")
    assert names(store.folder) == [folder_of(2)]
    assert (store.folder / folder_of(2) / "model.safetensors").read_text() == "weights of 2 after"


def test_of_several_whole_ones_without_a_name_the_newest_stays_until_another_is_whole(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    unnamed = {}
    with files.using(UnsyncedDisk()):
        for step in (5, 6, 7):
            write_step(store, step).path.rename(store.folder / str(step))
        for step in (5, 6, 7):
            unnamed[step] = (store.folder / str(step)).rename(temporary_beside(store.folder / folder_of(step)))
    refuse_to_read(monkeypatch, errno.EIO, folder_of(7))
    with pytest.raises(OSError, match="are needed"):
        store.save(8, writers_of(8), IDENTITY, expected_bytes=10**18)
    assert names(store.folder) == [unnamed[6].name]


# what stays


Saved = tuple[int, float | None]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=1),
    st.integers(1, 3),
    st.booleans(),
    st.none() | st.integers(2, 6),
)
def test_the_newest_the_best_and_every_so_many_steps_stay(
    tmp_path_factory: pytest.TempPathFactory,
    saves: list[tuple[int, float | None]],
    newest_kept: int,
    best: bool,
    every_steps: int | None,
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"), Retention(newest_kept, best, every_steps))
    kept: list[Saved] = []
    step = 0
    with files.using(UnsyncedDisk()):
        for distance, accuracy in saves:
            step += distance
            write_step(store, step, accuracy)
            kept.append((step, accuracy))
            wanted = {one for one, _ in kept[-newest_kept:]}
            if every_steps is not None:
                wanted |= {one for one, _ in kept if one % every_steps == 0}
            rated = [(value, one) for one, value in kept if value is not None]
            if best and rated:
                wanted.add(max(rated)[1])
            kept = [one for one in kept if one[0] in wanted]
            assert steps_of(store) == sorted(wanted)


@pytest.mark.usefixtures("unsynced")
def test_the_best_is_the_newest_of_the_most_accurate_whose_manifest_can_be_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, Retention(newest=9))
    assert best_of([]) is None
    accuracies = [0.5, 0.75, 0.75, None, 0.25, 1.0, 1.0]
    saved = [write_step(store, step, accuracy) for step, accuracy in enumerate(accuracies)]
    as_version_1(saved[5])
    (saved[6].path / MANIFEST).unlink()
    assert best_of(saved) == saved[2]
    edit_manifest(saved[4], metrics=["val_accuracy"])
    edit_manifest(saved[3], metrics={"val_accuracy": "1.0"})
    assert best_of(saved[3:5]) is None


@pytest.mark.usefixtures("unsynced")
def test_two_broken_checkpoints_stay_for_a_look_at_them(store: CheckpointStore) -> None:
    write_step(store, 1)
    for step in range(2, 7):
        change_weights(write_step(store, step))
        found = newest(store, ignore)
        assert found is not None
        assert found.step == 1
    write_step(store, 7)
    assert KEPT_BROKEN == 2
    assert names(store.folder) == ["broken-step-00000005", "broken-step-00000006", folder_of(1), folder_of(7)]


@pytest.mark.usefixtures("unsynced")
def test_the_same_step_can_break_twice(store: CheckpointStore) -> None:
    older = write_step(store, 1)
    for version in (" first", " second"):
        change_weights(write_step(store, 2, version=version))
        assert newest(store, ignore) == older
    assert names(store.folder) == ["broken-step-00000002", folder_of(1)]
    broken = (store.folder / "broken-step-00000002" / "model.safetensors").read_bytes()
    assert len(broken) == len(b"weights of 2 second")


def leave_half(store: CheckpointStore, step: int) -> None:
    folder = temporary_beside(store.folder / folder_of(step + 1))
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))


def leave_whole(store: CheckpointStore, step: int) -> None:
    unname(write_step(store, step + 1))


def leave_a_file(store: CheckpointStore, step: int) -> None:
    temporary_beside(store.folder / "notes").write_bytes(bytes(1000))


def leave_what_was_to_be_pruned(store: CheckpointStore, step: int) -> None:
    unname(store.all()[0], REMOVED_MARK)


def break_the_newest(store: CheckpointStore, step: int) -> None:
    change_weights(store.all()[-1])


def refuse_the_next_save(store: CheckpointStore, step: int) -> None:
    with pytest.raises(OSError, match="error"), files.using(RefusingDisk(step % 9, to_the_end=True)):
        write_step(store, step + 1)


def nothing_happens(store: CheckpointStore, step: int) -> None:
    pass


DISTURBANCES = [
    leave_half,
    leave_whole,
    leave_a_file,
    leave_what_was_to_be_pruned,
    break_the_newest,
    refuse_the_next_save,
    nothing_happens,
]


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("unsynced")
def test_over_hundreds_of_disturbed_restarts_the_disk_use_stays_bounded(tmp_path: Path) -> None:
    random = Random(3)
    retention = Retention(newest=2, best=True)
    step = 1
    write_step(CheckpointStore(tmp_path / "checkpoints", retention), step, accuracy=0.5)
    most = 0
    for _ in range(350):
        store = CheckpointStore(tmp_path / "checkpoints", retention)
        for _ in range(random.randrange(3)):
            step += 1
            write_step(store, step, random.choice([None, random.random()]))
            kept = steps_of(store)
            assert step in kept
            assert len(kept) <= 3
        disturb = random.choice(DISTURBANCES)
        if disturb in (break_the_newest, leave_what_was_to_be_pruned) and len(store.all()) == 1:
            continue
        expected = {step}
        if disturb in (leave_whole, refuse_the_next_save):
            expected.add(step + 1)
        if disturb is break_the_newest:
            expected = {store.all()[-2].step}
        disturb(store, step)
        most = max(most, bytes_in(store.folder))
        found = newest(store, ignore)
        assert found is not None
        assert found.step in expected
        assert not any(is_temporary(path) for path in store.folder.iterdir())
        step = found.step
    a_checkpoint = bytes_in(write_step(store, step + 1).path)
    assert 3 * a_checkpoint < most < 9 * a_checkpoint
