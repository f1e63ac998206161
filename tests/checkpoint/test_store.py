from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from lowmem_seq import files
from lowmem_seq.checkpoint import store as module
from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint, Fault, find_fault, read_manifest
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.disk import is_trouble
from lowmem_seq.files import (
    REMOVED_MARK,
    TEMPORARY_MARK,
    is_temporary,
    read_json,
    sha256_of,
    sync_written,
    temporary_beside,
)
from tests.builders import names
from tests.checkpoint.builders import flip_a_bit
from tests.checkpoint.stores import (
    IDENTITY,
    change_weights,
    folder_of,
    ignore,
    newest,
    refuse_to_read,
    seal,
    steps_of,
    unname,
    write_step,
    writer_of,
    writers_of,
)
from tests.disks import RefusingDisk, UnsyncedDisk


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
