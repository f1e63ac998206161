from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_seq.checkpoint import manifest as manifest_module
from lowmem_seq.checkpoint import verification as module
from lowmem_seq.checkpoint.codec import write_tensors
from lowmem_seq.checkpoint.counters import LARGEST_COUNTERS_BYTES, read_counters
from lowmem_seq.checkpoint.header import TYPE_NAMES, Shapes, read_shapes
from lowmem_seq.checkpoint.manifest import Checkpoint, Fault, find_fault
from lowmem_seq.checkpoint.store import CheckpointStore
from lowmem_seq.checkpoint.verification import (
    Verdict,
    find_weights_fault,
    leftovers,
    resume_step,
    set_aside,
    verify_checkpoint,
    verify_checkpoints,
    weights_sha256_of,
)
from lowmem_seq.errors import NoCheckpointError, UsageError
from lowmem_seq.training.state import weights_sha256
from tests.checkpoint.builders import (
    MANY,
    Files,
    files_of,
    flip_a_bit,
    state_of,
    weights,
    write_checkpoint,
)

IDENTITY = {"experiment_sha256": "e" * 64, "data_fingerprint": "d" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def verdicts_on(folder: Path, with_leftovers: bool = True) -> list[Verdict]:
    return verify_checkpoints(folder, IDENTITY, with_leftovers)


def faults_in(folder: Path) -> dict[int, str | None]:
    return {verdict.checkpoint.step: verdict.fault for verdict in verdicts_on(folder)}


def changed(change: Callable[[Files], object], average: bool = False) -> Files:
    files = files_of(2, average=average)
    change(files)
    return files


def test_whole_checkpoints_verify_oldest_first(folder: Path) -> None:
    saved = [write_checkpoint(folder, step, IDENTITY, val_accuracy=step / 10) for step in (1, 2)]
    found = verdicts_on(folder)
    assert [verdict.checkpoint for verdict in found] == saved
    assert [(verdict.fault, verdict.kind) for verdict in found] == [(None, None)] * 2
    assert [verdict.val_accuracy for verdict in found] == [0.1, 0.2]
    assert [verdict.bytes for verdict in found] == [
        sum(file.stat().st_size for file in checkpoint.path.iterdir()) for checkpoint in saved
    ]
    assert found[0].contents["model.safetensors"] == {"head.bias": ("F32", (3,)), "head.weight": ("F32", (3, 2))}
    assert resume_step(found) == 2


def test_a_running_average_that_fits_verifies(folder: Path) -> None:
    write_checkpoint(folder, 2, IDENTITY, files=files_of(2, average=True))
    (found,) = verdicts_on(folder)
    assert found.fault is None
    assert found.contents["average.safetensors"] == found.contents["model.safetensors"]


def test_where_nothing_was_saved_there_is_no_verdict(folder: Path) -> None:
    assert not any([verdicts_on(folder), leftovers(folder), set_aside(folder)])
    folder.mkdir()
    assert not any([verdicts_on(folder), leftovers(folder), set_aside(folder)])
    assert resume_step([]) is None


DAMAGES: dict[str, tuple[Callable[[Checkpoint], object], str]] = {
    "missing": (lambda saved: (saved.path / "state.json").unlink(), "state.json is missing"),
    "flipped": (
        lambda saved: flip_a_bit(saved.path / "optimizer.safetensors"),
        "optimizer.safetensors has changed since it was written",
    ),
    "no manifest": (lambda saved: (saved.path / "manifest.json").unlink(), "manifest.json is missing"),
    "a copy of another step": (
        lambda saved: shutil.copy(saved.path.with_name("step-00000001") / "manifest.json", saved.path),
        "it holds step 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_damaged_on_the_disk_is_passed_over(folder: Path, damage: str) -> None:
    write_checkpoint(folder, 1, IDENTITY)
    break_it, told = DAMAGES[damage]
    break_it(write_checkpoint(folder, 2, IDENTITY))
    older, newer = verdicts_on(folder)
    assert (older.fault, newer.fault, newer.kind) == (None, told, "broken")
    assert newer.contents == {}
    assert resume_step([older, newer]) == 1


UNUSABLE: dict[str, tuple[Files, str]] = {
    "a state of another shape": (
        changed(lambda files: files["optimizer.safetensors"].update({"mean.head.bias": np.zeros(4, np.float32)})),
        "optimizer.safetensors: mean.head.bias is F32 (4,), and its weights ask for F32 (3,)",
    ),
    "a state of another type": (
        changed(lambda files: files["optimizer.safetensors"].update({"square.head.bias": np.zeros(3)})),
        "optimizer.safetensors: square.head.bias is F64 (3,), and its weights ask for F32 (3,)",
    ),
    "steps of another shape": (
        changed(lambda files: files["optimizer.safetensors"].update({"steps.head.bias": np.zeros(1, np.float32)})),
        "optimizer.safetensors: steps.head.bias is F32 (1,), and its weights ask for F32 ()",
    ),
    "a mean too few": (
        changed(lambda files: files["optimizer.safetensors"].pop("mean.head.weight")),
        "optimizer.safetensors: mean.head.weight is missing",
    ),
    "a square too many": (
        changed(lambda files: files["optimizer.safetensors"].update({"square.tail": np.zeros(3, np.float32)})),
        "optimizer.safetensors: square.tail is one too many",
    ),
    "an average of another shape": (
        changed(lambda files: files.update({"average.safetensors": weights(2, classes=4)}), average=True),
        "average.safetensors: head.bias is F32 (4,), and its weights have F32 (3,)",
    ),
    "an average of fewer": (
        changed(lambda files: files.update({"average.safetensors": {"head.bias": np.zeros(3, np.float32)}})),
        "average.safetensors: head.weight is missing",
    ),
    "no optimizer": (
        changed(lambda files: files.pop("optimizer.safetensors")),
        "its manifest names no optimizer.safetensors",
    ),
    "nothing but counters": ({}, "its manifest names no model.safetensors and no optimizer.safetensors"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_tensors_that_do_not_fit_are_found_though_every_byte_is_as_written(folder: Path, kind: str) -> None:
    files, told = UNUSABLE[kind]
    saved = write_checkpoint(folder, 2, IDENTITY, files=files)
    assert find_fault(saved, IDENTITY) is None
    (found,) = verdicts_on(folder)
    assert (found.fault, found.kind) == (told, "unusable")


NO_COUNTERS = "state.json holds no counters of step 2"


NO_COUNTS: list[object] = [1.5, True, None, 10**400, -(10**400)]
NO_AMOUNTS: list[object] = [None, "1", float("nan"), float("inf"), 10**400]


@pytest.mark.parametrize(
    "counters",
    [
        *([], {}, {"step": 3}, {"step": "2"}, "2", {"step": 2.0}, {"step": 2, "steps": 2}),
        *({"step": 2, "loss_images": value} for value in NO_COUNTS),
        *({"step": 2, "loss_sum": value} for value in NO_AMOUNTS),
        *({"step": 2, "val_loss": value} for value in ([1.0], False, "1")),
    ],
    ids=lambda counters: str(counters)[:40],
)
def test_counters_that_a_resume_would_refuse_are_found(folder: Path, counters: object) -> None:
    saved = write_checkpoint(folder, 2, IDENTITY, counters=counters)
    (found,) = verdicts_on(folder)
    assert (found.fault, found.kind) == (NO_COUNTERS, "unusable")
    with pytest.raises(NoCheckpointError) as caught:
        read_counters(saved)
    assert caught.value.message == f"{saved.path / 'state.json'} holds no counters of step 2."


def test_counters_of_the_first_release_verify(folder: Path) -> None:
    counters = {"step": 2, "loss_sum": 0, "loss_images": 2**53, "wall_seconds": 1.5, "val_loss": None}
    saved = write_checkpoint(folder, 2, IDENTITY, counters=counters)
    assert faults_in(folder) == {2: None}
    assert read_counters(saved).loss_images == 2**53


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 5_000, b" " * (LARGEST_COUNTERS_BYTES + 1)])
def test_counters_that_are_no_json_are_found(folder: Path, content: bytes) -> None:
    write_checkpoint(folder, 2, IDENTITY, more={"state.json": content})
    (found,) = verdicts_on(folder)
    assert (found.fault, found.kind) == (NO_COUNTERS, "unusable")


def test_tensors_that_can_not_be_loaded_are_found(folder: Path) -> None:
    saved = write_checkpoint(folder, 2, IDENTITY, more={"model.safetensors": b"no tensors at all"})
    assert find_fault(saved, IDENTITY) is None
    (found,) = verdicts_on(folder)
    assert found.kind == "unusable"
    assert str(found.fault).startswith(f"{saved.path / 'model.safetensors'} can't be read: ")


def test_a_resume_is_not_promised_past_what_it_would_stumble_over(folder: Path) -> None:
    write_checkpoint(folder, 1, IDENTITY)
    write_checkpoint(folder, 2, IDENTITY, counters={"step": 9})
    assert resume_step(verdicts_on(folder)) is None
    write_checkpoint(folder, 3, IDENTITY)
    assert resume_step(verdicts_on(folder)) == 3


def test_the_one_whose_tensors_differ_from_most_is_named(folder: Path) -> None:
    write_checkpoint(folder, 1, IDENTITY)
    write_checkpoint(folder, 2, IDENTITY, files=files_of(2, classes=5))
    write_checkpoint(folder, 3, IDENTITY)
    told = "model.safetensors: head.bias is F32 (5,), and in step-00000001 it is F32 (3,)"
    assert faults_in(folder) == {1: None, 2: told, 3: None}
    assert resume_step(verdicts_on(folder)) == 3


def test_of_two_that_differ_the_newer_is_named(folder: Path) -> None:
    write_checkpoint(folder, 1, IDENTITY)
    write_checkpoint(folder, 2, IDENTITY, files=files_of(2, average=True))
    assert faults_in(folder) == {1: None, 2: "has average.safetensors, and step-00000001 has none"}
    assert resume_step(verdicts_on(folder)) is None


def test_a_missing_average_is_named(folder: Path) -> None:
    for step in (1, 2):
        write_checkpoint(folder, step, IDENTITY, files=files_of(step, average=True))
    write_checkpoint(folder, 3, IDENTITY)
    assert faults_in(folder) == {1: None, 2: None, 3: "has no average.safetensors as step-00000001 has"}


def test_a_broken_one_is_no_pattern_for_the_others(folder: Path) -> None:
    for step in (1, 2):
        flip_a_bit(write_checkpoint(folder, step, IDENTITY, files=files_of(step, classes=5)).path / "state.json")
    write_checkpoint(folder, 3, IDENTITY)
    assert faults_in(folder)[3] is None


# While a trainer runs.


def removed_on_reading(
    monkeypatch: pytest.MonkeyPatch, doomed: Checkpoint, then: Callable[[], object]
) -> list[int]:
    """Has a trainer delete a checkpoint while it is read; returns the steps that are looked at, as they are."""
    looked_at: list[int] = []

    def find(checkpoint: Checkpoint, identity: dict[str, str]) -> Fault | None:
        looked_at.append(checkpoint.step)
        if checkpoint == doomed and looked_at.count(doomed.step) == 1:
            shutil.rmtree(doomed.path)
            then()
        return find_fault(checkpoint, identity)

    monkeypatch.setattr(module, "find_fault", find)
    return looked_at


def test_a_checkpoint_that_is_pruned_meanwhile_is_no_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = write_checkpoint(folder, 1, IDENTITY)
    write_checkpoint(folder, 2, IDENTITY)
    looked_at = removed_on_reading(monkeypatch, doomed, lambda: None)
    assert faults_in(folder) == {2: None}
    assert looked_at == [1, 2]
    assert verify_checkpoint(doomed, IDENTITY) is None


def test_where_all_are_pruned_meanwhile_their_successor_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = write_checkpoint(folder, 1, IDENTITY)
    removed_on_reading(monkeypatch, doomed, lambda: write_checkpoint(folder, 2, IDENTITY))
    assert faults_in(folder) == {2: None}


def test_a_checkpoint_that_is_saved_anew_meanwhile_is_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_checkpoint(folder, 1, IDENTITY)
    looked_at: list[Path] = []

    def find(checkpoint: Checkpoint, identity: dict[str, str]) -> Fault | None:
        looked_at.append(checkpoint.path)
        if len(looked_at) > 1:
            return find_fault(checkpoint, identity)
        first.path.rename(folder / "old")
        write_checkpoint(folder, 1, IDENTITY)
        return Fault("broken", "half of the old one and half of the new one")

    monkeypatch.setattr(module, "find_fault", find)
    found = verify_checkpoint(first, IDENTITY)
    assert found is not None
    assert found.fault is None
    assert looked_at == [first.path] * 2


# What killed saves left.


def unnamed(saved: Checkpoint, mark: str = "0123abcd") -> Path:
    return saved.path.rename(saved.path.with_name(f"{saved.path.name}.partial-{mark}"))


def test_one_that_was_whole_before_its_name_counts_as_for_a_resume(folder: Path) -> None:
    _, newer, newest = (write_checkpoint(folder, step, IDENTITY) for step in (1, 2, 3))
    whole, half = unnamed(newer), unnamed(newest)
    (half / "manifest.json").unlink()
    assert [one.path for one in leftovers(folder)] == [whole, half]
    found = verdicts_on(folder)
    assert [verdict.checkpoint.path.name for verdict in found] == ["step-00000001", whole.name]
    assert resume_step(found) == 2
    assert [verdict.checkpoint.step for verdict in verdicts_on(folder, with_leftovers=False)] == [1]


def test_what_is_left_beside_the_checkpoint_of_its_step_does_not_count(folder: Path) -> None:
    saved = write_checkpoint(folder, 1, IDENTITY)
    shutil.copytree(saved.path, saved.path.with_name(f"{saved.path.name}.partial-0123abcd"))
    (folder / "notes.partial-0123abcd").mkdir()
    (folder / "step-00000002.partial-0123abcd").write_bytes(b"a file")
    assert leftovers(folder) == []
    assert len(verdicts_on(folder)) == 1


def test_those_set_aside_are_named_and_not_counted(folder: Path) -> None:
    write_checkpoint(folder, 1, IDENTITY)
    there = [f"{prefix}-step-00000005" for prefix in ("broken", "foreign", "unread")]
    for name in (*there, "broken-step-00000002.partial-0123abcd", "broken-step-00000003.removed-0123abcd"):
        (folder / name).mkdir()
    assert set_aside(folder) == there
    assert faults_in(folder) == {1: None}


# What is said of a resume is what a resume does.


def write_newer(folder: Path, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "FORMAT_VERSION", 3)
        write_checkpoint(folder, step, IDENTITY)


CONDITIONS: dict[str, Callable[[Path, int], object]] = {
    "whole": lambda folder, step: write_checkpoint(folder, step, IDENTITY),
    "flipped": lambda folder, step: flip_a_bit(write_checkpoint(folder, step, IDENTITY).path / "model.safetensors"),
    "gone": lambda folder, step: (write_checkpoint(folder, step, IDENTITY).path / "state.json").unlink(),
    "foreign": lambda folder, step: write_checkpoint(folder, step, {**IDENTITY, "data_fingerprint": "f" * 64}),
    "newer": write_newer,
    "unnamed": lambda folder, step: unnamed(write_checkpoint(folder, step, IDENTITY)),
    "half": lambda folder, step: (unnamed(write_checkpoint(folder, step, IDENTITY)) / "manifest.json").unlink(),
}


@settings(max_examples=25)  # every save is synced to the disk
@given(st.lists(st.sampled_from(sorted(CONDITIONS)), max_size=4))
def test_the_step_that_is_promised_is_the_one_that_a_resume_takes(
    tmp_path_factory: pytest.TempPathFactory, conditions: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    for step, condition in enumerate(conditions, start=1):
        CONDITIONS[condition](folder, step)
    promised = resume_step(verdicts_on(folder))
    try:
        taken = CheckpointStore(folder, MANY).newest_valid(IDENTITY, lambda event, message: None)
    except (NoCheckpointError, UsageError):
        taken = None
    assert promised == (taken.step if taken is not None else None)


# The final weights.


@pytest.mark.parametrize(
    "tensors",
    [
        {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1.5)},
        {"whole": torch.arange(3), "bytes": torch.ones(2, dtype=torch.uint8), "truth": torch.tensor([True])},
        {"half": torch.ones(3, dtype=torch.bfloat16), "empty": torch.ones(0, 4), "f16": torch.ones(2).half()},
        {"ä.weight": torch.ones(600_000), "double": torch.ones(1, 2, 1, dtype=torch.float64)},
        {},
    ],
    ids=["a scalar", "whole numbers", "other types", "over a chunk", "none"],
)
def test_the_checksum_of_the_weights_is_that_of_training(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors, {"name": "tiny"})
    assert weights_sha256_of(path) == weights_sha256(tensors)


def test_final_weights_are_held_against_their_checkpoints_and_their_checksum(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    written = {name: torch.from_numpy(value) for name, value in weights(2).items()}
    write_tensors(path, written)
    shapes, digest = read_shapes(path), weights_sha256(written)
    assert find_weights_fault(path, shapes, digest) is None
    assert find_weights_fault(path, None, None) is None
    other: Shapes = {**shapes, "head.bias": ("F32", (4,))}
    told = "head.bias is F32 (3,), and in the checkpoints it is F32 (4,)"
    assert find_weights_fault(path, other, digest) == told
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert find_weights_fault(path, shapes, None) is None
    assert find_weights_fault(path, shapes, digest) == "they have changed since they were written"
    path.write_bytes(content[:-1])
    assert str(find_weights_fault(path, shapes, digest)).startswith(f"{path} can't be read: ")


def test_the_states_names_are_those_of_the_optimizer() -> None:
    from lowmem_seq.training.optimizer import AdamW

    parameters = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in weights().items()}
    live = AdamW(parameters, 0.0, 0.9, 0.999).state()
    built = state_of(weights())
    assert {name: tuple(value.shape) for name, value in live.items()} == {
        name: value.shape for name, value in built.items()
    }


def test_types_are_called_as_torch_calls_them() -> None:
    assert {name: str(getattr(torch, name)) for name in TYPE_NAMES.values()} == {
        name: f"torch.{name}" for name in TYPE_NAMES.values()
    }
