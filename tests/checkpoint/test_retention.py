from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq import files
from lowmem_seq.checkpoint.manifest import MANIFEST
from lowmem_seq.checkpoint.store import KEPT_BROKEN, CheckpointStore, Retention, best_of
from lowmem_seq.files import REMOVED_MARK, is_temporary, temporary_beside
from tests.builders import names
from tests.checkpoint.stores import (
    as_version_1,
    change_weights,
    edit_manifest,
    folder_of,
    ignore,
    newest,
    steps_of,
    unname,
    write_step,
)
from tests.disks import RefusingDisk, UnsyncedDisk

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
