"""A real checkpoint, damaged in every way that a disk or a stranger may: found out, told, and survived."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lowmem_seq import files
from lowmem_seq.channel import Channel
from lowmem_seq.checkpoint.manifest import MANIFEST, Checkpoint, Fault, find_fault, sealed
from lowmem_seq.checkpoint.store import CheckpointStore, Retention
from lowmem_seq.data.pack import Pack
from lowmem_seq.files import read_json
from lowmem_seq.runs.folder import RunFolder
from lowmem_seq.training.loop import Training
from lowmem_seq.training.session import open_training
from lowmem_seq.training.state import weights_sha256
from tests.builders import end, make_run, names, read_line, start_python, tiny_config, tiny_plan
from tests.disks import UnsyncedDisk

NAMES = ("average.safetensors", MANIFEST, "model.safetensors", "optimizer.safetensors", "state.json")
OLDER, NEWER = "step-00000002", "step-00000004"
RANDOM_FLIPS = 500


@pytest.fixture(autouse=True)
def unsynced() -> Iterator[None]:
    with files.using(UnsyncedDisk()):
        yield


def open_tiny(run: RunFolder) -> Training:
    return open_training(run, tiny_plan(), Channel(listen=False))


def train_two_checkpoints(path: Path, pack: Pack, *assignments: str) -> RunFolder:
    """A run with checkpoints of its second and fourth step."""
    run = make_run(path, pack, tiny_config("recipe.ema_decay=0.9", *assignments))
    training = open_tiny(run)
    for _ in range(2):
        assert training.train_step()
        assert training.train_step()
        training.saver.save()
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> RunFolder:
    return train_two_checkpoints(tmp_path_factory.mktemp("damage") / "run", tiny_pack)


@pytest.fixture(scope="module")
def of_another_run(tmp_path_factory: pytest.TempPathFactory, tiny_pack: Pack) -> Path:
    """The newest checkpoint of a run that began with other weights."""
    return train_two_checkpoints(tmp_path_factory.mktemp("other") / "run", tiny_pack, "seed=1").checkpoints / NEWER


@dataclass(frozen=True)
class Patient:
    """A copy of a trained run, whose newest checkpoint is damaged and mended again and again."""

    run: RunFolder
    identity: dict[str, str]

    @property
    def newest(self) -> Path:
        return self.run.checkpoints / NEWER

    def fault(self) -> Fault | None:
        return find_fault(Checkpoint(self.newest, 4), self.identity)

    def diagnose(self) -> Fault:
        """Have the damage found and told, the older checkpoint taken; put the damaged one back under its name."""
        fault = self.fault()
        assert fault is not None
        told: list[tuple[str, str]] = []
        store = CheckpointStore(self.run.checkpoints, Retention(newest=2))
        older = store.newest_valid(self.identity, lambda event, message: told.append((event, message)))
        assert older == Checkpoint(self.run.checkpoints / OLDER, 2)
        aside = f"{fault.kind}-{NEWER}"
        message = f"{NEWER} does not verify ({fault.text}); set aside as {aside}"
        assert told == [("checkpoint_passed_over", message)]
        assert names(self.run.checkpoints) == [aside, OLDER]
        (self.run.checkpoints / aside).rename(self.newest)
        return fault

    def damaged_by(self, content: bytes, name: str) -> Fault:
        """The fault with a file's content replaced; the content of before is put back."""
        path = self.newest / name
        before = path.read_bytes()
        assert content != before
        path.write_bytes(content)
        fault = self.diagnose()
        path.write_bytes(before)
        return fault


@pytest.fixture
def patient(trained: RunFolder, tmp_path: Path) -> Patient:
    run = RunFolder(Path(shutil.copytree(trained.path, tmp_path / "run")))
    patient = Patient(run, dict(open_tiny(run).saver.identity))
    assert names(patient.newest) == list(NAMES)
    assert patient.fault() is None
    return patient


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


