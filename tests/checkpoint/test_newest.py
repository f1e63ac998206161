from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint, Fault, find_fault
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.errors import NoCheckpointError, UsageError
from lowmem_seq.files import REMOVED_MARK, temporary_beside
from tests.builders import NEEDS_LINKS, names
from tests.checkpoint.stores import (
    FOREIGN,
    IDENTITY,
    Told,
    change_weights,
    edit_manifest,
    folder_of,
    ignore,
    newest,
    refuse_to_read,
    steps_of,
    unname,
    write_step,
    writers_of,
)


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
