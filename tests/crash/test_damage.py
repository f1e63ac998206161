"""A real checkpoint, damaged in every way that a disk or a stranger may: found out, told, and survived."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint, Fault, find_fault
from lowmem_seq.training.state import weights_sha256
from tests.builders import names
from tests.crash.patient import NAMES, NEWER, OLDER, Patient, open_tiny

RANDOM_FLIPS = 500
pytestmark = pytest.mark.usefixtures("unsynced")


def changed(name: str) -> str:
    """What is told of a file of the same length with other bytes, as a pattern."""
    return r"its manifest can't be read: .+" if name == MANIFEST else rf"{name} has changed since it was written"


def resized(name: str, size: int, expected: int) -> str:
    """What is told of a file of another length, as a pattern."""
    if name == MANIFEST:
        return r"its manifest can't be read: .+"
    return f"{name} has {size} bytes, and {expected} are expected"


def assert_told(fault: Fault, pattern: str) -> None:
    assert fault.kind == "broken"
    assert re.fullmatch(pattern, fault.text), fault.text


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_found_at_every_4096th_byte_and_at_500_others(patient: Patient, name: str) -> None:
    whole = (patient.newest / name).read_bytes()
    draws = random.Random(name)
    places = [*range(0, len(whole), 4096), len(whole) - 1]
    places += [draws.randrange(len(whole)) for _ in range(RANDOM_FLIPS)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draws.randrange(8)
        assert_told(patient.damaged_by(bytes(flipped), name), changed(name))
    assert patient.fault() is None


@pytest.mark.parametrize("name", NAMES)
def test_zeros_cuts_and_additions_are_found(patient: Patient, name: str) -> None:
    whole = (patient.newest / name).read_bytes()
    size = len(whole)
    assert_told(patient.damaged_by(bytes(size), name), changed(name))
    assert_told(patient.damaged_by(whole[: size // 2] + bytes(size - size // 2), name), changed(name))
    for length in (0, 1, 8, size // 3, size // 2, size - 4096, size - 1):
        if 0 <= length < size:
            assert_told(patient.damaged_by(whole[:length], name), resized(name, length, size))
    for more in (b"\0", b"\n", whole):
        assert_told(patient.damaged_by(whole + more, name), resized(name, size + len(more), size))
    assert patient.fault() is None


@pytest.mark.parametrize("name", NAMES)
def test_a_deleted_file_is_found(patient: Patient, name: str) -> None:
    (patient.newest / name).unlink()
    assert_told(patient.diagnose(), rf"{name} is missing")


@pytest.mark.parametrize("name", NAMES)
def test_the_same_file_of_another_run_is_found(patient: Patient, of_another_run: Path, name: str) -> None:
    foreign = (of_another_run / name).read_bytes()
    fault = patient.damaged_by(foreign, name)
    size = (patient.newest / name).stat().st_size
    if name == MANIFEST:  # it is whole, and its files are not the ones it tells of
        assert_told(fault, r"(model\.safetensors|state\.json) (has changed since it was written|has \d+ bytes, .+)")
    else:
        assert_told(fault, changed(name) if len(foreign) == size else resized(name, len(foreign), size))


def test_two_files_in_each_other_s_place_are_found(patient: Patient) -> None:
    average = (patient.newest / "average.safetensors").read_bytes()
    (patient.newest / "average.safetensors").write_bytes((patient.newest / "model.safetensors").read_bytes())
    (patient.newest / "model.safetensors").write_bytes(average)
    assert_told(patient.diagnose(), changed("model.safetensors"))


def test_another_step_of_the_same_run_in_its_place_is_found(patient: Patient) -> None:
    shutil.rmtree(patient.newest)
    shutil.copytree(patient.run.checkpoints / OLDER, patient.newest)
    assert_told(patient.diagnose(), "it holds step 2")


def test_a_whole_checkpoint_of_another_run_is_passed_over(patient: Patient, of_another_run: Path) -> None:
    shutil.rmtree(patient.newest)
    shutil.copytree(of_another_run, patient.newest)
    assert find_fault(Checkpoint(patient.newest, 4)) is None
    fault = patient.diagnose()
    assert fault == Fault("foreign", "belongs to another experiment (other experiment_sha256)")


def test_after_damage_the_run_comes_to_the_same_weights(patient: Patient) -> None:
    """The trainer itself: it says what it passed over, goes on from the older step, and loses only time."""
    undisturbed = open_tiny(patient.run)
    undisturbed.saver.load_newest()
    assert undisturbed.state.counters.step == 4
    path = patient.newest / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    training = open_tiny(patient.run)
    training.saver.load_newest()
    assert training.state.counters.step == 2
    passed = [event["message"] for event in patient.run.events if event["event"] == "checkpoint_passed_over"]
    assert passed == [
        f"{NEWER} does not verify (optimizer.safetensors has 201887 bytes, and 201888 are expected); "
        f"set aside as broken-{NEWER}"
    ]
    while training.state.counters.step < 4:
        assert training.train_step()
    assert weights_sha256(training.state.parameters) == weights_sha256(undisturbed.state.parameters)
    assert weights_sha256(training.state.optimizer.state()) == weights_sha256(undisturbed.state.optimizer.state())
    training.saver.save()
    assert patient.fault() is None
    assert names(patient.run.checkpoints) == [f"broken-{NEWER}", OLDER, NEWER]


def test_a_checkpoint_that_a_kill_left_without_its_name_is_taken_up_and_told(patient: Patient) -> None:
    patient.newest.rename(patient.newest.with_name(f"{NEWER}.partial-0123abcd"))
    training = open_tiny(patient.run)
    training.saver.load_newest()
    assert training.state.counters.step == 4
    events = [event for event in patient.run.events if event["event"].startswith("checkpoint_")]
    assert [(event["event"], event["message"]) for event in events] == [
        ("checkpoint_recovered", f"{NEWER} was whole and had not got its name yet: recovered")
    ]