LOOKING = """
import json, os, sys, time
from pathlib import Path

import psutil

from lowmem_seq.channel import Channel
from lowmem_seq.errors import LowmemSeqError
from lowmem_seq.runs.folder import open_run
from lowmem_seq.training.measuring import PeakSampler
from lowmem_seq.training.session import open_training, read_plan

OF_THE_SAMPLER = (f"/proc/{os.getpid()}/stat", f"/proc/{os.getpid()}/clear_refs")
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

def look(path):
    before = len(opened)
    try:
        run = open_run(path)
        training = open_training(run, read_plan(run), Channel(listen=False))
        del opened[before:]  # the pack lies outside
        training.saver.load_newest()
        found = f"step {training.state.counters.step}"
        training.saver._saved_step = 0
        training.saver.save()  # looks at the older ones too
    except LowmemSeqError as error:
        found = f"{type(error).__name__}: {error.message}"
    names = [name for name in opened[before:] if not name.startswith(OF_THE_SAMPLER)]
    return found, [name for name in names if not Path(os.path.realpath(name)).is_relative_to(path)]

for line in sys.stdin:
    path = Path(os.path.realpath(line.rstrip("\\n")))
    rss, began = psutil.Process().memory_info().rss, time.monotonic()
    with PeakSampler() as sampler:
        found, outside = look(path)
    print(json.dumps([found, outside, sampler.peak_bytes - rss, time.monotonic() - began]), flush=True)
"""
MOST_MORE_BYTES = 32 * 10**6
MOST_SECONDS = 10.0


def seal_again(checkpoint: Path, **changes: Any) -> None:
    """Make the manifest fit the files, as somebody can who has read how."""
    manifest = read_json(checkpoint / MANIFEST)
    for name, told in manifest["files"].items():
        told |= {"bytes": (checkpoint / name).stat().st_size, "sha256": files.sha256_of(checkpoint / name)}
    (checkpoint / MANIFEST).write_bytes(sealed({**manifest, **changes}))


def put(checkpoint: Path, name: str, content: bytes) -> None:
    """Give a file this content, with a manifest that fits it."""
    (checkpoint / name).write_bytes(content)
    seal_again(checkpoint)


def put_tensors(checkpoint: Path, header: object, data_bytes: int = 0, header_bytes: int | None = None) -> None:
    """Give model.safetensors a header that may lie, also about its own length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if header_bytes is None else header_bytes
    put(checkpoint, "model.safetensors", length.to_bytes(8, "little") + text + bytes(data_bytes))


def tensor(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def name_file(checkpoint: Path, name: str) -> None:
    manifest = read_json(checkpoint / MANIFEST)
    seal_again(checkpoint, files={name: manifest["files"]["state.json"]})


def make_link(checkpoint: Path, name: str, target: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to(target)


def make_pipe(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)


def make_long(path: Path, beginning: bytes) -> None:
    """A file of 100 MB, most of it zeros that take no room on the disk."""
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(10**8)


def lose_checkpoints_to_long_events(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint.parent)
    make_long(checkpoint.parents[1] / "events.jsonl", b'{"event": "checkpoint", "step": ')


CANT_BE_READ = r"NoCheckpointError: .*model\.safetensors can't be read: .+"
OTHER_TENSORS = r"NoCheckpointError: the checkpoint's model has other tensors than this model: .+"
FALLEN_BACK = "step 2"
A_LINK = r"UsageError: .+ is a link, .+"
A_PIPE = r"UsageError: .+ is a pipe or a device\."
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a header longer than the file": (lambda at: put_tensors(at, {}, header_bytes=2**40), CANT_BE_READ),
    "a header of 40 MB": (lambda at: put_tensors(at, b"{" + 40_000_000 * b" " + b"}"), CANT_BE_READ),
    "a header of 28,000 tensors": (
        lambda at: put_tensors(at, {f"t{number:06d}": tensor([0], 0, 0) for number in range(28_000)}),
        OTHER_TENSORS,
    ),
    "a header of boxes in boxes": (lambda at: put_tensors(at, 200_000 * b'{"a":'), CANT_BE_READ),
    "2^40 elements": (lambda at: put_tensors(at, {"a": tensor([2**40], 0, 4)}, 4), CANT_BE_READ),
    "2^80 elements": (lambda at: put_tensors(at, {"a": tensor([2**40, 2**40], 0, 4)}, 4), CANT_BE_READ),
    "2^40 bytes": (lambda at: put_tensors(at, {"a": tensor([2**38], 0, 2**40)}, 4), CANT_BE_READ),
    "tensors in the same place": (
        lambda at: put_tensors(at, {"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, 12),
        CANT_BE_READ,
    ),
    "counters of 9 MB": (
        lambda at: put(at, "state.json", b"[" + 3_000_000 * b"[]," + b"[]]"),
        r"NoCheckpointError: .+ holds no counters of step 4\.",
    ),
    "a manifest of 100 MB": (lambda at: make_long(at / MANIFEST, b'{"step": "'), FALLEN_BACK),
    "a manifest of boxes in boxes": (lambda at: (at / MANIFEST).write_bytes(900_000 * b"["), FALLEN_BACK),
    "a manifest of many boxes": (
        lambda at: (at / MANIFEST).write_bytes(b"[" + 300_000 * b"[]," + b"[]]"),
        FALLEN_BACK,
    ),
    **{
        f"a manifest that names {name}": (lambda at, name=name: name_file(at, name), FALLEN_BACK)  # type: ignore[misc]
        for name in ("..\\x", "../../config.yaml", "/etc/hosts", "C:x", "con", "straße.json", "long" * 75 + ".json")
    },
    "events without an end": (lose_checkpoints_to_long_events, "step 0"),
}
if sys.platform != "win32":
    HOSTILE |= {
        "weights that are a link": (lambda at: make_link(at, "model.safetensors", "/dev/zero"), A_LINK),
        "a manifest that is a link": (lambda at: make_link(at, MANIFEST, "/etc/hosts"), A_LINK),
        "a manifest that is a pipe": (lambda at: make_pipe(at, MANIFEST), A_PIPE),
    }


@dataclass(frozen=True)
class Looked:
    """What taking up a run came to, and what it cost."""

    found: str
    opened_outside: list[str]
    more_bytes: int
    seconds: float


Look = Callable[[Path], Looked]


@pytest.fixture(scope="module")
def look(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    """A process that takes up run after run as a trainer does; it has done so once."""
    process = start_python(LOOKING)

    def take_up(path: Path) -> Looked:
        assert process.stdin is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        return Looked(*json.loads(read_line(process)))

    good = Path(shutil.copytree(trained.path, tmp_path_factory.mktemp("good") / "run"))
    take_up(good)
    looked = take_up(good)
    assert (looked.found, looked.opened_outside) == ("step 4", [])
    yield take_up
    assert end(process)[0] == 0


@pytest.mark.parametrize("what", HOSTILE)
def test_a_stranger_s_run_costs_neither_memory_nor_time_and_leads_nowhere(
    patient: Patient, look: Look, what: str
) -> None:
    change, pattern = HOSTILE[what]
    change(patient.newest)
    looked = look(patient.run.path)
    assert re.fullmatch(pattern, looked.found), looked.found
    assert looked.opened_outside == []
    assert looked.more_bytes < MOST_MORE_BYTES
    assert looked.seconds < MOST_SECONDS


RATING = """
import sys
from pathlib import Path
from lowmem_seq.checkpoint.store import CheckpointStore, Retention, best_of
print(best_of(CheckpointStore(Path(sys.argv[1]), Retention(newest=1)).all()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_looking_for_the_best_does_not_wait_at_a_pipe(patient: Patient) -> None:
    """In a process of its own, which can be ended: a read from a pipe without a writer waits for ever."""
    make_pipe(patient.newest, MANIFEST)
    assert end(start_python(RATING, str(patient.run.checkpoints)))[:2] == (0, "None\n")
